"""Markdown out of figures, and out of text from people and models, which is data in it and nothing else."""

import html
import re
from collections.abc import Iterator, Sequence
from typing import Any

from cai.texts import visible


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
    table's cell, or unseen: that is spelled out (but for what joins letters and emoji).

    What a host makes of words by itself, such as @name, :smile: or GH-12, it makes of these too: ids stand in `code`.
    """
    flat = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", html.escape(_on_one_line(text), quote=False))
    return flat.replace("://", "&#58;//").replace("www.", "www&#46;")


def code(text: Any) -> str:
    """A short text in a code span that it cannot leave, and in which a host makes nothing of any word."""
    return "`" + (_on_one_line(text).replace("`", "'").replace("|", "/") or "(nothing)") + "`"


def _on_one_line(text: Any) -> str:
    return visible(" ".join(str(text).split()))
