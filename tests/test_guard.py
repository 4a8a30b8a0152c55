"""What an engine has started ends with the process that started it, and not before."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cai.engines.guard import Guard, kill_marked, marked

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")

# An engine's process, deaf to SIGTERM, and a worker of its own in another session. Both say who they are, and whether
# they are deaf to Ctrl-C.
ENGINE = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, "-I", __file__, "worker"], start_new_session=True)
print(os.getpid(), int(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])), flush=True)
time.sleep(300)
"""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Path]:
    program = tmp_path / "engine.py"
    program.write_text(ENGINE)
    yield program
    kill_marked(f"CAI_TEST={tmp_path}", 5.0)


# A process that starts an engine twice, as after a death, and something else.
STARTER = """
import subprocess, sys, time
from cai.engines.guard import Guard
guard = Guard()
guard.watch()
for again in range(2):
    with guard.births():
        subprocess.Popen([sys.executable, "-I", sys.argv[1]])
subprocess.Popen([sys.executable, "-I", sys.argv[1], "other"])
sys.stdout.write(f"{guard.mark} {guard._process.pid}\\n")  # at once, since the others write to the same pipe
sys.stdout.flush()
time.sleep(300)
"""


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_all_that_an_engine_has_started_ends_when_its_process_is_killed_and_nothing_else(
    tmp_path: Path, engine: Path, number: int
):
    environment = {**os.environ, "CAI_TEST": str(tmp_path)}  # by which the fixture clears up
    command = [sys.executable, "-c", STARTER, str(engine)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as starter:
        assert starter.stdout is not None
        said = [starter.stdout.readline().split() for _ in range(6)]
        assert sorted(map(len, said)) == [2] * 6 or starter.kill(), said
        ((mark, guard),) = [words for words in said if words[0].startswith("CAI_")]
        pids = {int(pid) for pid, _ in (words for words in said if not words[0].startswith("CAI_"))}
        assert len(pids) == 5 and set(marked(mark)) < pids, "two engines, their workers, and one that is none of them"
        engines = set(marked(mark))
        assert len(engines) == 4
        os.kill(int(guard), signal.SIGTERM)  # what ends a whole group of processes is not to end the guard
        starter.send_signal(number)
        starter.wait()
        until(lambda: not any(map(alive, engines)), 30)
        until(lambda: not alive(int(guard)), 30)
        (other,) = pids - engines
        assert alive(other)
        os.kill(other, signal.SIGKILL)


def test_an_engine_hears_nothing_of_ctrl_c_and_everything_else_is_as_it_was(engine: Path):
    guard = Guard()
    before = dict(os.environ)
    for fails in (False, True):
        try:
            with guard.births():
                made = subprocess.Popen([sys.executable, "-I", engine, "x"], stdout=subprocess.PIPE, text=True)
                if fails:
                    raise ValueError("it does not start")
        except ValueError:
            assert fails
        assert made.stdout is not None
        pid, deaf = made.stdout.readline().split()
        assert (int(pid), deaf) == (made.pid, "1") and marked(guard.mark) == [made.pid]
        assert dict(os.environ) == before and signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert guard.kill() and made.wait() == -signal.SIGKILL
        made.stdout.close()


def test_a_guard_is_dismissed_where_nothing_is_left():
    guard = Guard()
    guard.watch()
    assert guard.kill()
    guard.dismiss()
    guard.dismiss()
    assert guard._process is not None and guard._process.returncode == -signal.SIGKILL
