"""The command line. Thin: options are the fields of the settings models, the work is in `stages.py`."""

import io
import json
import logging
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

import click

from cai import __version__
from cai.audit import TABLES
from cai.audit import report as make_report
from cai.constitution import check_constitution, json_schema, load_constitution
from cai.errors import BadInput, CaiError, CannotWrite, CheckFailed
from cai.files import find_shipped
from cai.options import chosen, with_settings
from cai.pairs import row_of
from cai.pipeline import Finished, pipeline
from cai.progress import Progress
from cai.screen import print_constitution, print_dataset, print_outcome, print_report
from cai.screen_judge import print_calibration
from cai.screen_rows import print_row
from cai.settings import (
    CalibrateSettings,
    ConstitutionTestSettings,
    ExportSettings,
    GenerateSettings,
    GoldSettings,
    LabelSettings,
    PipelineSettings,
    ReviseSettings,
)
from cai.stages import (
    Calibration,
    Dataset,
    Outcome,
    calibrate_stage,
    check_judge,
    constitution_stage,
    export_stage,
    generate_stage,
    label_stage,
    revise_stage,
)
from cai.stop import run_until_stopped
from cai.store import Json, Run, open_run
from cai.texts import visible, visible_json

GROUPS = {
    "Make data": ["run", "generate", "revise", "label", "export"],
    "Look at it": ["report", "show", "calibrate"],
    "For auditors": ["constitution"],
}


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
    print_result(run_until_stopped(generate_stage(settings, Progress()), settings.out), as_json)


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
    print_result(run_until_stopped(revise_stage(settings, Progress()), settings.out), as_json)


@cai.command(short_help="Judge pairs of a run's answers: soft preference labels.")
@with_settings(LabelSettings)
def label(as_json: bool, **options: Any) -> None:
    """Judge pairs of the answers in RUN against a constitution, and write RUN/pairs, RUN/verdicts and RUN/labels.

    The judge is --model. Pairs that it cannot decide, and a sample of the others, are in RUN/review.jsonl; fill in
    "answer" (a, b or none) and give the file back with --apply-review.

    \b
    Example:
      cai label data/runs/first
      cai label data/runs/first --endpoint http://127.0.0.1:8000/v1 --judge-mode logprob --judge-principles 3
      cai label data/runs/first --apply-review data/runs/first/review.jsonl
    """
    settings = chosen(LabelSettings, options)
    print_result(run_until_stopped(label_stage(settings, Progress()), settings.run), as_json)


@cai.command(short_help="Measure a judge on gold pairs.")
@with_settings(CalibrateSettings)
def calibrate(as_json: bool, **options: Any) -> None:
    """Judge the pairs in GOLD, of which people know the better answer, and report how good the judge is.

    GOLD is a .jsonl, .parquet or .csv file with the columns prompt, chosen and rejected. The figures and a reliability
    plot go into the folder of the verdicts.

    \b
    Example:
      cai calibrate gold.jsonl --endpoint http://127.0.0.1:8000/v1 --limit 200
      cai calibrate gold.jsonl --judge-mode logprob --min-accuracy 0.7 --max-flip 0.2
    """
    settings = chosen(CalibrateSettings, options)
    print_calibration_of(
        run_until_stopped(calibrate_stage(settings, Progress()), settings.out or "data/runs"), settings, as_json
    )


@cai.command(short_help="Training datasets from a run, with a card.")
@with_settings(ExportSettings)
def export(as_json: bool, **options: Any) -> None:
    """Write the answers and labels of RUN as datasets: sft, preference, reward and kto, with a card.

    The folder is a dataset that datasets.load_dataset reads: load_dataset(DIR, "preference").

    \b
    Example:
      cai export data/runs/first --out data/sets/first
      cai export data/runs/first --out data/sets/first --for llama-factory --decontaminate eval.jsonl
    """
    settings = chosen(ExportSettings, options)
    anew = "Stopped. The same command writes the datasets anew."
    print_exported(run_until_stopped(export_stage(settings, Progress()), settings.run, anew), as_json)


@cai.command(name="run", short_help="The whole pipeline: revise, label, export.")
@with_settings(PipelineSettings)
def run_all(as_json: bool, **options: Any) -> None:
    """Answer PROMPTS, revise the answers, judge the pairs, and write training datasets beside the run.

    With --gold the judge is measured first, and nothing else is spent if it is under --min-accuracy or over --max-flip.
    The same command goes on where it was stopped.

    \b
    Example:
      cai run redteam --out data/runs/first --limit 20
      cai run mine.jsonl --config mine.yaml --judge big-model --gold gold.jsonl --min-accuracy 0.7 --out data/runs/mine
    """
    settings = chosen(PipelineSettings, options)
    finished = run_until_stopped(pipeline(settings, Progress()), settings.out)
    print_finished(finished, as_json)


