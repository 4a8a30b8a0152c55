"""A disk that fills up, or may not be written any more, from the n-th thing on that is done to it."""

import errno
import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CREATES = os.O_CREAT | os.O_WRONLY | os.O_RDWR


class Disk:
    """Counts what is written below `folder`: files made, bytes written, syncs, renames, folders made.

    The `last` of these still works, by half if it is a write, and all that come after it fail. Removing never does, and
    what lies elsewhere is another disk.
    """

    def __init__(self, folder: Path, code: int = errno.ENOSPC) -> None:
        self.folder, self.code = str(folder), code
        self.done, self.last = 0, 1 << 60
        self._ours: set[int] = set()

    @contextmanager
    def full_after(self, last: int) -> Generator[None]:
        """Let `last` things be done, and no more."""
        self.done, self.last = 0, last
        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "write", "pwrite", "fsync", "replace", "mkdir"):
                patch.setattr(os, name, self._faulty(name, getattr(os, name)))
            patch.setattr(io, "open", self._open_file)
            yield
        self._ours.clear()

    def use(self) -> None:
        """One more thing that is done. Raises OSError if there is no room for it."""
        self.done += 1
        if self.done > self.last:
            raise OSError(self.code, os.strerror(self.code))

    def write(self, real: Any, data: Any, *rest: Any) -> int:
        self.use()
        if self.done == self.last and len(data) > 1:
            data = data[: len(data) // 2]
        return real(data, *rest)

    def _holds(self, path: Any) -> bool:
        return not isinstance(path, int) and f"{os.fspath(path)}{os.sep}".startswith(self.folder + os.sep)

    def _faulty(self, name: str, real: Any) -> Any:
        def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            ours = self._holds(path) and bool(flags & CREATES)
            if ours and not os.path.exists(path):
                self.use()
            file = real(path, flags, *rest, **more)
            self._ours.discard(file)
            if ours:
                self._ours.add(file)
            return file

        def written(file: int, data: bytes, *rest: Any) -> int:
            if file not in self._ours:
                return real(file, data, *rest)
            return self.write(lambda part, *at: real(file, part, *at), data, *rest)

        def synced(file: int) -> None:
            self.use()  # no test cuts the power, so nothing needs to be waited for

        def named(path: Any, *rest: Any, **more: Any) -> None:
            if self._holds(path):
                self.use()
            real(path, *rest, **more)

        return {"open": opened, "write": written, "pwrite": written, "fsync": synced}.get(name, named)

    def _open_file(self, path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if not self._holds(path) or not set(mode) & set("wax+"):
            return open(path, mode, *rest, **more)
        if not os.path.exists(path):
            self.use()
        raw = _File(self, path, mode)
        return raw if more.get("buffering") == 0 or rest[:1] == (0,) else io.BufferedWriter(raw)


class _File(io.FileIO):
    def __init__(self, disk: Disk, path: Any, mode: str) -> None:
        assert "b" in mode, "all that cai writes is written as bytes"
        self._disk = disk
        super().__init__(path, mode)

    def write(self, data: Any) -> int:
        return self._disk.write(super().write, bytes(data))
