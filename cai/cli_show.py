"""`cai show`: one row's whole story, of a run or of an exported dataset, and one call as it was asked."""

from pathlib import Path
from typing import Any

import click

from cai.call_story import call_story
from cai.dataset_story import dataset_story, latest
from cai.errors import BadInput
from cai.lineage import is_dataset, run_of
from cai.row_list import rows_of_dataset, rows_of_run
from cai.screen_call import print_call
from cai.screen_exported import print_exported_row
from cai.screen_list import print_dataset_rows, print_run_rows
from cai.screen_rows import print_row
from cai.store import Run, open_run
from cai.texts import visible_json
from cai.trace import trace


class _Show(click.Command):
    """Of an id that looks like an option, the error says how it is given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.possibilities:  # an option, misspelt
                raise
            hint = f"A ROW_ID that begins with '-' comes after '--': {ctx.command_path} PATH -- ROW_ID"
            raise click.UsageError(f"{error.format_message()} {hint}", error.ctx) from error


@click.command(cls=_Show, short_help="One row's whole story, from a run or a dataset; or one call.")
@click.argument("path", metavar="PATH")
@click.argument("row_id", metavar="[ROW_ID]", required=False)
@click.option("--call", metavar="KEY", help="Instead of a row: the call with this key, of which the beginning will do.")
@click.option("--run", "runs", multiple=True, metavar="RUN", help="Where the run of the dataset PATH is now.")
@click.option(
    "--dataset", "datasets", multiple=True, metavar="DIR",
    help="A dataset that was made of the run PATH and does not lie beside it.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def show(
    path: str, row_id: str | None, call: str | None, runs: tuple[str, ...], datasets: tuple[str, ...], as_json: bool
) -> None:  # fmt: skip
    """Show how the row ROW_ID came about. PATH is a run, or a dataset that cai export made; without ROW_ID, its rows
    are listed with their ids.

    Of a run: the conversation, the response, each round with its principle, critique and revision (what was taken out
    and put in, word by word), the pairs with each verdict and the label, why a row was dropped, and the datasets it
    went into. Of a dataset: the exported row beside its origin; its run is found by the dataset's manifest.json.

    Every call of a model has a key, which stands beside what it said. With --call KEY: the exact prompt, how it was
    sampled, the answer, and what it took.

    \b
    Example:
      cai show data/runs/first
      cai show data/runs/first redteam-001
      cai show data/runs/first-dataset redteam-001
      cai show data/runs/first --call 3fa9c2d1
      cai show data/sets/old redteam-001 --run /archive/runs/first
    """
    if row_id is not None and call is not None:
        raise BadInput("cai show", "a ROW_ID and --call", "a ROW_ID, or --call KEY, or neither", "Give one of the two.")
    of_dataset = is_dataset(Path(path))
    if runs and not of_dataset:
        raise BadInput("--run", f"it together with {path}, which is no dataset", "a dataset", "Leave it out.")
    if call is not None:
        run = run_of(latest(path), runs).run if of_dataset else open_run(path)
        _print_call(run, call, as_json)
    elif row_id is None:
        _list_rows(path, of_dataset, as_json)
    elif of_dataset:
        story = dataset_story(path, row_id, runs)
        _json(story) if as_json else print_exported_row(story)
    else:
        story = trace(open_run(path), row_id, datasets)
        _json(story) if as_json else print_row(story)


def _list_rows(path: str, of_dataset: bool, as_json: bool) -> None:
    rows = rows_of_dataset(latest(path)) if of_dataset else rows_of_run(open_run(path))
    if as_json:
        _json({"dataset" if of_dataset else "run": path, "rows": list(rows)})
    elif of_dataset:
        print_dataset_rows(path, rows)
    else:
        print_run_rows(path, rows)


def _print_call(run: Run, key: str, as_json: bool) -> None:
    story = call_story(run, key)
    _json(story) if as_json else print_call(story)


def _json(value: Any) -> None:
    click.echo(visible_json(value))
