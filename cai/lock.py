"""A file that one process holds at a time, and in which the others read which one it is.

The kernel lets go of the lock when the process ends, however it ends: what a killed one left is taken over.
"""

import errno
import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from cai.errors import CannotWrite

# How often to look again, and how long between, where the holder has not written down its pid yet, or is just removing
# the folder. Counted, not timed: a machine with too much to do may stop either process for seconds.
_TRIES = 100
_PAUSE_SECONDS = 0.02


class Held(Exception):
    """Another process has the file; `pid` is its number, or "unknown"."""

    def __init__(self, pid: str) -> None:
        super().__init__(pid)
        self.pid = pid


def take(path: Path) -> int:
    """Take the lock file, made together with its folder if need be; returns its descriptor, for `let_go`.

    Raises Held if another process has it, CannotWrite if it is a link, OSError if it cannot be made or written.
    """
    for left in reversed(range(_TRIES)):
        with suppress(FileNotFoundError):  # the folder was removed since: by whoever had made it for nothing
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _opened(path)
            if _is_free(lock, path, is_last_try=left == 0):
                if os.fstat(lock).st_nlink > 1:  # somebody's file has this name too: leave it to them, as it is
                    path.unlink()
                    os.close(lock)
                    continue
                with _given_back_on_error(lock, path):
                    os.ftruncate(lock, 0)
                    os.pwrite(lock, str(os.getpid()).encode(), 0)
                return lock
        time.sleep(_PAUSE_SECONDS)
    raise FileNotFoundError(errno.ENOENT, "the folder comes and goes", str(path))


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:  # in a shared folder, a link to whatever its owner wants to see emptied
            raise CannotWrite(str(path), error) from None
        raise


def _is_free(lock: int, path: Path, is_last_try: bool) -> bool:
    """Whether the file is ours now. If not it is closed. Raises Held if a process that lives has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(lock, path):
            return True
        os.close(lock)  # the file of a process that has just let go of it and removed it
    except BlockingIOError:
        pid = os.pread(lock, 32, 0).decode("ascii", "replace")
        os.close(lock)
        if _lives(pid) or is_last_try:
            raise Held(pid or "unknown") from None
    except OSError:
        os.close(lock)
        raise
    return False


@contextmanager
def _given_back_on_error(lock: int, path: Path) -> Generator[None]:
    try:
        yield
    except OSError:
        let_go(lock, path, remove=True)
        raise


def is_at(lock: int, path: Path) -> bool:
    """Whether the open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except OSError:
        return False


def let_go(lock: int, path: Path, remove: bool) -> None:
    """Give the lock back, and with `remove` the file's name too if it still is this file's."""
    with suppress(OSError):
        if remove and is_at(lock, path):
            path.unlink()
        os.ftruncate(lock, 0)  # nobody shall read there who held it once
    os.close(lock)


def _lives(pid: str) -> bool:
    """Whether a process has this number. None has if the holder has not written its own yet, over a dead one's."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
