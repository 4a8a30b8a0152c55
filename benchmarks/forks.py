"""A process that has loaded what cai needs, and forks one of its commands whenever it is asked to.

Loading takes seconds and writes nothing. Whoever starts cai many times, to kill it, would wait for that most of all.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

from benchmarks.writes import Writes

# Something that is done to the disk, and the how manieth time that it is.
Act = tuple[str, int]


class Forks:
    """Starts `cai` with everything loaded. Use it as a context; leaving it ends what was started."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.forks"]
        root = Path(__file__).parent.parent
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, start_new_session=True
        )
        self._codes: dict[int, int | None] = {}
        self._ask({})
        return self

    def __exit__(self, *_: object) -> None:
        for pid in (pid for pid, code in self._codes.items() if code is None):
            os.kill(pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(self, folder: Path, arguments: list[str], note: Path | None = None, last: Act | None = None) -> int:
        """Begin a command in a folder, where its output goes to the end of log.txt; returns its pid.

        With `note` everything that it does to the disk is written down there when it ends. With `last`, that is the
        last thing that it does: it is killed, in the middle of it if it is a write.
        """
        told = {"folder": str(folder), "arguments": arguments}
        pid = self._ask(told | ({"note": str(note)} if note else {}) | ({"last": last} if last else {}))
        self._codes[pid] = None
        return pid

    def ended(self, pid: int, seconds: float | None = None) -> int | None:
        """The exit code of a command (-9 if it was killed), or None if it is still running after so many seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while self._codes[pid] is None:
            self._codes[pid] = self._ask({"pid": pid})
            if self._codes[pid] is None and deadline is not None and time.monotonic() >= deadline:
                break
            time.sleep(0.002)
        return self._codes[pid]

    def _ask(self, order: dict[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _serve() -> None:
    # What the stages load only when they need it.
    import datasets  # noqa: F401
    import datasketch  # noqa: F401
    import sklearn.linear_model
    import sklearn.model_selection  # noqa: F401

    import cai.cli  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        answer: int | None = 0
        if "arguments" in order:
            answer = os.fork() or _become(order)
        elif "pid" in order:
            pid, status = os.waitpid(order["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


def _become(order: dict[str, Any]) -> int:
    """Be the command, in the child; does not return."""
    from cai.__main__ import main

    os.chdir(order["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that began us in the background had it ignored
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file, place in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(file, place)
    sys.argv = ["cai", *order["arguments"]]
    acts = _Acts(Path(order["folder"]), order.get("last"))
    code: Any = 1
    try:
        with acts.seen() if {"note", "last"} & order.keys() else nullcontext():
            main()
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        if "note" in order:
            Path(order["note"]).write_text("".join(f"{act}\n" for act in acts.done))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


class _Acts(Writes):
    """What is done to the disk, as "write run/journal/part-*.jsonl", and the one that is the last."""

    def __init__(self, folder: Path, last: Act | None) -> None:
        super().__init__(folder)
        self.done: list[str] = []
        self._last = tuple(last) if last is not None else None
        self._times: Counter[str] = Counter()

    def holds(self, path: str) -> bool:
        name = os.path.relpath(path, self.folder)
        return super().holds(path) and (os.sep in name or not name.endswith((".txt", ".yaml", ".jsonl")))

    def use(self, what: str, path: str) -> bool:
        act = f"{what} {re.sub('[0-9a-f]{8,}|[0-9]+', '*', os.path.relpath(path, self.folder))}"
        self.done.append(act)
        self._times[act] += 1
        if (act, self._times[act]) != self._last:
            return False
        if what != "write":
            self.cut()
        return True

    def cut(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _serve()
