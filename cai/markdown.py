"""Markdown out of figures, and out of text from people and models, which is data in it and nothing else."""

import html
import re
from collections.abc import Iterator, Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table, with an empty one behind it; none without rows. The cells are Markdown already."""
    if not rows:
        return
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def plain(text: Any) -> str:
    """Text as text: on one line, and nothing in it is Markdown, HTML, an address that becomes a link, the end of a
    table's cell, or unseen (controls and what turns the direction of writing)."""
    flat = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", html.escape(_visible(text), quote=False))
    return flat.replace("://", "&#58;//").replace("www.", "www&#46;")


def code(text: Any) -> str:
    """A short text in a code span that it cannot leave."""
    return "`" + (_visible(text).replace("`", "'").replace("|", "/") or "(nothing)") + "`"


def _visible(text: Any) -> str:
    unseen = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
    return " ".join(re.sub(unseen, "", str(text)).split())
