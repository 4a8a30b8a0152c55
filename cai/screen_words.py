"""What the views of `cai show` have in common: text of others in boxes, sentences of ours, a few things in words."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from cai.texts import visible

# Of a call's key: as much as tells it from all others.
KEY = 16


def good(label: bool) -> str:
    """A row of kto in words."""
    return "good" if label else "bad"


def compared(differs: Sequence[str] | None) -> str:
    """Whether an exported row is what its run gives, in words."""
    if differs is None:
        return "the run gives no such row now"
    return f"the run says otherwise now, in: {', '.join(differs)}" if differs else "the run says the same"


def origin_in_words(origin: str) -> str:
    """Where an answer comes from, as the tables name it, with what that is: samples are compared as they were given."""
    told = {"response": "the first response, unrevised", "helpful": "mixed in"}.get(origin)
    told = "that sample's first response, unrevised" if origin.startswith("sample-") else told
    return f"{origin} ({told})" if told else origin


def words_mass(mass: float) -> str:
    """How much of a model's probability fell on the words that it had to choose from, so that little is not nothing."""
    shown = f"{100 * mass:.3g}" if mass >= 0.001 else f"{100 * mass:.1g}"
    return f"the words to choose from had {shown} % of its probability"


def boxed(screen: Console, text: str | Text, title: str) -> None:
    """Text of others in a box, so that it cannot pass for words of ours."""
    shown = text if isinstance(text, Text) else Text(visible(text))
    screen.print(Panel(shown, title=escape(visible(title)), title_align="left"))


def say(screen: Console, sentence: str, style: str = "") -> None:
    """A sentence of ours; what others wrote within it is spelled out."""
    screen.print(Text(visible(sentence), style=style), soft_wrap=True)
