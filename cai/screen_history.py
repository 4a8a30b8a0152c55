"""The figures of many sessions in the terminal: of each stage and source a table, and one of what they took."""

from collections.abc import Sequence

from rich.table import Table

from cai.history import SIGMAS
from cai.screen import console, plain
from cai.seal import Json
from cai.trends import Series, series_of


def print_history(sessions: Sequence[Json], plot: str | None) -> None:
    """One line for each session; a figure that had shifted is marked, with what it was before, and one of too few rows.

    Each series has two tables, since one would not go into 80 columns; the sessions are numbered.
    """
    screen = console()
    for series in series_of(sessions):
        screen.rule()  # without the title, which a rule cuts off where the source has a long name
        screen.print(f"[bold]cai {series.stage}[/] on {plain(series.source)}")
        screen.print(_figures(series))
        screen.print(_costs(series))
    figures = [one for session in sessions for one in session["figures"].values()]
    shifts, few = (sum(one[what] for one in figures) for what in ("shifted", "too_few"))
    screen.print(f"{len(sessions)} sessions, {shifts} shifts (marked with !, and what it was before in brackets).")
    if few:
        screen.print(
            f"{few} figures are marked with ?: too few rows to judge. Up to {SIGMAS**2:.0f} values, with those of the "
            "sessions before, no difference is beyond chance."
        )
    if plot is not None:
        screen.print(f"Plot     {plain(plot)}", soft_wrap=True)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:  # folded and never cut, since what tells two runs apart may stand at the end
        whole, left = heading in ("#", "finished", "rows"), heading == "run"
        told = heading.replace("_", " ").replace(" ", "\n")
        table.add_column(told, justify="left" if left else "right", no_wrap=whole, overflow="fold")
    return table


def _figures(series: Series) -> Table:
    table = _table("#", "finished", "rows", *series.figures)
    for number, session in enumerate(series.sessions, start=1):
        cells = [_cell(session["figures"].get(name)) for name in series.figures]
        finished = session["finished"][:16].replace("T", " ")
        table.add_row(str(number), finished, str(session["rows_read"]), *cells)
    return table


def _costs(series: Series) -> Table:
    table = _table("#", "run", "calls asked", "prompt tokens", "generated tokens", "seconds")
    for number, session in enumerate(series.sessions, start=1):
        took = [session[name] for name in ("asked_calls", "prompt_tokens", "completion_tokens")]
        seconds = "-" if session["seconds"] is None else f"{session['seconds']:,.1f}"
        table.add_row(
            str(number), plain(session["run"]), *("-" if one is None else f"{one:,}" for one in took), seconds
        )
    return table


def _cell(figure: Json | None) -> str:
    if figure is None:
        return "-"
    if figure["shifted"]:
        return f"[bold red]! {figure['mean']:.3g}[/] ({figure['earlier']:.3g})"
    return f"{figure['mean']:.3g}{' ?' if figure['too_few'] else ''}"
