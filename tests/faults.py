"""A disk that fills up, or may not be written any more, from the n-th thing on that is done to it; or a process that is
killed there."""

import errno
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.writes import Writes
from cai import lock


class Disk(Writes):
    """Counts what is done below `folder`. The `last` of it still works, by half if it is a write, and all that comes
    after fails. Removing never does, and what lies elsewhere is another disk."""

    def __init__(self, folder: Path, code: int = errno.ENOSPC) -> None:
        super().__init__(folder)
        self.code = code
        self.done, self.last = 0, 1 << 60

    @contextmanager
    def full_after(self, last: int) -> Generator[None]:
        """Let `last` things be done, and no more."""
        self.done, self.last = 0, last
        with self.seen():
            yield

    def use(self, what: str, path: str) -> bool:
        self.done += 1
        if self.done > self.last:
            raise OSError(self.code, os.strerror(self.code))
        return self.done == self.last


class Killed(BaseException):
    """The process is no more: nobody clears anything up."""


class Kill(Writes):
    """Counts what is done below `folder`, and ends the process at the `last` of it, in the middle if it is a write.

    What is written into a lock file does not count; that it is let go of does, as the last thing that a command does.
    The kernel lets go of a lock when its process ends, and what stands in the file stays there, as it does here.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.done, self.last = 0, 1 << 60

    @contextmanager
    def at(self, last: int) -> Generator[None]:
        self.done, self.last = 0, last
        let_go = lock.let_go

        def ended(descriptor: int, path: Path, remove: bool) -> None:
            if not Writes.holds(self, os.path.abspath(path)):
                return let_go(descriptor, path, remove)
            was_dead = self.done >= self.last
            self.done += not was_dead
            if self.done < self.last:
                return let_go(descriptor, path, remove)
            os.close(descriptor)
            if not was_dead:
                raise Killed

        lock.let_go = ended
        try:
            with self.seen():
                yield
        finally:
            lock.let_go = let_go

    def use(self, what: str, path: str) -> bool:
        self.done += 1
        if self.done > self.last or (self.done == self.last and what != "write"):
            raise Killed
        return self.done == self.last

    def cut(self) -> None:
        raise Killed

    def holds(self, path: str) -> bool:
        return super().holds(path) and not path.endswith("lock")
