"""A disk that is full, closed or taken away: one sentence that names the place, and nothing finished is lost."""

import asyncio
import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cai.cli import cai, run_cli
from cai.dataset import KIND
from cai.engines import Request
from cai.engines.scripted import ScriptedEngine, derived_script
from cai.errors import BadInput, CaiError, CannotWrite
from cai.folder import refuse_other_files
from cai.settings import ReviseSettings
from cai.stages import revise_stage
from cai.store import Run
from tests.conftest import Quiet, journaled, played_by, table_bytes, write_jsonl
from tests.faults import Disk
from tests.small import STAGES, Asked, answer_by_script, before, revise


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setattr(asyncio, "to_thread", _here)  # so that the n-th thing that is written is always the same
    return answer_by_script(monkeypatch)


async def _here(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def scratch(folder: Path) -> list[Path]:
    """What was being written when it ended."""
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp") or ".cai-new" in path.name]


@pytest.mark.parametrize("stage", STAGES)
def test_wherever_the_disk_fills_up_the_place_is_named_and_the_same_command_goes_on(
    tmp_path: Path, asked: Asked, stage: str
):
    start = before(stage, tmp_path / "start")
    shutil.copytree(start, tmp_path / "unbroken")
    unbroken = Disk(tmp_path / "unbroken")
    with unbroken.full_after(1 << 60):
        STAGES[stage](tmp_path / "unbroken")
    wanted = table_bytes(tmp_path / "unbroken")
    for last in range(unbroken.done):
        folder = tmp_path / f"full-{last}"
        shutil.copytree(start, folder)
        asked.clear()
        with Disk(folder).full_after(last), pytest.raises(CannotWrite) as told:
            STAGES[stage](folder)
        assert str(folder) in str(told.value) and ": found no space left on the disk, expected room" in str(told.value)
        assert table_bytes(folder).items() <= wanted.items(), f"at {last} a file has its name and is not finished"
        assert not scratch(folder), last
        assert (folder / "run" / "settings.json").exists() or not (folder / "run").exists(), last
        refuse_other_files(folder / "set", KIND)
        with Disk(folder).full_after(1 << 60):
            STAGES[stage](folder)
        # What was in flight: one call of a row, and a pair's two, since both orders are asked at once.
        assert sum((Counter(asked) - Counter(set(asked))).values()) <= 2, last
        assert table_bytes(folder) == wanted, last
        assert journaled(folder / "run") == journaled(tmp_path / "unbroken" / "run"), last
        assert not scratch(folder), last
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EROFS, "found a disk that may not be written (read-only), expected one that may be. Let it be written"),
        (errno.EDQUOT, "found a disk quota that is used up, expected room to write. Make room there"),
        (errno.EIO, "found Input/output error, expected a disk that takes what is written. See to the disk"),
    ],
)
@pytest.mark.parametrize("last", [20, 50])
def test_a_disk_that_takes_no_more_is_named_with_what_is_wrong_with_it(
    tmp_path: Path, asked: Asked, code: int, words: str, last: int
):
    folder = before("revise", tmp_path / "a")
    with Disk(folder, code).full_after(last), pytest.raises(CannotWrite) as told:
        revise(folder)
    assert str(told.value).startswith(f"{folder}/run/") and words in str(told.value)
    revise(folder)


