"""A process that has loaded what cai needs, and forks one of its commands whenever it is asked to.

Loading takes seconds and writes nothing. Whoever starts cai many times, to kill it, would wait for that most of all.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self


class Forks:
    """Starts `cai` with everything loaded. Use it as a context; leaving it ends what was started."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.forks"]
        root = Path(__file__).parent.parent
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, start_new_session=True
        )
        self._running: set[int] = set()
        self._ask({})
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._running:
            os.kill(pid, 9)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(self, folder: Path, arguments: list[str]) -> int:
        """Begin a command in a folder, where its output goes to the end of log.txt; returns its pid."""
        pid = self._ask({"folder": str(folder), "arguments": arguments})
        self._running.add(pid)
        return pid

    def ended(self, pid: int, seconds: float | None = None) -> int | None:
        """The exit code of a command (-9 if it was killed), or None if it is still running after so many seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while (code := self._ask({"pid": pid})) is None and (deadline is None or time.monotonic() < deadline):
            time.sleep(0.002)
        if code is not None:
            self._running.discard(pid)
        return code

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
            answer = os.fork() or _become(Path(order["folder"]), order["arguments"])
        elif "pid" in order:
            pid, status = os.waitpid(order["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


def _become(folder: Path, arguments: list[str]) -> int:
    """Be the command, in the child; does not return."""
    from cai.__main__ import main

    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that began us in the background had it ignored
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file, place in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(file, place)
    sys.argv = ["cai", *arguments]
    code: Any = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _serve()
