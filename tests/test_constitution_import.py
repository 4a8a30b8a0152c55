import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cai.cli_constitution import constitution as group
from cai.constitution import Constitution, load_constitution
from cai.constitution_import import import_constitution
from cai.constitution_lint import lint
from cai.errors import BadInput

ASK, FIX = "Say which words of the last response are rude.", "Please rewrite the response so that it is civil."
BAI: dict[str, Any] = {
    "rude0": {
        "prompt": [f"\n\nCritiqueRequest: {ASK}\n\nCritique:"],
        "edit_request": f"\n\nRevisionRequest: {FIX}\n\nRevision:",
    },
    "Rude 1": {
        "prompt": ["CritiqueRequest: One.", "CritiqueRequest: Two."],
        "edit_request": "RevisionRequest: Mend it.",
    },
}
SWARM = {"constitutions": [{"critic": ASK, "revision": FIX}], "system_chat": [[{"role": "user", "content": "Hi"}]]}
CHOICES = ["Select the response that is brief.", "Choose the response that a kind and patient friend would give."]
ANNOTATED = {
    "annotators": {
        "x": {"name": "Human", "description": "People.", "type": "human"},
        "y": {"description": CHOICES[0], "type": "principle"},
    },
    "comparisons": [{"id": "1"}],
}
LINES = (
    "# Fairness\n\n1. The AI should not mock people\u2019s faith.\n"
    "- The AI should cite sources.\n* The AI should cite sources.\n"
)
POLIS = (
    "comment-id,moderated,comment-body\n0,1,The AI should cite sources.\n"
    '1,-1,spam\n2,0,"The AI should say, if asked, no."\n'
)

# A file of each shape: its name, its text, the form it has, how many principles are in it, and what is left out.
SHAPES: dict[str, tuple[str, str, str, int, tuple[str, ...]]] = {
    "paper": ("a.json", json.dumps(BAI), "bai-2022", 3, ()),
    "swarm": ("a.json", json.dumps(SWARM), "llm-swarm", 1, ("1 worked conversations (system_chat)",)),
    "icai text": ("a.json", json.dumps("\n".join(f"{n}. {one}" for n, one in enumerate(CHOICES, 1))), "icai", 2, ()),
    "icai clusters": ("a.json", json.dumps(dict(enumerate(CHOICES))), "icai", 2, ()),
    "icai annotators": ("a.json", json.dumps(ANNOTATED), "icai", 1, ("1 compared pairs with their votes",)),
    "JSON list": ("a.json", json.dumps([f"\n{one} Options:" for one in CHOICES]), "list", 2, ()),
    "lines": ("a.txt", LINES, "list", 2, ("1 headings or comments", "1 that stood there before, word for word")),
    "Pol.is": ("a.csv", POLIS, "list", 2, ("the votes", "1 comments that the moderators took out")),
}


def imported(tmp_path: Path, name: str, text: str, *more: str) -> Constitution:
    """What the command makes of a file with this text."""
    file, out = tmp_path / name, tmp_path / "made.yaml"
    file.write_bytes(text.encode())
    done = CliRunner().invoke(group, ["import", str(file), "--out", str(out), *more])
    if done.exception is not None:
        raise done.exception
    return load_constitution(str(out))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_published_form_is_recognised_and_passes_lint_without_errors(tmp_path: Path, shape: str):
    name, text, form, principles, left_out = SHAPES[shape]
    made = imported(tmp_path, name, text)
    assert made.source is not None and (made.source.form, made.source.left_out) == (form, left_out)
    assert len(made.principles) == principles
    found = lint(made.path)
    assert [one for one in found if one.severity == "error"] == []
    assert [one.principle for one in found if one.rule == "filled-in"] == [one.id for one in made.principles]


def test_the_source_is_kept_with_its_name_or_address_and_its_digest(tmp_path: Path):
    made = imported(tmp_path, "a.txt", LINES)
    assert made.source is not None and made.source.name == str(tmp_path / "a.txt")
    assert made.source.sha256 == hashlib.sha256(LINES.encode()).hexdigest()
    address = "https://example.org/statements"
    again = imported(tmp_path, "a.txt", LINES, "--source", address, "--force")
    assert again.source is not None and again.source.name == address and address in again.description


def test_what_the_source_says_is_taken_word_for_word_and_the_rest_is_named(tmp_path: Path):
    first, second, third = imported(tmp_path, "a.json", json.dumps(BAI)).principles
    assert (first.id, first.critique, first.revision) == ("rude0", ASK, FIX)
    assert first.filled_in == ("statement", "rationale", "comparison") and FIX in first.statement
    assert [(one.id, one.critique, one.revision) for one in (second, third)] == [
        ("rude-1-1", "One.", "Mend it."),
        ("rude-1-2", "Two.", "Mend it."),
    ]