@contextmanager
def as_nobody() -> Generator[None]:
    """Let files be forbidden, also where the tests run as root, whom nothing is."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        if not os.access("constitutions/harmlessness.yaml", os.R_OK, effective_ids=True):
            pytest.skip("this checkout is root's alone")
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_that_may_not_be_written_is_named_and_left_as_it_is(tmp_path: Path, asked: Asked):
    revise(before("revise", tmp_path / "a"))  # loads what nobody may not be able to load
    asked.clear()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        refused = pytest.raises(BadInput, match=r"/run: found a folder that cannot be written .*\(Permission denied\)")
        with as_nobody(), refused:
            settings = ReviseSettings(prompts="redteam", out=f"{folder}/run", engine="scripted")
            asyncio.run(revise_stage(settings, Quiet()))
        assert asked == [] and not os.listdir(folder)


UNREADABLE = [
    ("report {run}", "run/settings.json"),
    ("report {run}", "run/sessions.jsonl"),
    ("label {run} --engine scripted --apply-review {run}/review.jsonl", "run/review.jsonl"),
    ("export {run} --out {set} --decontaminate {eval}", "eval.jsonl"),
    ("export {run} --out {set}", "run/inputs/revise/constitution.yaml"),
    ("export {run} --out {set}", "set/README.md"),
]


def test_a_file_that_may_not_be_read_is_named_and_nothing_is_left(asked: Asked, capsys: pytest.CaptureFixture[str]):
    with tempfile.TemporaryDirectory() as name:
        folder = before("", Path(name) / "a")
        write_jsonl(folder / "eval.jsonl", [{"prompt": "question"}])
        for path in (Path(name), *Path(name).rglob("*")):
            path.chmod(0o777)
        places = {place: str(folder / place) for place in ("run", "set")} | {"eval": str(folder / "eval.jsonl")}
        for command, unreadable in UNREADABLE:
            (folder / unreadable).chmod(0)
            with as_nobody(), pytest.raises(SystemExit) as end:
                run_cli(cai, [part.format(**places) for part in command.split()])
            (folder / unreadable).chmod(0o777)
            assert (end.value.code, capsys.readouterr().err) == (
                2,
                f"cai: {folder / unreadable}: found a file that cannot be read (Permission denied), expected a "
                "readable file. Check its permissions.\n",
            )
            assert not list(folder.glob(".set.*"))


def answering(monkeypatch: pytest.MonkeyPatch, at: int, then: Callable[[], object]) -> None:
    """An engine that does something at its `at`-th call."""
    count = iter(range(1, 1 << 30))

    def answer(request: Request) -> Any:
        if next(count) == at:
            then()
        return derived_script(request)

    played_by(monkeypatch, ScriptedEngine(answer, latency_seconds=0.001))


def remove(run: Path) -> None:
    while run.exists():  # a shard may be written just now
        shutil.rmtree(run, ignore_errors=True)


def move(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


@pytest.mark.parametrize("at", [1, 3, 6])
@pytest.mark.parametrize("away", [remove, move])
def test_a_run_that_is_taken_away_while_it_works_ends_and_is_not_begun_a_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, away: Callable[[Path], object]
):
    folder = before("revise", tmp_path / "a")
    answering(monkeypatch, at, lambda: away(folder / "run"))
    with pytest.raises(CaiError, match=r"found no (such )?folder any more.* expected the one that .*again"):
        revise(folder)
    assert not (folder / "run").exists()
    revise(folder)


def test_a_journal_that_is_taken_away_ends_the_run_before_more_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = before("revise", tmp_path / "a")
    answering(monkeypatch, 2, lambda: shutil.rmtree(folder / "run" / "journal"))
    with pytest.raises(CannotWrite, match=r"journal/part-00000\.jsonl: found no such folder any more"):
        revise(folder)
    revise(folder)


SCRATCH = ["settings.json", "shards.jsonl", "manifest.json", "inputs/revise/constitution.yaml"]
SCRATCH += ["trajectories/part-00000.parquet", "drops/revise-00001.parquet"]


def test_what_another_put_under_the_name_of_a_scratch_file_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Asked
):
    """A link, in a folder that several people share; the run is as it would be without."""
    folder, victim = before("revise", tmp_path / "a"), tmp_path / "victim"
    revise(before("revise", tmp_path / "b"))
    victim.write_text("somebody's")
    real = Run.belong

    def first_linked(run: Any, *given: Any) -> None:
        for name in SCRATCH:
            path = folder / "run" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.tmp").symlink_to(victim)
        real(run, *given)

    monkeypatch.setattr(Run, "belong", first_linked)
    revise(folder)
    assert victim.read_text() == "somebody's" and not scratch(folder)
    assert table_bytes(folder / "run") == table_bytes(tmp_path / "b" / "run") != {}


@pytest.mark.parametrize("name", ["journal/part-00000.jsonl", "shards.jsonl", "sessions.jsonl"])
def test_nothing_is_added_to_a_file_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Asked, name: str
):
    folder, victim = before("revise", tmp_path / "a"), tmp_path / "victim"
    path = folder / "run" / name
    victim.write_text("somebody's")
    real = Run.belong

    def then_linked(run: Any, *given: Any) -> None:
        real(run, *given)
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(victim)

    with monkeypatch.context() as patch, pytest.raises(CannotWrite) as told:
        patch.setattr(Run, "belong", then_linked)
        revise(folder)
    assert str(told.value).startswith(
        f"{path}: found a link where a file belongs, expected the file. Move the link away"
    )
    assert victim.read_text() == "somebody's"
    path.unlink()
    revise(folder)


def test_what_cannot_be_written_in_a_worker_thread_comes_out_as_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = before("revise", tmp_path / "a")
    answering(monkeypatch, 1, (folder / "run" / "trajectories").touch)
    with pytest.raises(CannotWrite, match=r"part-0000.\.parquet: found a file where a folder belongs"):
        revise(folder)
    (folder / "run" / "trajectories").unlink()
    revise(folder)


def test_a_limit_on_the_size_of_files_is_one_sentence_exit_2_and_the_same_command_goes_on(tmp_path: Path):
    prompts = write_jsonl(tmp_path / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(80)])
    (tmp_path / "script.yaml").write_text(f"ledger: {tmp_path / 'ledger'}\n")

    def limited(out: str, limit: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cai", "revise", str(prompts), "--engine", "scripted", "--rows-in-flight", "1"]
        command += ["--model", str(tmp_path / "script.yaml"), "--out", str(tmp_path / out)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
        )  # fmt: skip

    broken = limited("run", 60_000)
    *_, last = broken.stderr.splitlines()
    assert broken.returncode == 2 and "Traceback" not in broken.stderr
    assert last == (
        f"cai: {tmp_path}/run/journal/part-00000.jsonl: found a file that may not grow any more, expected no limit on "
        "the size of files. Raise the limit (ulimit -f), then give the same command again: it goes on from what is "
        "finished."
    )
    assert limited("run", resource.RLIM_INFINITY).returncode == 0
    keys = (tmp_path / "ledger").read_text().split("\n")
    assert len(keys) - len(set(keys)) <= 1, "the call whose line was torn"
    assert limited("unbroken", resource.RLIM_INFINITY).returncode == 0
    assert table_bytes(tmp_path / "run") == table_bytes(tmp_path / "unbroken")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_an_output_that_cannot_be_written_is_named(tmp_path: Path, asked: Asked):
    folder = before("label", tmp_path / "a")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "cai", "report", str(folder / "run")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("cai: standard output: found no space left on the disk, expected room to write.")
