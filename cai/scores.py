"""Short formulas by which a judge is measured: intervals, Brier score, calibration error, kappa.

A probability of exactly 1/2 names neither answer and counts as half a hit.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence

from cai.seal import Json

NINETY_FIVE = 1.959963984540054  # 95 % of the normal distribution lie within so many standard deviations
BINS = 10

Soft = tuple[float, bool]  # the probability that a is the better answer, and whether it is


def hit(probability_a: float, a_is_better: bool) -> float:
    """1 if the likelier answer is the better one, 0 if it is the other, 0.5 if neither is likelier."""
    return 0.5 if probability_a == 0.5 else float((probability_a > 0.5) == a_is_better)


def given_to_gold(probability_a: float, a_is_better: bool) -> float:
    """The probability of the answer that is the better one."""
    return probability_a if a_is_better else 1 - probability_a


def wilson(hits: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which keeps its promise for few cases and for shares near 0 and 1.

    `hits` may hold halves.
    """
    found, square = hits / n, NINETY_FIVE**2
    middle = (found + square / (2 * n)) / (1 + square / n)
    reach = NINETY_FIVE * math.sqrt(found * (1 - found) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def brier_score(soft: Sequence[Soft]) -> float | None:
    """The mean squared distance of the soft labels from gold (Brier 1950, for one of two answers). None without any."""
    return math.fsum((1 - given_to_gold(*one)) ** 2 for one in soft) / len(soft) if soft else None


def log_loss(soft: Sequence[Soft]) -> float:
    """The mean negative log-likelihood of gold, in nats; log 2 for a judge that always says 1/2."""
    # No probability counts as smaller than this: one wrong certainty would else cost infinitely much.
    return -math.fsum(math.log(max(given_to_gold(*one), 1e-12)) for one in soft) / len(soft)


def reliability_bins(soft: Iterable[Soft]) -> list[Json]:
    """The soft labels by confidence, which is the probability of the likelier answer: ten bins of equal width.

    Of two answers the likelier has at least 1/2, so the ten bins divide [0.5, 1]; a border belongs to the bin above it.
    Each has its mean `confidence` and its `accuracy`, the share in which the likelier answer is gold's, with a 95 %
    interval; None where a bin is empty.
    """
    edges = [0.5 + 0.5 * number / BINS for number in range(BINS + 1)]
    groups: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for probability_a, a_is_better in soft:
        confidence = max(probability_a, 1 - probability_a)
        groups[bisect_right(edges[1:-1], confidence)].append((confidence, hit(probability_a, a_is_better)))
    return [
        {
            "from": edges[number],
            "to": edges[number + 1],
            "confidence": math.fsum(one for one, _ in group) / len(group) if group else None,
            "accuracy": rate(sum(one for _, one in group), len(group)),
        }
        for number, group in enumerate(groups)
    ]


def expected_calibration_error(bins: Sequence[Json]) -> float | None:
    """How far confidence and accuracy lie apart: the mean over the bins of `reliability_bins`, by their counts.

    The confidence form of Guo et al. 2017 (section 2, after Naeini et al. 2015). It is never negative, so with few
    pairs chance alone makes it some hundredths. None without any pairs.
    """
    full = [one for one in bins if one["accuracy"]["n"]]
    gaps = (one["accuracy"]["n"] * abs(one["accuracy"]["value"] - one["confidence"]) for one in full)
    return math.fsum(gaps) / sum(one["accuracy"]["n"] for one in full) if full else None


def cohens_kappa(rated: Iterable[tuple[str, str]]) -> float | None:
    """Agreement beyond chance (Cohen 1960): 1 for full agreement, 0 for what two raters with these habits would reach
    blindly. None where that is undefined: nothing was rated, or both used one and the same category only.
    """
    both = list(rated)
    first, second = Counter(one for one, _ in both), Counter(one for _, one in both)
    same = sum(one == other for one, other in both)
    chance = sum(first[name] * second[name] for name in first)  # in whole numbers, to know certainty exactly
    n = len(both)
    return (same * n - chance) / (n * n - chance) if n * n > chance else None


def share(count: float, n: int) -> float | None:
    """The share, None of none."""
    return count / n if n else None


def rate(hits: float, n: int) -> Json:
    """A share with its 95 % interval, for cases that are independent."""
    low, high = wilson(hits, n) if n else (None, None)
    return {"n": n, "value": share(hits, n), "low": low, "high": high}
