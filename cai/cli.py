"""The command line. Thin: options are the fields of the settings models, the work is in `stages.py`."""

import asyncio
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NoReturn

import click

from cai import __version__
from cai.audit import report as make_report
from cai.constitution import check_constitution, json_schema, load_constitution
from cai.errors import BadInput, CaiError, CheckFailed
from cai.files import find_shipped
from cai.options import chosen, with_settings
from cai.progress import Progress
from cai.screen import print_constitution, print_outcome, print_report, print_row
from cai.settings import GenerateSettings, ReviseSettings
from cai.stages import Outcome, generate_stage, revise_stage
from cai.store import Json, open_run

GROUPS = {"Make data": ["generate", "revise"], "Look at it": ["report", "show"], "For auditors": ["constitution"]}


class _Grouped(click.Group):
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(100)) for name in names])


@click.group(cls=_Grouped, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def cai(debug: bool) -> None:
    """Constitutional AI data, from a model and a written constitution.

    \b
    Example:
      cai revise redteam --out data/runs/first --limit 20
      cai report data/runs/first
    """


@cai.command(short_help="Sample K responses for each prompt.")
@with_settings(GenerateSettings)
def generate(as_json: bool, **options: Any) -> None:
    """Sample responses for each of PROMPTS and write them to RUN/responses.

    \b
    Example:
      cai generate redteam --samples 4 --out data/runs/samples
    """
    settings = chosen(GenerateSettings, options)
    print_result(_run(generate_stage(settings, Progress()), settings.out), "generate", settings.out, as_json)


@cai.command(short_help="Answer, criticise and revise: trajectories.")
@with_settings(ReviseSettings)
def revise(as_json: bool, **options: Any) -> None:
    """Answer each of PROMPTS, criticise and revise the answer, and write RUN/trajectories.

    PROMPTS is a .jsonl, .parquet or .csv file with a column 'prompt' (text or messages), or
    datasets:NAME[:CONFIG]:SPLIT, or the name of a shipped set (redteam). The same command goes on where it was
    stopped.

    \b
    Example:
      cai revise redteam --out data/runs/first --limit 20 --rounds 2
      cai revise mine.jsonl --constitution mine.yaml --endpoint http://127.0.0.1:8000/v1 --out data/runs/mine
    """
    settings = chosen(ReviseSettings, options)
    print_result(_run(revise_stage(settings, Progress()), settings.out), "revise", settings.out, as_json)


@cai.command(short_help="What a run read, kept, dropped and changed, and what it cost.")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def report(run: str, as_json: bool) -> None:
    """Rates, principles, tokens and times of RUN, finished or not.

    \b
    Example:
      cai report data/runs/first --json
    """
    result = make_report(open_run(run))
    _json(result) if as_json else print_report(result, run)


@cai.command(short_help="One row's whole story.")
@click.argument("run")
@click.argument("row_id")
@click.option("--json", "as_json", is_flag=True, help="Print the row as JSON.")
def show(run: str, row_id: str, as_json: bool) -> None:
    """The conversation, response, and every round of the row ROW_ID of RUN, with the keys of its calls.

    \b
    Example:
      cai show data/runs/first redteam-001
    """
    opened = open_run(run)
    found: Json = {}
    for stage, table in (("generate", "responses"), ("revise", "trajectories")):
        rows = [row for row in opened.records(table) if row_id in (row["row_id"], row["prompt_id"])]
        drops = [drop for drop in opened.dropped(stage, table) if drop["row_id"] == row_id]
        found |= {table: rows} if rows else {}
        found |= {"drops": found.get("drops", []) + drops} if drops else {}
    if not found:
        raise BadInput(
            run, f"no row '{row_id}'", "the row_id of a row or a drop", "Ids are in the column row_id of the tables."
        )
    _json(found) if as_json else print_row(found)


@cai.group(short_help="Read and check constitutions.")
def constitution() -> None:
    """Read and check constitutions.

    \b
    Example:
      cai constitution lint mine.yaml
    """


@constitution.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def lint(files: tuple[str, ...], as_json: bool) -> None:
    """Check constitution FILES (paths or names); exit 1 if something is wrong with one.

    \b
    Example:
      cai constitution lint constitutions/harmlessness.yaml
    """
    paths = [find_shipped("constitutions", name, ".yaml") for name in files]
    for name, path in zip(files, paths, strict=True):
        if path is None:
            raise BadInput(name, "no such constitution", "a YAML file or a known name", "Check the path.")
    findings = {str(path): [str(problem) for problem in check_constitution(path)] for path in paths if path is not None}
    if as_json:
        _json(findings)
    else:
        for path, problems in findings.items():
            click.echo("\n".join(problems) if problems else f"{path}: fine")
    if any(findings.values()):
        wrong = [problems for problems in findings.values() if problems]
        raise CheckFailed(f"{sum(map(len, wrong))} problem(s) in {len(wrong)} file(s)")


@constitution.command(name="show")
@click.argument("name", default="harmlessness")
@click.option("--json", "as_json", is_flag=True, help="Print the constitution as JSON.")
def show_constitution(name: str, as_json: bool) -> None:
    """Print a constitution, a path or a known NAME, to be read.

    \b
    Example:
      cai constitution show harmlessness
    """
    loaded = load_constitution(name)
    if as_json:
        principles = [principle.model_dump(mode="json") for principle in loaded.principles]
        _json({"name": loaded.name, "version": loaded.version, "sha": loaded.sha, "principles": principles})
    else:
        print_constitution(loaded)


@constitution.command()
def schema() -> None:
    """Print the JSON Schema of the format, for editors.

    \b
    Example:
      cai constitution schema > schema.json
    """
    _json(json_schema())


def print_result(outcome: Outcome, stage: str, out: str, as_json: bool) -> None:
    if as_json:
        _json(
            {
                "entry": outcome.entry,
                "asked_calls": outcome.session.asked_calls,
                "reused_calls": outcome.session.reused_calls,
            }
        )
    else:
        print_outcome(outcome, stage, out)


def _json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


class _Stopped(BaseException):
    """The process was asked to end, by Ctrl-C or SIGTERM."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number


def _run(stage: Coroutine[Any, Any, Outcome], out: str) -> Outcome:
    """Run a stage to its end, or until Ctrl-C or SIGTERM; either way what is finished is kept."""

    async def main() -> Outcome:
        task = asyncio.current_task()
        assert task is not None
        first: list[tuple[int, float]] = []

        def stop(number: int) -> None:
            if not first:
                first.append((number, time.monotonic()))
                task.cancel()
            elif time.monotonic() - first[0][1] > 1.0:
                os._exit(128 + number)  # asked twice: at once. The journal holds what is finished.

        for number in (signal.SIGINT, signal.SIGTERM):
            # A job that a script put into the background ignores Ctrl-C, and goes on doing so.
            if signal.getsignal(number) != signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, stop, number)
        try:
            return await stage
        except asyncio.CancelledError:
            if first:
                raise _Stopped(first[0][0]) from None
            raise

    try:
        return asyncio.run(main())
    except _Stopped as stopped:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # it is ending already; a second signal must not spoil the exit code
        rest = f" Finished rows and calls are kept in {out}." if (Path(out) / "settings.json").exists() else ""
        click.echo(f"Stopped.{rest} The same command goes on from here.", err=True)
        sys.exit(stopped.code)


def main() -> None:
    """The console script."""
    run_cli(cai, sys.argv[1:])


def run_cli(command: click.Command, arguments: list[str]) -> None:
    """Run a command: one sentence and an exit code for every end that a person can act on."""
    try:
        command(arguments, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped. What is finished is kept; the same command goes on from there.", err=True)
        sys.exit(130)
    except CaiError as error:
        _fail(str(error), error.exit_code, "--debug" in arguments)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sentence = f"{place}{error.strerror or error}. What is finished is kept; the same command goes on from there."
        _fail(sentence, 2, "--debug" in arguments)


def _fail(sentence: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    click.echo(f"{click.style('cai:', fg='red', bold=True)} {sentence}", err=True)
    sys.exit(code)
