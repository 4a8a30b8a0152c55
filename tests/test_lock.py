"""Many processes on one folder: one works, the others are told which one it is."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cai import lock
from cai.dataset import KIND
from cai.errors import BadInput, CannotWrite
from cai.folder import new_folder, refuse_other_files
from cai.store import Run, open_run
from tests.conftest import write_jsonl

# Processes that have loaded everything and begin at the same moment. An export lingers, so that all of them meet it.
TOGETHER = """
import os, sys, time
import cai.cli, cai.export
if "export" in sys.argv:
    import datasets, datasketch, sklearn.linear_model
written = cai.export.card
cai.export.card = lambda *given: time.sleep(1.5) or written(*given)
gate, start = os.pipe()
children = []
for number in range(int(sys.argv[1])):
    child = os.fork()
    if child == 0:
        os.close(start)
        log = os.open(f"log-{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        os.read(gate, 1)
        sys.argv[1:] = sys.argv[2:]
        cai.cli.main()
        os._exit(0)
    children.append(child)
os.close(start)
for number, child in enumerate(children):
    _, status = os.waitpid(child, 0)
    print(child, os.waitstatus_to_exitcode(status), f"log-{number}")
"""


def together(folder: Path, processes: int, *command: str) -> list[tuple[int, int, str]]:
    """The pid, exit code and output of so many processes that are given the same command at once."""
    script = [sys.executable, "-c", TOGETHER, str(processes), *command]
    done = subprocess.run(script, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ended = [line.split() for line in done.stdout.splitlines()]
    return [(int(pid), int(code), (folder / log).read_text()) for pid, code, log in ended]


def test_of_eight_processes_on_one_folder_one_works_and_seven_are_told_its_pid(tmp_path: Path):
    write_jsonl(tmp_path / "p.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(12)])
    (tmp_path / "script.yaml").write_text("latency_seconds: 0.3\n")
    engine = ["--engine", "scripted", "--model", "script.yaml"]
    for out, *command in (
        ["run", "revise", "p.jsonl", "--out", "run", *engine],
        ["run", "label", "run", *engine],
        ["set", "export", "run", "--out", "set"],
    ):
        ended = together(tmp_path, 8, *command)
        (worker,) = [pid for pid, code, _ in ended if code == 0]
        refused = [(code, said.splitlines()[-1]) for pid, code, said in ended if pid != worker]
        if out == "run":
            told = f"a run that process {worker} is working on, expected a free one. Wait for it, or end it."
        else:
            told = (
                f"a folder that process {worker} is writing, expected a free one. Wait for it, or choose another --out."
            )
        assert refused == [(2, f"cai: --out {out}: found {told}")] * 7
    for stage, rows in (("revise", 12), ("label", 12)):
        run = open_run(str(tmp_path / "run"))
        run.check_files(stage)
        assert run.manifest()[stage]["counts"]["read"] == rows and run.damaged_lines() == []
    refuse_other_files(tmp_path / "set", KIND)
    assert not [path for path in tmp_path.rglob("*") if ".cai-" in path.name or path.name.endswith(".tmp")]


def dead_pid() -> str:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return str(process.pid)


def test_a_lock_that_a_killed_process_has_left_is_taken_over(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / ".set.cai-lock").write_text(dead_pid())
    code = "import sys, time; from pathlib import Path; from cai.store import Run\n"
    code += "with Run(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "run"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match=f"process {process.pid} is working on"), Run(tmp_path / "run"):
            raise AssertionError("two have it")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "run" / ".lock").read_text() == str(process.pid)
    with Run(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text() == str(os.getpid())
    with new_folder(tmp_path / "set"):
        assert (tmp_path / ".set.cai-lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("left", ["", "dead"])
def test_a_holder_that_has_not_said_who_it_is_yet_is_waited_for(tmp_path: Path, left: str):
    path = tmp_path / "run" / ".lock"
    path.parent.mkdir()
    path.write_text(dead_pid() if left else "")
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        threading.Timer(0.2, lambda: path.write_text(str(os.getpid()))).start()
        with pytest.raises(lock.Held) as held:
            lock.take(path)
    assert held.value.pid == str(os.getpid())


def test_a_holder_elsewhere_is_named_after_a_moment(tmp_path: Path):
    """In another container, say, where the pids are others."""
    path, begun = tmp_path / ".lock", time.monotonic()
    path.write_text(pid := dead_pid())
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(lock.Held, match=pid):
            lock.take(path)
    assert time.monotonic() - begun < 10


def test_a_lock_of_a_file_that_its_holder_has_just_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, real, left = tmp_path / "run" / ".lock", fcntl.flock, [path_gone, folder_gone]

    def just_before(file: int, how: int) -> None:
        if left:
            left.pop()(path)
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", just_before)
    held = lock.take(path)
    assert not left and lock.is_at(held, path)
    lock.let_go(held, path, remove=True)
    assert not path.exists()


def path_gone(path: Path) -> None:
    path.unlink()


def folder_gone(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()


def test_the_lock_of_another_process_is_not_removed_with_ones_own(tmp_path: Path):
    path = tmp_path / ".lock"
    held = lock.take(path)
    path.unlink()
    path.write_text("another's")
    lock.let_go(held, path, remove=True)
    assert path.read_text() == "another's"


@pytest.mark.parametrize("made", [os.symlink, os.link])
def test_a_lock_that_leads_to_another_file_empties_nothing(tmp_path: Path, made: Callable[[Path, Path], None]):
    victim = tmp_path / "victim"
    victim.write_text("somebody's")
    (tmp_path / "run").mkdir()
    for link, take in (
        (tmp_path / "run" / ".lock", lambda: Run(tmp_path / "run")),
        (tmp_path / ".set.cai-lock", lambda: new_folder(tmp_path / "set")),
    ):
        made(victim, link)
        if made is os.symlink:
            with (
                pytest.raises(CannotWrite, match=r"lock: found a link where a file belongs, expected the file"),
                take(),
            ):
                raise AssertionError("a link was followed")
        else:
            with take():
                assert link.read_text() == str(os.getpid())
        assert victim.read_text() == "somebody's"
