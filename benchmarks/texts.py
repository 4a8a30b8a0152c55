"""Made-up text with lengths like those of real conversations: most are short, a few are many times longer."""

import random

_WORDS = """
the of a to in is that it was for on are with as they be at one have this from or had by hot but some what there we can
out other were all your when up use word how said an each she which do their time if will way about many then them would
write like so these her long make thing see him two has look more day could go come did my sound
""".split()  # noqa: SIM905


def heavy_tailed(chance: random.Random, median: float, spread: float = 0.9) -> float:
    """A number of which the median is given and the logarithm is normal: with spread 0.9, a tenth are over 3 times and
    a hundredth over 8 times the median, about what chat turns and their answers show."""
    return median * chance.lognormvariate(0.0, spread)


def heavy_tailed_words(chance: random.Random, median: float = 30.0) -> str:
    """A text whose number of words is heavy-tailed; no two are the same."""
    words = max(3, min(2000, round(heavy_tailed(chance, median))))
    return " ".join(chance.choice(_WORDS) for _ in range(words)) + f" {chance.random():.12f}?"
