import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cai import constitution as constitution_module
from cai.constitution import check_constitution, json_schema, load_constitution
from cai.errors import BadInput

GOOD = """\
name: mine
version: "1"
description: A test.
principles:
  - id: kind
    statement: The answer is kind.
    rationale: Kindness matters.
    critique: Say where it is unkind.
    revision: Make it kind.
    comparison: Which is kinder?
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_constitution_loads_and_its_digest_is_that_of_the_file():
    loaded = load_constitution("harmlessness")
    assert loaded.sha == hashlib.sha256(loaded.path.read_bytes()).hexdigest()
    assert len(loaded.principles) >= 8
    assert all(principle.examples and principle.references for principle in loaded.principles)


@pytest.mark.parametrize("change", [lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text])
def test_a_copy_of_its_text_has_its_digest_whatever_the_line_ends(tmp_path: Path, change: Callable[[str], str]):
    path = tmp_path / "mine.yaml"
    path.write_bytes(change(GOOD).encode())
    loaded = load_constitution(str(path))
    assert loaded.sha == hashlib.sha256(loaded.text.encode()).hexdigest() and loaded.principles[0].id == "kind"


def test_the_digest_is_of_the_text_that_was_read_though_somebody_saves_another_one_just_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, real = written(tmp_path, GOOD), constitution_module._check

    def saved_then(path: Path) -> Any:
        found = real(path)
        path.write_text(GOOD.replace("kind.", "mild."))
        return found

    monkeypatch.setattr(constitution_module, "_check", saved_then)
    loaded = load_constitution(str(path))
    assert loaded.text == GOOD and loaded.sha == hashlib.sha256(GOOD.encode()).hexdigest()


def test_an_example_has_two_different_answers(tmp_path: Path):
    path = written(tmp_path, GOOD + "    examples:\n      - {prompt: Hi, better: Yes., worse: Yes.}\n")
    (problem,) = check_constitution(path)
    assert str(problem).startswith(f"{path}:12: ") and "expected two different answers, better and worse" in str(
        problem
    )


def test_defaults_are_filled_in(tmp_path: Path):
    principle = load_constitution(str(written(tmp_path, GOOD))).principles[0]
    assert (principle.weight, principle.tags, principle.examples) == (1.0, (), ())


MISTAKES = {
    "an unknown key": (GOOD + "    ratoinale: x\n", 11, "Did you mean 'rationale'?"),
    "an unknown key at the top": ("nmae: x\n" + GOOD, 1, "Did you mean 'name'?"),
    "a duplicate id": (GOOD + GOOD[GOOD.index("  - id") :], 11, "first on line 5"),
    "an empty wording": (GOOD.replace("Make it kind.", '""'), 9, "an empty 'revision' of principle 1 ('kind')"),
    "a missing wording": (
        GOOD.replace("    comparison: Which is kinder?\n", ""),
        5,
        "no 'comparison' of principle 1 ('kind')",
    ),
    "a wrong type": (
        GOOD.replace("Make it kind.", "[1, 2]"),
        9,
        "a list for 'revision' of principle 1 ('kind'), expected text.",
    ),
    "a number for text": (GOOD.replace('"1"', "1"), 2, "1 for 'version', expected text in quotes"),
    "a weight of nothing": (GOOD + "    weight: 0\n", 11, "expected a number above 0"),
    "an id with spaces": (GOOD.replace("id: kind", "id: Be kind"), 5, "Write 'be-kind'."),
    "a key that stands twice": (GOOD + "    statement: Again.\n", 11, "a second time"),
    "no principles": (
        GOOD[: GOOD.index("  - id")].replace("principles:", "principles: []"),
        4,
        "expected at least one principle",
    ),
    "text that is not YAML": (GOOD + "  : : [", 11, "set in too far"),
    "an empty file": ("", 1, "an empty file, expected name, version, description and principles"),
    "half a character": (GOOD.replace("Make it kind.", '"\\ud800"'), 9, "expected text of whole characters"),
    "a list for a file": ("- one\n- two\n", 1, "a list for the file, expected name, version, description and prin"),
    "a colon without a space": ("name:mine\n", 1, "Write each as 'key: text', with a space."),
    "text for a principle": (
        GOOD[: GOOD.index("  - id")] + "  - kind\n",
        5,
        "'kind' for principle 1, expected keys of",
    ),
    "a tab": (GOOD.replace("    critique", "\tcritique"), 8, "a tab, expected spaces"),
    "a colon within a text": (GOOD.replace("The answer", "Rule: the answer"), 6, "a colon where none can stand"),
    "a line set in wrong": (GOOD.replace("    critique", "   critique"), 8, "set in too far, or not far enough"),
    "an open quote": (GOOD.replace("The answer", '"The answer'), 6, "a quote that is never closed"),
    "words behind a quote": (GOOD.replace("The answer is", "'The answer' is"), 6, "words behind a closing quote"),
    "an open list": (GOOD + "    tags: [a, b\n", 11, "a list after a '[' that does not end"),
    "stars around a word": (GOOD.replace("The answer", "**The** answer"), 6, "begins with '*' or '&'"),
    "a star before a word": (GOOD.replace("The answer", "*The answer"), 6, "a text that begins with '*'"),
    "an at before a word": (GOOD.replace("The answer", "@all"), 6, "a text that begins with '@'"),
    "an exclamation mark": (GOOD.replace("The answer", "!The answer"), 6, "a text that begins with '!'"),
    "text behind a sign": (GOOD.replace("The answer", "> The answer"), 6, "words behind a '>' or '|'"),
    "a backslash": (GOOD.replace("The answer is kind.", '"a\\q"'), 6, "a backslash with 'q' behind it"),
    "a second document": (GOOD + "---\n" + GOOD, 11, "a second '---'"),
    "a control character": (GOOD.replace("answer is", "answer\x07 is"), 6, "a character that no text has (\\x07)"),
    "something rare": (GOOD + "? [a]\n: b\n", 11, "text that YAML cannot read"),
    "a yes for text": (GOOD.replace('"1"', "yes"), 2, "the answer true for 'version', expected text in quotes"),
    "a date for text": (GOOD.replace('"1"', "2026-01-02"), 2, "2026-01-02 for 'version', expected text in quotes"),
    "keys for text": (GOOD.replace("The answer is", "\n      the answer: is"), 6, "stands in double quotes"),
    "nothing for an id": (GOOD.replace("id: kind", "id:"), 5, "an empty 'id' of principle 1,"),
    "a long id": (GOOD.replace("id: kind", "id: " + 70 * "k"), 5, "64 characters at most"),
    "text for a list": (GOOD + "    tags: kind\n", 11, "'kind' for 'tags' of principle 1 ('kind'), expected a list."),
    "text for a number": (GOOD + "    weight: '2'\n", 11, "Write a number such as 1 or 0.5, without quotes."),
    "text for a truth": (GOOD + "    refusal_is_fine: 'no'\n", 11, "Write true or false, without quotes."),
    "another word than known": (GOOD + "    filled_in: [examples]\n", 11, "expected statement, rationale, critique,"),
    "a number for a key": (GOOD + "1: x\n", 11, "the key 1, which is no word"),
    "a digest cut short": (
        GOOD + "source: {name: x, form: y, sha256: abc}\n",
        11,
        "the 64 digits that cai constitution",
    ),
    "nothing to be seen": (GOOD.replace("The answer is kind.", '"\\u200b\\u3164"'), 6, "only \\u200b, \\u3164"),
    "a merged key": (GOOD.replace("  - id", "  - &one\n    id") + "  - <<: *one\n", 12, "'kind' again"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_file_and_line(tmp_path: Path, mistake: str):
    text, line, words = MISTAKES[mistake]
    path = written(tmp_path, text)
    with pytest.raises(BadInput) as caught:
        load_constitution(str(path))
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert words in str(caught.value)


def test_all_mistakes_of_a_file_are_found_in_the_order_of_its_lines(tmp_path: Path):
    path = written(tmp_path, GOOD.replace("name: mine", "nmae: mine").replace("Make it kind.", '""'))
    places = [problem.place for problem in check_constitution(path)]
    assert places == [f"{path}:1", f"{path}:1", f"{path}:9"]


def test_yaml_is_loaded_safely(tmp_path: Path):
    target = tmp_path / "made"
    path = written(tmp_path, f"name: !!python/object/apply:os.mkdir ['{target}']\n")
    assert check_constitution(path)
    assert not target.exists()


def test_a_file_of_the_user_comes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "constitutions").mkdir()
    (tmp_path / "constitutions" / "harmlessness.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert load_constitution("harmlessness").name == "mine"


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(BadInput, match=r"Known names: .*harmlessness"):
        load_constitution("harmlesness")


def test_the_published_schema_is_the_one_in_use_and_fits_the_shipped_constitutions():
    folder = Path(__file__).parent.parent / "constitutions"
    schema = json.loads((folder / "schema.json").read_text())
    assert schema == json_schema(), "run: cai constitution schema > constitutions/schema.json"
    for path in folder.glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(GOOD) | {"nmae": "x"}, schema)


@pytest.mark.parametrize("text", ["name: 2024-99-99\n", "name: &a\n  x: *a\n"])
def test_yaml_that_cannot_be_built_is_bad_input(tmp_path: Path, text: str):
    with pytest.raises(BadInput):
        load_constitution(str(written(tmp_path, text)))


@pytest.mark.parametrize("name", ["harmlessness", "helpfulness"])
def test_a_judge_that_only_likes_long_answers_does_no_better_than_chance_on_a_shipped_constitution(name: str):
    examples = [example for principle in load_constitution(name).principles for example in principle.examples]
    longer_worse = sum(len(example.worse) > len(example.better) for example in examples)
    assert 0.4 <= longer_worse / len(examples) <= 0.6, (
        f"{longer_worse} of {len(examples)} have the longer text as worse"
    )


def test_no_mistake_is_told_in_the_words_of_a_parser(tmp_path: Path):
    words = r"mapping|scalar|token|dictionary|instance|tuple|pattern|validation|stream|Input should|valid string"
    for text, _, _ in MISTAKES.values():
        for problem in check_constitution(written(tmp_path, text)):
            assert not re.search(words, str(problem).partition(": ")[2]), problem


def test_bytes_that_are_no_text_are_named_with_their_line_and_a_folder_is_called_one(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(GOOD.replace("The answer", "The ändwer").encode("latin-1"))
    (problem,) = check_constitution(path)
    assert str(problem).startswith(f"{path}:6: found a byte that is no letter in UTF-8") and "Save as" in str(problem)
    (problem,) = check_constitution(tmp_path)
    assert "found a folder" in str(problem)
