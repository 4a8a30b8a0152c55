"""Words of a command that is printed for a person to paste: a shell takes each as one word and runs nothing in it.

Ids of rows come from whoever wrote the source, and a run may come from elsewhere. Plain words stay plain.
"""

import shlex
from pathlib import Path

from cai.texts import visible


def word(text: str) -> str:
    """Quoted where a shell needs it, and so that a person sees all of it."""
    return visible(shlex.quote(text))


def folder_word(path: str | Path) -> str:
    """A path, of which the beginning is no option's."""
    told = str(path)
    return word(f"./{told}" if told.startswith("-") else told)


def row_word(row_id: str) -> str:
    """The id of a row; `--` says of one that looks like an option that it is none."""
    return f"-- {word(row_id)}" if row_id.startswith("-") else word(row_id)
