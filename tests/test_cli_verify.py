"""`cai verify` as an auditor gives it: what is printed, and how it ends."""

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cai.cli import cai
from cai.errors import BadInput, CheckFailed
from cai.seal import stages_text
from tests.small import answer_by_script, before


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        answer_by_script(patch)
        return before("", tmp_path_factory.mktemp("cli-verify") / "finished")


@pytest.fixture
def finished(tmp_path: Path, made_once: Path) -> Path:
    return shutil.copytree(made_once, tmp_path / "finished")


def give(*arguments: object) -> Result:
    return CliRunner().invoke(cai, ["verify", *map(str, arguments)])


def test_what_nobody_has_touched_ends_with_0_and_the_numbers_of_what_was_looked_at(finished: Path):
    done = give(finished / "run", finished / "set", "--run", finished / "run")
    assert done.exit_code == 0 and done.exception is None
    assert f"{finished}/run: as it was written. Looked at: 25 files, 10 calls in the journal" in done.stdout
    assert (
        f"{finished}/set: as it was written, held against {finished}/run. Looked at: 6 files, 10 rows, " in done.stdout
    )
    assert "10 rows followed back" in done.stdout and "looking at the rows" in done.stderr


def test_the_name_of_a_file_cannot_pass_for_a_line_of_its_own(finished: Path):
    (finished / "run" / "a\nrun: as it was written.").write_text("")
    done = give(finished / "run")
    assert "a\\nrun: as it was written.: found a file that is none of this run's" in done.stdout
    assert "run: as it was written.: found" not in done.stdout.splitlines()
    assert not any(line.startswith("run: as it was written") for line in done.stdout.splitlines())


def test_each_difference_is_a_sentence_and_the_exit_code_is_1(finished: Path):
    (finished / "run" / "notes.txt").write_text("mine")
    (finished / "run" / ".lock").write_text("x")
    done = give(finished / "run", finished / "set", "--run", finished / "run")
    assert isinstance(done.exception, CheckFailed) and done.exception.exit_code == 1
    assert str(done.exception) == f"2 differences from what was written, in {finished}/run"
    lines = done.stdout.splitlines()
    assert lines[:2] == [
        ".lock: found 1 bytes, expected an empty file (any command on the run empties it).",
        "notes.txt: found a file that is none of this run's, expected nothing here.",
    ]
    assert f"{finished}/run: differs in 2 places. Looked at: " in done.stdout


def test_as_json_it_says_the_same(finished: Path):
    (finished / "set" / "notes.txt").write_text("mine")
    done = give(finished / "run", finished / "set", "--run", finished / "run", "--json")
    told = json.loads(done.stdout)
    assert isinstance(done.exception, CheckFailed)
    assert told[f"{finished}/run"]["differences"] == [] and told[f"{finished}/run"]["looked_at"]["files"] == 25
    assert told[f"{finished}/set"]["differences"] == [
        {
            "place": f"{finished}/set/notes.txt", "found": "a file that is none of this dataset's",
            "expected": "nothing here",
        }
    ]  # fmt: skip
    assert told[f"{finished}/set"]["notes"] and not told[f"{finished}/run"]["unfinished"]


def test_where_a_named_pipe_lies_nothing_more_is_looked_at(finished: Path):
    (finished / "run" / "manifest.json").unlink()
    os.mkfifo(finished / "run" / "manifest.json")
    assert "run: differs in 1 place. Looked at: nothing more.\n" in give(finished / "run").stdout


def test_a_run_that_is_not_finished_is_as_it_was_written_as_far_as_it_goes(finished: Path):
    (finished / "run" / "manifest.json").write_bytes(stages_text({}))  # as it is before a stage is finished
    done = give(finished / "run")
    assert done.exit_code == 0, done.stdout
    assert "cai label is not finished: what is there was looked at" in done.stdout
    assert "run: not finished; what is there is as it was written. Looked at: " in done.stdout


@pytest.mark.parametrize("arguments", [["{}"], ["{}/run/labels"], ["{}/set", "--run", "{}/set"]])
def test_a_path_that_is_none_of_ours_ends_with_2(finished: Path, arguments: list[str]):
    done = give(*(one.format(finished) for one in arguments))
    assert isinstance(done.exception, BadInput) and done.exception.exit_code == 2


def test_several_versions_are_looked_at_together_and_a_missing_one_is_named(
    finished: Path, monkeypatch: pytest.MonkeyPatch
):
    answer_by_script(monkeypatch)
    for licence in ("a", "b", "c"):
        words = ["export", str(finished / "run"), "--out", str(finished / "sets"), "--versions", "--licence", licence]
        assert CliRunner().invoke(cai, words).exit_code == 0
    assert give(finished / "sets").exit_code == 0
    assert give(finished / "sets" / "v0002").exit_code == 0
    shutil.rmtree(finished / "sets" / "v0002")
    done = give(finished / "sets")
    assert f"{finished}/sets/v0002: found no such version, expected every version up to the last." in done.stdout
    assert "the version before, v0002, is not beside it" in done.stdout


