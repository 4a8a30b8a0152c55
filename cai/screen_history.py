"""The figures of many sessions in the terminal: a table for each stage and source."""

from collections.abc import Sequence

from rich.table import Table

from cai.screen import console, plain
from cai.store import Json
from cai.trends import Series, series_of


def print_history(sessions: Sequence[Json], plot: str | None) -> None:
    """One line for each session; a figure that had shifted is marked, with what it was before."""
    screen = console()
    for series in series_of(sessions):
        screen.rule(f"[bold]cai {series.stage}[/] on {plain(series.source)}")
        screen.print(_table(series))
    shifts = sum(one["shifted"] for session in sessions for one in session["figures"].values())
    screen.print(f"{len(sessions)} sessions, {shifts} shifts (marked with !, and what it was before in brackets).")
    if plot is not None:
        screen.print(f"Plot     {plain(plot)}", soft_wrap=True)


def _table(series: Series) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("finished", "rows", *series.figures, "run"):
        table.add_column(heading.replace("_", " "), justify="left" if heading in ("finished", "run") else "right")
    for session in series.sessions:
        cells = [_cell(session["figures"].get(name)) for name in series.figures]
        finished = session["finished"][:16].replace("T", " ")
        table.add_row(finished, str(session["rows_read"]), *cells, plain(session["run"]))
    return table


def _cell(figure: Json | None) -> str:
    if figure is None:
        return "-"
    return (
        f"[bold red]! {figure['mean']:.3g}[/] ({figure['earlier']:.3g})"
        if figure["shifted"]
        else f"{figure['mean']:.3g}"
    )
