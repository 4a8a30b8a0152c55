"""The documents say what the code does: every command, option, column, flag and reason appears, and nothing else."""

import re
from dataclasses import fields
from pathlib import Path

import click
import pytest
import yaml

from cai.checks import CHECKS, CHOICE_UNREAD, GATE_FROM_TEXT, GATE_UNREAD, PLAIN_REFUSAL, critique_flags
from cai.cli import cai
from cai.errors import BadInput
from cai.label import REASONS
from cai.rows import FailedTry, Round
from cai.schemas import SCHEMAS
from cai.settings import (
    CalibrateSettings,
    ConstitutionTestSettings,
    ExportSettings,
    GenerateSettings,
    LabelSettings,
    PipelineSettings,
    ReviseSettings,
    Settings,
)
from cai.settings_load import load_settings
from cai.templates import VARIABLES
from flows.automations import automations
from flows.deploy import deploy
from flows.serve import serve

ROOT = Path(__file__).parent.parent
PATHS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("constitutions/*.md"), *ROOT.glob("data/prompts/*.md")]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PATHS}
EVERYTHING = "\n".join(TEXTS.values())


def commands(group: click.Group, prefix: str = "cai") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found |= (
            commands(command, f"{prefix} {name}") if isinstance(command, click.Group) else {f"{prefix} {name}": command}
        )
    return found


COMMANDS = commands(cai)
KINDS: dict[str, type[Settings]] = {
    "cai run": PipelineSettings,
    "cai generate": GenerateSettings,
    "cai revise": ReviseSettings,
    "cai label": LabelSettings,
    "cai export": ExportSettings,
    "cai calibrate": CalibrateSettings,
    "cai constitution test": ConstitutionTestSettings,
}
OPERATING = {"flows.serve": serve, "flows.deploy": deploy, "flows.automations": automations}


@pytest.mark.parametrize("name", OPERATING)
def test_a_command_of_an_operator_is_in_the_documents_and_its_help_has_an_example(name: str):
    assert f"python -m {name}" in EVERYTHING and f"python -m {name}" in (OPERATING[name].help or "")
    assert all(parameter.help for parameter in OPERATING[name].params if isinstance(parameter, click.Option))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_in_the_readme_and_its_help_has_an_example(name: str):
    assert f"`{name}`" in TEXTS["README.md"] or f"{name} " in TEXTS["README.md"]
    assert f"Example:\n      {name}" in (COMMANDS[name].help or ""), "an example in --help"
    assert all(parameter.help for parameter in COMMANDS[name].params if isinstance(parameter, click.Option))


def test_every_option_that_the_documents_name_exists():
    known = {
        flag
        for command in [cai, *COMMANDS.values(), *OPERATING.values()]
        for parameter in command.params
        for flag in [*parameter.opts, *parameter.secondary_opts]
    }
    foreign = {"--watch", "--type", "--overwrite", "--no-prompt", "--pool", "--all", "--param"}
    foreign |= {"--data", "--eval", "--enable-prompt-tokens-details", "--help", "--red", "--benign"}
    foreign |= {"--rows", "--kills", "--changes", "--seed", "--form", "--name", "--active-slots", "--now"}
    foreign |= {"--head", "--port", "--address"}  # of ray start
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", EVERYTHING))
    assert named - known - foreign == set()


def test_every_setting_is_an_option_of_its_command():
    for name, kind in KINDS.items():
        assert set(kind.model_fields) <= {parameter.name for parameter in COMMANDS[name].params}


def test_every_column_field_flag_and_template_is_documented():
    text = TEXTS["docs/tables.md"]
    names = {name for schema in SCHEMAS.values() for name in schema.names} | {field.name for field in fields(Round)}
    names |= {field.name for field in fields(FailedTry)}
    names |= {*REASONS, *CHECKS, CHOICE_UNREAD, GATE_FROM_TEXT, GATE_UNREAD, PLAIN_REFUSAL}
    names |= set(critique_flags("a b c d e f", " ", "length"))
    names |= set(critique_flags("a b c d e f", "a b c d e f: nothing to criticise.", "stop"))
    assert {name for name in names if f"`{name}`" not in text} == set()
    assert {name for name in VARIABLES if f"`{name}.jinja`" not in TEXTS["docs/running.md"]} == set()


def test_every_drop_reason_is_documented():
    reasons = set(
        re.findall(
            r'(?:bad|BadRecord|RowDropped)\(\s*"([a-z_]+)"', "\n".join(p.read_text() for p in ROOT.glob("cai/*.py"))
        )
    )
    assert len(reasons) >= 12
    assert {reason for reason in reasons if f"`{reason}`" not in TEXTS["docs/tables.md"]} == set()


