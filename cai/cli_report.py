"""`cai report`: a run in the terminal, as JSON, as a page or as a summary; or the figures of all runs."""

from pathlib import Path

import click

from cai.audit import report as make_report
from cai.errors import BadInput
from cai.files import write_atomically
from cai.history import History
from cai.pasted import folder_word
from cai.screen import print_report
from cai.screen_history import print_history
from cai.seal import Json
from cai.store import open_run
from cai.texts import visible, visible_json
from cai.trends import sessions_of, trends
from cai.written_place import check_file_place


@click.command(short_help="What a run read, kept, dropped and changed, and what it cost; or the figures of all runs.")
@click.argument("run", required=False)
@click.option("--html", help="Write the report as a page to open in a browser: one .html file, nothing beside it.")
@click.option("--calibration", help="With --html: the folder of a cai calibrate, to show how good the judge is.")
@click.option(
    "--dataset", "datasets", multiple=True,
    help="With --html: a dataset that was exported from the run, if it does not lie beside it; its rows are marked.",
)  # fmt: skip
@click.option(
    "--markdown", is_flag=False, flag_value="-",
    help="Write a summary for a change request into this .md file; without one, print it.",
)  # fmt: skip
@click.option("--against", help="With --markdown: another run, to show each figure beside its own.")
@click.option("--history", help="Instead of a run: a folder of figures, which every session adds to.")
@click.option("--plot", help="With --history: draw each figure over the sessions into this .svg file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def report(
    run: str | None, html: str | None, calibration: str | None, datasets: tuple[str, ...], markdown: str | None,
    against: str | None, history: str | None, plot: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Rates, principles, tokens and times of RUN, finished or not; or, with --history, what each session came to.

    \b
    Example:
      cai report data/runs/first --json
      cai report data/runs/first --html report.html
      cai report data/runs/first --html report.html --dataset data/sets/first
      cai report data/runs/first --markdown summary.md
      cai report data/runs/changed --markdown --against data/runs/first
      cai report --history data/runs/history --plot figures.svg
    """
    if run is None and markdown is not None and Path(markdown).is_dir():
        raise BadInput(
            f"--markdown {markdown}", "a folder", "a file", f"Name the run first: {folder_word(markdown)} --markdown."
        )
    if (run is None) == (history is None):
        found = "nothing" if run is None else "a run and --history"
        raise BadInput("cai report", found, "a run, or --history FOLDER", "Give one of the two.")
    for option, file, ending in (("--html", html, ".html"), ("--markdown", markdown, ".md"), ("--plot", plot, ".svg")):
        if file is not None and file != "-":
            _check_file(option, file, ending)
    if history is not None:
        _refuse({"--html": html, "--markdown": markdown}, "--history", "a run", "Name a run instead of --history.")
        _report_history(History(Path(history)), plot, as_json)
        return
    if plot is not None:
        raise BadInput(f"--plot {plot}", "a run", "--history FOLDER", "One run by itself has nothing to draw over.")
    if html is None:
        _refuse(
            {"--calibration": calibration, "--dataset": next(iter(datasets), None)},
            "no --html",
            "--html FILE",
            "Give --html too.",
        )
    if markdown is None:
        _refuse({"--against": against}, "no --markdown", "--markdown [FILE]", "Give --markdown too.")
    if markdown == "-" and as_json:
        raise BadInput("--json", "--markdown without a file", "one thing to print", "Name a file for the summary.")
    assert run is not None
    opened = open_run(run)
    for place in opened.damaged_lines():
        click.echo(
            visible(f"{place} is damaged and passed over; the cost is short of what it may have said."), err=True
        )
    if html is not None:
        from cai.report.page import page  # the drawings' library takes a second to load

        _write(html, page(opened, run, calibration, datasets))
    if markdown is not None:
        from cai.report.summary import summary

        told = summary(opened, run, against=None if against is None else (open_run(against), against))
        click.echo(told, nl=False) if markdown == "-" else _write(markdown, told)
    if as_json:
        click.echo(visible_json(make_report(opened)))
    elif html is None and markdown is None:
        print_report(make_report(opened))


def _refuse(given: dict[str, str | None], found: str, expected: str, remedy: str) -> None:
    for option, value in given.items():
        if value is not None:
            raise BadInput(f"{option} {value}", found, expected, remedy)


def _check_file(option: str, file: str, ending: str) -> None:
    if not file.endswith(ending):
        raise BadInput(f"{option} {file}", "another kind of file", f"a name that ends with {ending}", "Name it so.")
    check_file_place(option, file)


def _write(file: str, text: str) -> None:
    data = text.encode()
    write_atomically(Path(file), data)
    click.echo(visible(f"{file} is written ({len(data) / 1e6:.1f} MB)."), err=True)


def _report_history(history: History, plot: str | None, as_json: bool) -> None:
    sessions: list[Json] = sessions_of(history)
    for place in history.damaged:
        click.echo(f"{place} is damaged and passed over.", err=True)
    if plot is not None:
        write_atomically(Path(plot), trends(sessions).as_file().encode())
    if as_json:
        click.echo(visible_json(sessions))
    else:
        print_history(sessions, plot)
