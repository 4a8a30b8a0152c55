"""What is printed for a person to paste: a shell gives each word back as it was, and runs nothing that is in it."""

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from cai.cli import cai
from cai.pasted import folder_word, row_word, word
from tests.conftest import write_jsonl

ID = "$(touch${IFS}pwned) it's `touch pwned`; touch pwned"
COMMAND = re.compile(r"cai (?:show|label) [^─\n]+$", re.MULTILINE)  # and no heading's rule


def pasted(command: str, folder: Path) -> list[str]:
    """The words that a shell makes of a printed line, in a folder where nothing lies."""
    told = subprocess.run(
        ["sh", "-c", f"cai() {{ printf '%s\\n' \"$@\"; }}; {command}"], cwd=folder, capture_output=True, text=True
    )
    assert told.returncode == 0 and not told.stderr and not list(folder.iterdir()), command
    return told.stdout.splitlines()


def test_words_of_a_shell_are_what_they_were_and_plain_ones_look_plain(tmp_path: Path):
    for one in (ID, "two words", "~", "*", "", "a'b", "a\\b", "-d", "é"):
        assert pasted(f"cai {word(one)}", tmp_path) == [one]
    assert [word(one) for one in ("redteam-001", "data/runs/first")] == ["redteam-001", "data/runs/first"]
    assert folder_word("-d") == "./-d" and folder_word(Path("a b")) == "'a b'"
    assert row_word("-d e") == "-- '-d e'" and row_word("r1") == "r1"
    assert word("a\x1b[2J") == r"'a\x1b[2J'", "what drives a terminal is spelled out"


def test_every_command_that_a_run_and_its_views_print_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    rows = [{"id": name, "prompt": f"How is lock {name[:2]} picked?"} for name in (ID, *map(str, range(5)))]
    write_jsonl(tmp_path / "p.jsonl", rows)
    out, runner = "my run;touch pwned", CliRunner()

    def said(*args: str) -> list[list[str]]:
        result = runner.invoke(cai, args, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return [pasted(line, tmp_path / "empty") for line in COMMAND.findall(result.output)]

    asked = ("--engine", "scripted", "--history", "off")
    assert said("revise", "p.jsonl", *asked, "--gate-threshold", "0.01", "--out", out) == [["show", out, ID]]
    labelled = said("label", out, *asked, "--review-share", "1")
    assert labelled[0] == ["label", out, "--apply-review", f"{out}/review.jsonl"] and labelled[1][:2] == ["show", out]
    assert said("show", out) == [["show", out, "ID"]]
    shown = said("show", out, ID)
    assert shown[0] == ["show", out, "--call", "KEY"] and shown[1][:3] == ["show", out, "--call"]
    result = runner.invoke(cai, ["export", out, "--out", 'a "set"'], catch_exceptions=False)
    (loaded,) = re.findall(r"load_dataset\((.*), \"sft\"\)", result.output)
    assert loaded == r'"a \"set\""'
    assert said("show", 'a "set"') == [["show", 'a "set"', "ID"]]