def test_what_a_killed_export_has_left_among_the_versions_is_told_and_is_no_difference(
    finished: Path, monkeypatch: pytest.MonkeyPatch
):
    answer_by_script(monkeypatch)
    words = ["export", str(finished / "run"), "--out", str(finished / "sets"), "--versions", "--licence"]
    begun = finished / "sets" / ".v0001.cai-new"
    begun.mkdir(parents=True)
    (begun / "README.md").write_text("half")
    done = give(finished / "sets")
    assert isinstance(done.exception, BadInput) and done.exception.exit_code == 2
    assert str(done.exception) == (
        f"{finished}/sets: found no version yet, only what an export that is at work or was killed has begun to write, "
        "expected the folder of a run (it has settings.json), of a dataset, or of its versions. Wait for it, or give "
        "the command again."
    )
    assert CliRunner().invoke(cai, [*words, "a"]).exit_code == 0 and not begun.exists()
    shutil.copytree(finished / "sets" / "v0001", finished / "sets" / ".v0002.cai-new")
    done = give(finished / "sets")
    told = (
        f"{finished}/sets/.v0002.cai-new is what an export that is at work or was killed has begun to write; it counts"
    )
    assert done.exit_code == 0 and told in done.stdout
    assert CliRunner().invoke(cai, [*words, "b"]).exit_code == 0
    assert give(finished / "sets").exit_code == 0 and told not in give(finished / "sets").stdout
    (finished / "sets" / ".notes.cai-new").mkdir()
    (finished / "sets" / ".v0003.cai-new").symlink_to(finished)
    told = give(finished / "sets").stdout
    assert all(f"{name}.cai-new: found something that is no version" in told for name in (".notes", ".v0003"))


def test_a_dataset_is_held_against_the_run_that_is_given_with_it_and_the_result_names_that(
    finished: Path, tmp_path: Path, made_once: Path
):
    copy = shutil.copytree(finished, tmp_path / "copy")
    (copy / "set").rename(copy / "other-set")
    (copy / "run").rename(tmp_path / "away")
    done = give(tmp_path / "away", copy / "other-set")
    assert done.exit_code == 0, done.stdout
    assert f"{copy}/other-set: as it was written, held against {tmp_path}/away. Looked at: " in done.stdout
    # The other way round, and with a run beside it that has nothing to do with it.
    assert give(copy / "other-set", tmp_path / "away").exit_code == 0
    told = json.loads(give(copy / "other-set", tmp_path / "away", "--json").stdout)
    assert told[f"{copy}/other-set"]["held_against"] == [f"{tmp_path}/away"]


def test_a_run_that_is_given_comes_before_the_one_in_its_old_place_also_where_it_was_changed(finished: Path):
    # made_once, where the dataset's command had the run, is still there, and sound.
    manifest = finished / "run" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    done = give(finished / "run", finished / "set")
    assert isinstance(done.exception, CheckFailed)
    assert f"{finished}/set: as it was written, held against {finished}/run. Looked at: " in done.stdout
    assert "has another manifest than when this was exported" in done.stdout


def test_a_dataset_without_its_run_ends_with_1_unless_it_is_to_be_looked_at_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    answer_by_script(monkeypatch)
    folder = before("", tmp_path / "here")
    shutil.rmtree(folder / "run")
    done = give(folder / "set")
    assert isinstance(done.exception, CheckFailed) and done.exception.exit_code == 1
    assert str(done.exception) == (
        f"{folder}/set: nothing differs, but it was not held against its run. Give the folder of that run, or --alone "
        "if it is not there any more"
    )
    assert f"{folder}/set: as it was written, and NOT held against its run. Looked at: " in done.stdout
    done = give(folder / "set", "--alone")
    assert done.exit_code == 0 and "NOT held against its run" in done.stdout
    told = json.loads(give(folder / "set", "--alone", "--json").stdout)
    assert told[f"{folder}/set"]["not_held_against_its_run"] == [f"{folder}/set"]


def test_a_dataset_whose_run_has_been_labelled_anew_is_not_told_to_be_given_the_run_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    answer_by_script(monkeypatch)
    folder = before("", tmp_path / "here")
    words = ["label", str(folder / "run"), "--engine", "scripted", "--constitution", "helpfulness", "--replace"]
    assert CliRunner().invoke(cai, [*words, "--history", "off"]).exit_code == 0
    done = give(folder / "run", folder / "set")
    assert isinstance(done.exception, CheckFailed)
    assert (
        f"{folder}/set: NOT CHECKED against its run: {folder}/run is a run whose cai label has other texts than the "
        "one that the dataset was made of. Give --run RUN if its run lies elsewhere; if that was made anew (cai label "
        "--replace), export it once more.\n"
    ) in done.stdout