@cai.command(short_help="What a run read, kept, dropped and changed, and what it cost.")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def report(run: str, as_json: bool) -> None:
    """Rates, principles, tokens and times of RUN, finished or not.

    \b
    Example:
      cai report data/runs/first --json
    """
    opened = open_run(run)
    result = make_report(opened)
    for place in opened.damaged_lines():
        click.echo(
            visible(f"{place} is damaged and passed over; the cost is short of what it may have said."), err=True
        )
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
    for stage in opened.settings():
        table = TABLES[stage][-1]
        rows = _judged(opened, row_id) if table == "labels" else _rows(opened, table, row_id)
        drops = [drop for drop in opened.dropped(stage, table) if drop["row_id"] == row_id]
        found |= {"pairs" if table == "labels" else table: rows} if rows else {}
        found |= {"drops": found.get("drops", []) + drops} if drops else {}
    if not found:
        raise BadInput(
            run, f"no row '{row_id}'", "the row_id of a row or a drop", "Ids are in the column row_id of the tables."
        )
    _json(found) if as_json else print_row(found)


def _rows(run: Run, table: str, row_id: str) -> list[Json]:
    return [row for row in run.records(table) if row_id in (row["row_id"], row["prompt_id"])]


def _judged(run: Run, row_id: str) -> list[Json]:
    """The row's pairs, each with its verdicts and its label; `row_id` may also be a pair's id."""
    labels = {label["pair_id"]: label for label in run.records("labels")}
    pairs = [pair for pair in run.records("pairs") if row_id in _names(pair) and pair["pair_id"] in labels]
    ids = {pair["pair_id"] for pair in pairs}
    verdicts = [verdict for verdict in run.records("verdicts") if verdict["pair_id"] in ids]
    return [
        {
            "pair": pair,
            "verdicts": [verdict for verdict in verdicts if verdict["pair_id"] == pair["pair_id"]],
            "label": labels[pair["pair_id"]],
        }
        for pair in pairs
    ]


def _names(pair: Json) -> set[str]:
    """The ids by which a pair is found: its own, its prompt's, and those of the rows that its answers come from."""
    return {pair["pair_id"], pair["prompt_id"], pair["row_id"], *(row_of(pair, pair[f"{side}_from"]) for side in "ab")}


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
            click.echo(visible("\n".join(problems) if problems else f"{path}: fine"))
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


@constitution.command(name="test")
@with_settings(ConstitutionTestSettings)
def test_constitution(as_json: bool, **options: Any) -> None:
    """Does the judge apply each principle as its authors meant? Judge the examples in CONSTITUTION, each by its own.

    \b
    Example:
      cai constitution test harmlessness --endpoint http://127.0.0.1:8000/v1 --min-accuracy 0.8
    """
    settings = chosen(ConstitutionTestSettings, options)
    print_calibration_of(
        run_until_stopped(constitution_stage(settings, Progress()), settings.out or "data/runs"), settings, as_json
    )


@constitution.command()
def schema() -> None:
    """Print the JSON Schema of the format, for editors.

    \b
    Example:
      cai constitution schema > schema.json
    """
    _json(json_schema())


def print_result(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        session = outcome.session
        calls = {"asked_calls": session.asked_calls, "reused_calls": session.reused_calls}
        _json({"entry": outcome.entry, **calls})
    else:
        print_outcome(outcome)


def print_exported(dataset: Dataset, as_json: bool) -> None:
    _json(dataset.manifest) if as_json else print_dataset(dataset)


def print_finished(finished: Finished, as_json: bool) -> None:
    if as_json:
        stages = {"revise": finished.revised.entry, "label": finished.labelled.entry}
        _json({**stages, "export": finished.dataset.manifest})
        return
    print_outcome(finished.revised)
    print_outcome(finished.labelled)
    print_dataset(finished.dataset)


def print_calibration_of(measured: Calibration, settings: GoldSettings, as_json: bool) -> None:
    """Print a judge's figures. Raises CheckFailed, after that, if it is under the bar of the settings."""
    folder = measured.outcome.folder
    _json({"folder": folder, **measured.figures}) if as_json else print_calibration(measured.figures, folder)
    check_judge(measured.figures, settings)


def _json(value: object) -> None:
    click.echo(visible_json(json.dumps(value, indent=2, ensure_ascii=False)))


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows only ASCII gets a question mark, not an end
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if logging.lastResort is not None:  # warnings, which may hold what a server says
        logging.lastResort.setFormatter(_Visible())
    run_cli(cai, sys.argv[1:])


class _Visible(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def run_cli(command: click.Command, arguments: list[str]) -> None:
    """Run a command: one sentence and an exit code for every end that a person can act on."""
    try:
        command(arguments, standalone_mode=False)
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        click.echo(visible(said.getvalue()), err=True, nl=False)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped. What is finished is kept; the same command goes on from there.", err=True)
        sys.exit(130)
    except CaiError as error:
        _fail(str(error), error.exit_code, "--debug" in arguments)
    except OSError as error:
        _fail(str(_unnamed(error)), 2, "--debug" in arguments)


def _unnamed(error: OSError) -> CaiError:
    """What to say of an error that nobody has named: where a file is written, that is done at once."""
    if error.filename is None:
        return CannotWrite("standard output", error)
    found = f"a file that cannot be read ({error.strerror or error})"
    return BadInput(str(error.filename), found, "a readable file", "Check its permissions.")


def _fail(sentence: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    with suppress(OSError):  # what standard error goes to may be on the full disk; the exit code is not
        click.echo(f"{click.style('cai:', fg='red', bold=True)} {visible(sentence)}", err=True)
    sys.exit(code)