@pytest.mark.parametrize("path", sorted(ROOT.glob("flows/recipes/*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_named_in_the_documents(path: Path):
    load_settings(PipelineSettings, path.stem, {"prompts": "redteam", "out": "x"})
    load_settings(ReviseSettings, path.stem, {"prompts": "redteam", "out": "x"})
    assert path.stem in EVERYTHING or path.stem == "demo"


def test_the_published_protocol_is_what_the_paper_did():
    settings = load_settings(ReviseSettings, "bai-2022", {"prompts": "redteam", "out": "x"})
    method = settings.method()
    assert (method.rounds, method.gate_threshold, method.principles) == (4, None, "one")
    assert {method.response.temperature, method.critique.temperature, method.revision.temperature} == {1.0}
    assert (settings.few_shot, settings.failed_revision) == ("on", "keep")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("rounds: 2\nruonds: 3\n", 2, "Did you mean 'rounds'?"),
        ("seed: 1\nrounds: 9\n", 2, "less than or equal to 8"),
        ("rounds: two\n", 1, "'two' for 'rounds'"),
        ("gate: perhaps\n", 1, "'on' or 'off'"),
        ("rounds: yes\n", 1, "valid integer"),
        ("rounds: 2\nseed: 1\nrounds: 3\n", 3, "a second time"),
    ],
)
def test_a_mistake_in_a_settings_file_is_named_with_its_line(tmp_path: Path, text: str, line: int, words: str):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(BadInput) as caught:
        load_settings(ReviseSettings, str(tmp_path / "mine.yaml"), {"prompts": "p", "out": "o"})
    assert f"mine.yaml:{line}: " in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"out": "o"}, "PROMPTS: found nothing"),
        ({"prompts": "p"}, "--out: found nothing"),
        ({"prompts": "p", "out": "o", "rounds": 9}, "--rounds: found 9"),
        ({"prompts": "p", "out": "o", "gate_threshold": float("nan")}, "--gate-threshold"),
    ],
)
def test_a_mistake_on_the_command_line_names_the_option(given: dict[str, object], words: str):
    with pytest.raises(BadInput, match=words):
        load_settings(ReviseSettings, None, given)


def test_options_come_before_the_file_and_yaml_words_for_switches_are_understood(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("prompts: p\nout: o\nrounds: 3\nseed: 4\ngate: off\nfew_shot: yes\n")
    settings = load_settings(ReviseSettings, str(tmp_path / "mine.yaml"), {"rounds": 1})
    assert (settings.rounds, settings.seed, settings.gate, settings.few_shot) == (1, 4, "off", "on")
    (tmp_path / "mine.yaml").write_text("prompts: p\nout: o\nendpoint: http://x\nreuse: [a, b]\n")
    settings = load_settings(ReviseSettings, str(tmp_path / "mine.yaml"), {})
    assert (settings.endpoint, settings.reuse) == (("http://x",), ("a", "b"))


def test_a_file_of_the_whole_pipeline_serves_each_stage(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(
        "prompts: p\nout: o\nmodel: small\njudge: big\njudge_mode: logprob\nrounds: 3\ntest_share: 0.2\ngold: g\n"
    )
    file = str(tmp_path / "mine.yaml")
    revise, label = load_settings(ReviseSettings, file, {"seed": 5}), load_settings(LabelSettings, file, {})
    assert (revise.prompts, revise.out, revise.model, revise.rounds, revise.seed) == ("p", "o", "small", 3, 5)
    assert (label.run, label.model, label.judge_mode) == ("o", "big", "logprob")
    calibrate, export = load_settings(CalibrateSettings, file, {}), load_settings(ExportSettings, file, {})
    assert (calibrate.gold, calibrate.model, calibrate.out) == ("g", "big", None)
    assert (export.run, export.out, export.test_share) == ("o", "o-dataset", 0.2)
    (tmp_path / "part.yaml").write_text("rounds: 3\njudge: big\n")
    assert load_settings(LabelSettings, str(tmp_path / "part.yaml"), {"run": "r"}).model == "big"
    with pytest.raises(BadInput, match="RUN: found nothing"):
        load_settings(LabelSettings, str(tmp_path / "part.yaml"), {})
    (tmp_path / "wrong.yaml").write_text("rounds: 3\ntie_band: 7\n")
    with pytest.raises(BadInput, match=r"wrong.yaml:2: found 7 for 'tie_band'"):
        load_settings(ReviseSettings, str(tmp_path / "wrong.yaml"), {"prompts": "p", "out": "o"})


def test_a_bar_for_the_judge_needs_gold():
    with pytest.raises(BadInput, match="without gold"):
        load_settings(PipelineSettings, None, {"prompts": "p", "out": "o", "min_accuracy": 0.7})


def test_the_nightly_deployment_uses_parameters_that_exist():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    kinds = {name.removeprefix("cai "): KINDS[name] for name in list(KINDS)[1:5]} | {"pipeline": PipelineSettings}
    assert {deployment["name"] for deployment in deployments} == set(kinds)
    for deployment in deployments:
        kinds[deployment["name"]].model_validate(deployment["parameters"])
        assert all(schedule["active"] is False for schedule in deployment["schedules"])
        assert "limit" not in deployment["parameters"], "it would cut whatever prompts a person gives, too"
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