def test_a_request_to_choose_is_a_comparison_and_any_other_line_a_statement(tmp_path: Path):
    text = "\n".join([*CHOICES, "The AI should cite sources.", "Please choose the response that is (A)."])
    one, other, cited, lettered = imported(tmp_path, "a.txt", text).principles
    assert (one.comparison, one.statement) == (CHOICES[0], "The answer is brief.")
    assert other.comparison == CHOICES[1] and CHOICES[1] in other.statement
    assert cited.statement == "The AI should cite sources." and "comparison" in cited.filled_in
    assert "comparison" in lettered.filled_in and "(A)" not in lettered.comparison


def test_texts_that_mean_something_in_yaml_come_through_as_they_are(tmp_path: Path):
    odd = [
        "yes",
        "null",
        "The AI: never '#' \"quotes\" & {brackets}",
        "\u0646\u0645 \U0001f469\u200d\U0001f680 is said",
        "12",
    ]
    long = "The answer says " + "word " * 40 + "\u2028: end"
    made = imported(tmp_path, "a.json", json.dumps([*odd, long]))
    assert [one.statement for one in made.principles] == [*odd, long]
    assert len({one.id for one in made.principles}) == 6


BAD = {
    "no such file": (None, "none.json: found a file that cannot be read"),
    "not UTF-8": (b"\xff\xfe\x00", "a file that is not UTF-8 text"),
    "an empty file": (b" \n", "no principle"),
    "broken JSON": (b'{"a": [}', "text that is not JSON"),
    "lines of JSON": (b'{"prompt": "a"}\n{"prompt": "b"}\n', "text that is not JSON"),
    "a key twice": (b'{"a": 1, "a": 2}', "the key 'a' twice"),
    "deep JSON": (b"[" * 100_000, "JSON that cannot be read"),
    "another JSON": (b'{"a": 1}', "a form that cai does not know"),
    "a web page": (b"<html>The AI should</html>", "a form that cai does not know"),
    "a swarm without requests": (b'{"constitutions": [{"critic": "x"}]}', "no 'revision' where the form has one"),
    "a swarm of numbers": (b'{"constitutions": [1]}', "values of another kind than the form has"),
    "an empty request": (b'{"constitutions": [{"critic": "", "revision": "x"}]}', "an empty text"),
    "a request that is no text": (b'{"constitutions": [{"critic": 7, "revision": "x"}]}', "values of another kind"),
    "a text without end": (json.dumps(["x" * 200_000]).encode(), "statements of 200000 characters"),
    "worked conversations": (b'["\\n\\nHuman: Hello?\\n\\nAssistant: Hello."]', "a conversation, with turns"),
    "half a character": (b'["The AI says \\ud800"]', "half a character"),
    "ours": (b"name: x\nprinciples:\n  - id: y\n", "a constitution in the form of cai"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path: Path, bad: str):
    data, words = BAD[bad]
    file = tmp_path / ("none.json" if data is None else "a.json" if data[:1] in b"{[" else "a.txt")
    if data is not None:
        file.write_bytes(data)
    done = CliRunner().invoke(group, ["import", str(file), "--out", str(tmp_path / "made.yaml")])
    assert isinstance(done.exception, BadInput) and words in str(done.exception)
    assert "\n" not in str(done.exception) and not (tmp_path / "made.yaml").exists()


def test_a_file_that_is_there_is_not_overwritten_without_force(tmp_path: Path):
    out = tmp_path / "made.yaml"
    out.write_text("mine")
    with pytest.raises(BadInput, match="a file that is there"):
        imported(tmp_path, "a.txt", LINES)
    assert out.read_text() == "mine"
    assert len(imported(tmp_path, "a.txt", LINES, "--force").principles) == 2
    for other in (tmp_path / "made.txt", tmp_path / "none" / "made.yaml"):
        done = CliRunner().invoke(group, ["import", str(tmp_path / "a.txt"), "--out", str(other)])
        assert isinstance(done.exception, BadInput) and not other.exists()


def test_a_form_that_is_named_is_taken_or_refused(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(BAI))
    for form in ("llm-swarm", "list"):
        with pytest.raises(BadInput, match=f"expected a file in the form {form}"):
            import_constitution(tmp_path / "a.json", form, None, tmp_path / "made.yaml")
    made = import_constitution(tmp_path / "a.json", "bai-2022", None, tmp_path / "made.yaml")
    assert (made.form, made.principles) == ("bai-2022", 3)
