"""`cai constitution`: read, check, compare and import constitutions, and test whether a judge applies them."""

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

import click
from rich.console import Console

from cai.constitution import Constitution, find_constitution, json_schema
from cai.constitution_diff import as_json as difference_as_json
from cai.constitution_diff import constitution_of
from cai.constitution_diff import diff as difference_of
from cai.constitution_import import import_constitution
from cai.constitution_lint import RULES, Finding
from cai.constitution_lint import lint as lint_file
from cai.constitution_pages import as_html, as_markdown
from cai.errors import BadInput, CheckFailed
from cai.files import write_atomically
from cai.options import chosen, with_settings
from cai.progress import Progress
from cai.published import Form
from cai.screen_constitution import (
    print_constitution,
    print_difference,
    print_findings,
    print_imported,
    print_reasons,
)
from cai.screen_judge import print_calibration_of
from cai.seal import Json
from cai.settings import ConstitutionTestSettings
from cai.stages import constitution_stage
from cai.stop import run_until_stopped
from cai.store import open_run
from cai.texts import visible_json
from cai.verify import is_run
from cai.written_place import check_file_place


@click.group(short_help="Read, check, compare and import constitutions.")
def constitution() -> None:
    """Read, check, compare and import constitutions.

    \b
    Example:
      cai constitution lint mine.yaml
      cai constitution diff harmlessness mine.yaml
    """


@constitution.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--strict", is_flag=True, help="Exit 1 for remarks too.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def lint(files: tuple[str, ...], strict: bool, as_json: bool) -> None:
    """Check constitution FILES (paths or names); exit 1 if something is wrong with one.

    An error is something that cai cannot work with. A remark is a question to the authors: wording that nobody can
    apply, principles that say the same or the opposite, missing examples. A note says what was not judged, since the
    rules know English only. constitutions/README.md explains each rule.

    \b
    Example:
      cai constitution lint constitutions/harmlessness.yaml
      cai constitution lint mine.yaml --strict
    """
    paths = [find_constitution(name) for name in files]
    findings = {path: lint_file(path, paths) for path in paths}
    every = [one for found in findings.values() for one in found]
    if as_json:
        _json({str(path): [_finding(path, one) for one in found] for path, found in findings.items()})
    else:
        for path, found in findings.items():
            print_findings(path, found)
        print_reasons(every)
    counted = {"error", "remark"} if strict else {"error"}
    wrong = {str(path) for path, found in findings.items() for one in found if one.severity in counted}
    if wrong:
        errors, remarked = (sum(one.severity == kind for one in every) for kind in ("error", "remark"))
        remarks = f" and {remarked} remark(s)" if strict else ""
        raise CheckFailed(f"{errors} error(s){remarks} in {len(wrong)} file(s)")


def _finding(path: Path, one: Finding) -> Json:
    return {"severity": one.severity, "place": f"{path}:{one.line}", **asdict(one), "why": RULES[one.rule][1]}


@constitution.command()
@click.argument("name", default="harmlessness")
@click.option(
    "--format", "form", type=click.Choice(["terminal", "markdown", "html"]), default="terminal",
    help="terminal, Markdown, or one HTML file.  [default: terminal]",
)  # fmt: skip
@click.option("--out", help="Write it into this file instead.")
@click.option("--force", is_flag=True, help="Overwrite --out if it is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the constitution as JSON.")
def show(name: str, form: str, out: str | None, force: bool, as_json: bool) -> None:
    """Print a constitution to be read: a path, a known NAME, or a run's folder for the one that the run keeps.

    \b
    Example:
      cai constitution show harmlessness
      cai constitution show data/runs/first --format html --out constitution.html
    """
    loaded = constitution_of(name)
    text = _as_text(loaded, "json" if as_json else form)
    if out is not None:
        _write(out, text or _plain(loaded), force)
    elif text is None:
        print_constitution(loaded)
    else:
        click.echo(text, nl=False)


