"""YAML that is small and unfolds to something large, or nests without end: an error, at once, wherever it is read."""

import time
from pathlib import Path

import pytest

from cai.constitution import check_constitution, load_constitution
from cai.engines import Spec, open_engine
from cai.errors import BadInput
from cai.plain_yaml import LONGEST, read_yaml
from cai.settings import ReviseSettings
from cai.settings_load import load_settings
from cai.templates import load_templates
from tests.test_constitution import GOOD


def laughs(lines: int, kind: str) -> str:
    """A text that doubles with each line."""
    first = {"list": "a0: &a0 [x, x]", "merge": "a0: &a0 {k: v}", "text": f"a0: &a0 {'x' * 1000}"}[kind]
    double = {"list": "[*{0}, *{0}]", "merge": "{{<<: [*{0}, *{0}]}}", "text": "[*{0}, *{0}]"}[kind]
    return "\n".join([first, *(f"a{n}: &a{n} {double.format(f'a{n - 1}')}" for n in range(1, lines))])


BOMBS = {
    "a list that doubles": laughs(60, "list"),
    "keys that double": laughs(60, "merge"),
    "a text that doubles": laughs(60, "text"),
    "lists in lists": "statement: " + "[" * 20_000,
    "lists in lists by indents": "- " * 50_000 + "x",
    "objects in objects": "a: " + "{a: " * 50_000,
    "an anchor that holds itself": "a: &a [*a]",
    "a number to the base 60": "weight: " + ":".join(["59"] * 20_000),
    "a hexadecimal number": "weight: 0x" + "f" * 100_000,
    "a decimal number": "weight: " + "9" * 100_000,
    "a large file": "description: " + "x" * (LONGEST + 1),
}


SAID = {
    "a list that doubles": "aliases that unfold to",
    "keys that double": "aliases that unfold to",
    "a text that doubles": "aliases that unfold to",
    "an anchor that holds itself": "an anchor that holds itself",
    "a large file": "more than 1048576",
    **{bomb: "more than 50 lists or objects within each other" for bomb in BOMBS if " in " in bomb},
    **{bomb: "a number of " for bomb in BOMBS if "number" in bomb},
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_bad_input_at_once_wherever_yaml_is_read(tmp_path: Path, bomb: str):
    text, begun = BOMBS[bomb], time.monotonic()
    path = tmp_path / "mine.yaml"
    for whole in (text, f"{GOOD}{text}", GOOD.replace("Make it kind.", f"\n      {text.splitlines()[-1]}")):
        path.write_text(whole)
        assert check_constitution(path)
        with pytest.raises(BadInput, match=r"^\S+mine\.yaml"):
            load_constitution(str(path))
    path.write_text(text)
    assert SAID[bomb] in str(check_constitution(path)[0])
    with pytest.raises(BadInput, match=r"^\S+mine\.yaml"):
        load_settings(ReviseSettings, str(path), {"prompts": "p", "out": "o"})
    with pytest.raises(BadInput, match=r"^--model \S+mine\.yaml: found no script"):
        open_engine(Spec("scripted", str(path)))
    (tmp_path / "gate.examples.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"gate\.examples\.yaml"):
        load_templates(str(tmp_path), few_shot=True)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("value", ["!!bool maybe", "!!int ''", "!!int '_'", "!!float ''", "!!timestamp foo"])
def test_a_value_that_is_none_of_the_kind_its_tag_names_is_bad_input(tmp_path: Path, value: str):
    path = tmp_path / "mine.yaml"
    path.write_text(f"limit: {value}\n")
    with pytest.raises(BadInput, match="not of the kind that its tag"):
        load_settings(ReviseSettings, str(path), {"prompts": "p", "out": "o"})
    path.write_text(GOOD.replace("Make it kind.", value))
    assert check_constitution(path)


def test_what_is_written_once_and_used_often_is_read():
    data, _ = read_yaml("a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, y: 2}\n")
    assert data == {"a": {"x": 1}, "b": [{"x": 1}] * 2, "c": {"x": 1, "y": 2}}


def test_a_value_of_thousands_of_digits_is_named_without_being_written_out(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("rounds: 0x" + "f" * 90 + "\n")
    with pytest.raises(BadInput, match=r"mine\.yaml:1: found \d+ for 'rounds', expected"):
        load_settings(ReviseSettings, str(path), {"prompts": "p", "out": "o"})
    with pytest.raises(BadInput, match=r"--rounds: found a number of thousands of digits, expected"):
        load_settings(ReviseSettings, None, {"prompts": "p", "out": "o", "rounds": 10**5000})
