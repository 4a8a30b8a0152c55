"""An engine's processes end with this one, however this one ends.

vLLM's processes go on when their parent is killed: nothing of theirs looks after it, and they hold their memory. So
each of them carries a mark in its environment, which its own children inherit and which stays readable in /proc
whoever their parent is by then. A guard, a small process of its own, waits for the end of this one and kills whoever
carries the mark.

There is no /proc but on Linux; elsewhere nothing is found, and nothing killed.

This file is also the guard's program: it is started by its path, and imports nothing of ours.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Generator
from multiprocessing import resource_tracker
from pathlib import Path

NAME = "CAI_ENGINE_MARK"
# Environment and time of a start belong to one engine; and two that measure a GPU's free memory at once are both wrong.
_ONE_AT_A_TIME = threading.Lock()
_REMOVED = "ignore:resource_tracker"


class Guard:
    """The guard of one engine, from `watch` to `dismiss`, and the mark of its processes."""

    def __init__(self) -> None:
        self.mark = f"{NAME}={uuid.uuid4().hex}"
        self._process: subprocess.Popen[bytes] | None = None

    def watch(self) -> None:
        """Start the guard process. Raises OSError if there is no room for one."""
        command = [sys.executable, "-I", "-S", __file__, self.mark, str(os.getpid())]
        nowhere = subprocess.DEVNULL  # whoever reads what this process writes must not wait for the guard's end
        # Whoever ends a group of processes with a signal means the guard last, also while it starts.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
        try:
            self._process = subprocess.Popen(
                command, stdin=nowhere, stdout=nowhere, stderr=nowhere, cwd="/", start_new_session=True
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @contextlib.contextmanager
    def births(self) -> Generator[None]:
        """Inside, what this thread starts carries the mark and is deaf to Ctrl-C, which a terminal sends to all."""
        # The tracker, which removes the shared memory of processes that were killed, outlives them, and so has no mark.
        # It would complain of what it removes. And its start would take Ctrl-C out of the mask again.
        with _environment(PYTHONWARNINGS=",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), _REMOVED)))):
            resource_tracker.ensure_running()
        # Titles of processes would be written over the environment in /proc.
        with _ONE_AT_A_TIME, _environment(**{NAME: self.mark.partition("=")[2], "SPT_NOENV": "1"}):
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def kill(self, seconds: float = 5.0) -> bool:
        """Kill what carries the mark; whether none is left after so many seconds."""
        return kill_marked(self.mark, seconds)

    def dismiss(self) -> None:
        """End the guard process; only where nothing is left to be guarded."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def _environment(**given: str) -> Generator[None]:
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def kill_marked(mark: str, seconds: float) -> bool:
    """Kill every process with this mark; whether none is left after so many seconds."""
    deadline = time.monotonic() + seconds
    while pids := marked(mark):  # again and again: one of them may be starting another
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def marked(mark: str) -> list[int]:
    """The processes with this mark in the environment that they were started with."""
    pids: list[int] = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone by now, or somebody else's
            if mark.encode() in path.read_bytes().split(b"\0"):
                pids.append(int(path.parent.name))
    return pids


def _guard(mark: str, parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    for _ in range(5):  # one that was just being started gets its environment in a moment
        kill_marked(mark, 10.0)
        time.sleep(0.2)


if __name__ == "__main__":
    _guard(sys.argv[1], int(sys.argv[2]))