def _as_text(loaded: Constitution, form: str) -> str | None:
    """The text in this form; None for the terminal, which has a width and colours of its own."""
    if form == "json":
        principles = [principle.model_dump(mode="json") for principle in loaded.principles]
        told: Json = {"name": loaded.name, "version": loaded.version, "sha": loaded.sha, "principles": principles}
        told |= {"description": loaded.description, "question": loaded.question}
        source = loaded.source and loaded.source.model_dump(mode="json")
        return visible_json(told | {"source": source}) + "\n"
    makers = {"markdown": as_markdown, "html": as_html}
    return makers[form](loaded) if form in makers else None


def _plain(loaded: Constitution) -> str:
    page = io.StringIO()
    print_constitution(loaded, Console(file=page, width=100, highlight=False))
    return page.getvalue()


@constitution.command()
@click.argument("a")
@click.argument("b")
@click.option("--run", help="Also say which calls of this run each change would ask anew.  [default: A or B, if a run]")
@click.option("--no-run", is_flag=True, help="Compare the texts alone, also where A or B is a run.")
@click.option("--json", "as_json", is_flag=True, help="Print the difference as JSON.")
def diff(a: str, b: str, run: str | None, no_run: bool, as_json: bool) -> None:
    """What changed from constitution A to B, by principle: added, removed, renamed, reworded, reweighted.

    A and B are paths, known names, or folders of runs, for the constitution that a run keeps. For a run,
    every prompt is made again with each change, which asks no model: about a minute for 1,000 rows and ten changes, and
    --no-run leaves it out. Calls are asked anew "for certain" where no other answer is needed to know that. More may
    follow, since the later calls of a row stand on the answers to the earlier ones.

    \b
    Example:
      cai constitution diff harmlessness mine.yaml
      cai constitution diff data/runs/first mine.yaml
    """
    before, after = constitution_of(a), constitution_of(b)
    run = None if no_run else run or next((one for one in (a, b) if is_run(Path(one))), None)
    found = difference_of(before, after, None if run is None else open_run(run))
    _json(difference_as_json(found, before, after)) if as_json else print_difference(found, before, after, run)


@constitution.command(name="import")
@click.argument("file")
@click.option("--out", required=True, help="The constitution to write, a .yaml file.")
@click.option(
    "--form", type=click.Choice(get_args(Form)), default=None, help="The form of FILE; found out by itself if left out."
)
@click.option("--source", help="Where FILE was published, to be kept instead of its path.")
@click.option("--force", is_flag=True, help="Overwrite --out if it is there.")
@click.option("--json", "as_json", is_flag=True, help="Print what was imported as JSON.")
def import_file(file: str, out: str, form: str | None, source: str | None, force: bool, as_json: bool) -> None:
    """Make a constitution of FILE, which somebody else has published in a form of their own.

    \b
    bai-2022   the critique and revision requests of the Constitutional AI paper (JSON)
    llm-swarm  the constitution of the llm-swarm example (JSON)
    icai       what inverse constitutional AI writes: 060_constitution.json and others
    list       one statement a line, a JSON list of them, or the comments of a Pol.is conversation (CSV)

    What the source says is taken word for word. What it does not have is made up and named under filled_in, so that
    cai constitution lint lists it. FILE is a file here; nothing is fetched.

    \b
    Example:
      cai constitution import CritiqueRevisionInstructions.json --out bai.yaml
      cai constitution import statements.txt --source https://example.org/statements --out public.yaml
    """
    if Path(out).suffix not in (".yaml", ".yml"):
        raise BadInput(f"--out {out}", "another kind of file", "a name that ends with .yaml", "Name it so.")
    _check_free(out, force)
    imported = import_constitution(Path(file), cast("Form | None", form), source, Path(out))
    _write(out, imported.text, force)
    if as_json:
        _json({"out": out, **{name: value for name, value in asdict(imported).items() if name != "text"}})
    else:
        print_imported(imported, out)


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


def _check_free(out: str, force: bool) -> None:
    check_file_place("--out", out)
    if Path(out).exists() and not force:
        raise BadInput(f"--out {out}", "a file that is there", "a new one", "Choose another --out, or give --force.")


def _write(out: str, text: str, force: bool) -> None:
    _check_free(out, force)
    write_atomically(Path(out), text.encode("utf-8"))


def _json(value: object) -> None:
    click.echo(visible_json(value))
