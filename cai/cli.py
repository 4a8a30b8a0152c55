"""The command line. Thin: options are the fields of the settings models, the work is in `stages.py`."""

import io
import logging
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NoReturn

import click

from cai import __version__
from cai.cli_constitution import constitution
from cai.cli_report import report
from cai.cli_show import show
from cai.cli_verify import sign, verify
from cai.errors import BadInput, CaiError, CannotWrite
from cai.options import chosen, with_settings
from cai.pipeline import Finished, pipeline
from cai.progress import Progress
from cai.screen import print_dataset, print_outcome
from cai.screen_judge import print_calibration_of
from cai.seal import Json
from cai.settings import (
    CalibrateSettings,
    ExportSettings,
    GenerateSettings,
    LabelSettings,
    PipelineSettings,
    ReviseSettings,
)
from cai.stage_run import Outcome
from cai.stages import Dataset, calibrate_stage, export_stage, generate_stage, label_stage, revise_stage
from cai.stop import run_until_stopped
from cai.texts import visible, visible_json

GROUPS = {
    "Make data": ["run", "generate", "revise", "label", "export"],
    "Look at it": ["report", "show", "calibrate"],
    "For auditors": ["constitution", "verify", "sign"],
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
      cai export data/runs/nightly --out data/sets/nightly --versions
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


for command in (report, show, verify, sign, constitution):
    cai.add_command(command)


def print_result(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        session = outcome.session
        calls = {"asked_calls": session.asked_calls, "reused_calls": session.reused_calls}
        _json({"entry": outcome.entry, **calls, "session": _session(outcome), "alarms": _alarms(outcome)})
    else:
        print_outcome(outcome)


def _session(outcome: Outcome) -> Json:
    """What this time took; the entry's cost is that of all sessions."""
    return {**asdict(outcome.session), "seconds": round(outcome.seconds, 1)}


def _alarms(outcome: Outcome) -> list[Json]:
    return [asdict(alarm) for alarm in outcome.alarms]


def print_exported(dataset: Dataset, as_json: bool) -> None:
    _json(dataset.manifest) if as_json else print_dataset(dataset)


def print_finished(finished: Finished, as_json: bool) -> None:
    if as_json:
        stages = {"revise": finished.revised.entry, "label": finished.labelled.entry}
        alarms = [*_alarms(finished.revised), *_alarms(finished.labelled)]
        session = {"revise": _session(finished.revised), "label": _session(finished.labelled)}
        _json({**stages, "export": finished.dataset.manifest, "session": session, "alarms": alarms})
        return
    print_outcome(finished.revised)
    print_outcome(finished.labelled)
    print_dataset(finished.dataset)


def _json(value: object) -> None:
    click.echo(visible_json(value))


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
