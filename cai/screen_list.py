"""The rows of a run or a dataset in the terminal, a line each."""

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from cai.pasted import folder_word
from cai.screen import console
from cai.seal import Json
from cai.texts import visible

_SEVERAL = 2  # principles that are named in a line; of more, the first, and how many others


def print_run_rows(folder: str, rows: Iterable[Json]) -> None:
    """What `row_list.rows_of_run` gives."""
    screen = console()
    _line(screen, ("id", "what", "outcome", "in datasets as", "principle", "prompt"), "bold")
    for row in rows:
        told = (row["id"], row["what"], row["outcome"], ", ".join(row["exported"]) or "-")
        _line(screen, (*told, _named(row["principles"]), row["prompt"]))
    _say(screen, f"One of them: cai show {folder_word(folder)} ID", "bold")


def print_dataset_rows(folder: str, rows: Iterable[Json]) -> None:
    """What `row_list.rows_of_dataset` gives."""
    screen = console()
    _line(screen, ("id", "config", "outcome", "split and row", "principle", "prompt"), "bold")
    for row in rows:
        told = (row.get("pair_id", row["row_id"]), row["config"], row["outcome"], f"{row['split']} {row['number']}")
        _line(screen, (*told, _named(row["principles"]), row["prompt"]))
    _say(screen, f"One of them, beside its origin: cai show {folder_word(folder)} ID", "bold")


def _named(principles: list[str]) -> str:
    if len(principles) > _SEVERAL:
        return f"{principles[0]} and {len(principles) - 1} others"
    return ", ".join(principles) or "-"


_WIDTHS = (32, 10, 27, 23, 32, 0)


def _line(screen: Console, columns: tuple[str, ...], style: str = "") -> None:
    # Each line by itself, so that a long run begins to show at once.
    cells = (f"{visible(one):<{width}}" for one, width in zip(columns, _WIDTHS, strict=True))
    _say(screen, "  ".join(cells).rstrip(), style)


def _say(screen: Console, sentence: str, style: str = "") -> None:
    screen.print(Text(sentence, style=style), soft_wrap=True)
