"""Everything that cai does to the disk below a folder, seen just before it is done, so that it can fail or be the last.

Seen are files made, bytes written, syncs, renames and folders made: what `open`, `write`, `pwrite`, `fsync`, `replace`
and `mkdir` do. Removing is not, nor what a library writes by itself.
"""

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CREATES = os.O_CREAT | os.O_WRONLY | os.O_RDWR


class Writes(ABC):
    """Calls `use` before each thing that is done below `folder`, while `seen` is entered."""

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.abspath(folder)
        self._open: dict[int, str] = {}

    @abstractmethod
    def use(self, what: str, path: str) -> bool:
        """`what` is about to be done to `path`. True for a write of which only the first half shall be done."""

    def cut(self) -> None:  # noqa: B027
        """Half of a write has been done."""

    def holds(self, path: str) -> bool:
        """Whether a path counts."""
        return f"{path}{os.sep}".startswith(self.folder + os.sep)

    @contextmanager
    def seen(self) -> Generator[None]:
        real = {name: getattr(os, name) for name in ("open", "write", "pwrite", "fsync", "replace", "mkdir")}
        real_open = io.open
        try:
            for name, function in real.items():
                setattr(os, name, self._watched(name, function))
            io.open = self._open_file
            yield
        finally:
            for name, function in real.items():
                setattr(os, name, function)
            io.open = real_open
            self._open.clear()

    def write(self, path: str, real: Any, data: Any, *rest: Any) -> int:
        if not self.use("write", path) or len(data) < 2:
            return real(data, *rest)
        done = real(data[: len(data) // 2], *rest)
        self.cut()
        return done

    def _path(self, given: Any) -> str | None:
        """The path, if it counts."""
        path = None if isinstance(given, int) else os.path.abspath(os.fspath(given))
        return path if path is not None and self.holds(path) else None

    def _watched(self, name: str, real: Any) -> Any:
        def opened(given: Any, flags: int, *rest: Any, **more: Any) -> int:
            path = self._path(given) if flags & _CREATES else None
            if path is not None and not os.path.exists(path):
                self.use("open", path)
            file = real(given, flags, *rest, **more)
            self._open.pop(file, None)
            if path is not None:
                self._open[file] = path
            return file

        def written(file: int, data: bytes, *rest: Any) -> int:
            if file not in self._open:
                return real(file, data, *rest)
            return self.write(self._open[file], lambda part, *at: real(file, part, *at), data, *rest)

        def synced(file: int) -> None:
            # Nothing here cuts the power, so the disk is not waited for.
            self.use("fsync", self._open.get(file, self.folder))

        def named(given: Any, *rest: Any, **more: Any) -> None:
            path = self._path(rest[0] if name == "replace" else given)
            if path is not None:
                self.use(name, path)
            real(given, *rest, **more)

        return {"open": opened, "write": written, "pwrite": written, "fsync": synced}.get(name, named)

    def _open_file(self, given: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        path = self._path(given) if set(mode) & set("wax+") else None
        if path is None:
            return open(given, mode, *rest, **more)
        assert "b" in mode, "all that cai writes is written as bytes"
        if not os.path.exists(path):
            self.use("open", path)
        raw = _File(self, path, mode)
        return raw if more.get("buffering") == 0 or rest[:1] == (0,) else io.BufferedWriter(raw)


class _File(io.FileIO):
    def __init__(self, writes: Writes, path: str, mode: str) -> None:
        self._writes, self._told = writes, path
        super().__init__(path, mode)

    def write(self, data: Any) -> int:
        return self._writes.write(self._told, super().write, bytes(data))
