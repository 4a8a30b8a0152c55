"""Is a Parquet file of a run still what was written? Its sha256 says so, to whoever reads it first.

    RUN/shards.jsonl     one line for each file, from just before it has its name
    RUN/manifest.json    the same of every file of a finished stage

Parquet itself would let many a flipped byte pass for data, and a run that is not finished has no manifest yet. Since
the line is there before the file, one without a line is somebody else's, and no data of the run.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from cai.errors import BadInput, brief
from cai.files import write_atomically
from cai.ids import file_digest
from cai.seal import Json, add_line, sealed, sealed_lines


class Sums:
    """The sums of a run's files. `manifest` reads what the run's manifest says now."""

    def __init__(self, folder: Path, manifest: Callable[[], dict[str, Json]]) -> None:
        self._folder, self._manifest = folder, manifest
        self._written: dict[str, set[str]] = {}
        self._is_read = self._is_kept = False
        self._sound: set[str] = set()
        self._damaged: list[str] = []
        self.path = folder / "shards.jsonl"

    def begin(self) -> None:
        """Make shards.jsonl, unless it is there. Where earlier versions kept none, what they wrote goes in as it is.

        Raises CannotWrite, and BadInput if the manifest is damaged.
        """
        if not self.path.exists():
            written = {
                path: self.known(path) or {file_digest(path)} for path in sorted(self._folder.glob("*/*.parquet"))
            }
            records = [
                {"path": self._name(path), "sha256": one} for path, sums in written.items() for one in sorted(sums)
            ]
            write_atomically(self.path, b"".join(json.dumps(sealed(record)).encode() + b"\n" for record in records))
            self._written |= {self._name(path): sums for path, sums in written.items()}
            self._is_kept = True

    def add(self, path: Path, data: bytes) -> None:
        """Write down what a file is about to hold. Raises CannotWrite, and BadInput if the manifest is damaged."""
        sha256, known = hashlib.sha256(data).hexdigest(), self.known(path)
        if sha256 not in known:
            add_line(self.path, {"path": self._name(path), "sha256": sha256})
            known.add(sha256)

    def names(self, path: Path) -> bool:
        """Whether a file with this name was written by cai. Where nobody wrote that down, any was."""
        return bool(self.known(path)) or not self._is_kept

    def check(self, path: Path) -> None:
        """Raise BadInput unless the file is as it was written, and the manifest sound; each is looked at once."""
        if self._name(path) not in self._sound:
            self.of(path)

    def of(self, path: Path) -> str:
        """The sha256 of a file now. Raises BadInput unless it is one that was written, and the manifest sound."""
        try:
            found = file_digest(path)
        except FileNotFoundError as error:
            remedy = "Leave the folder alone while a command reads it, and give the command again."
            raise BadInput(str(path), "no such file any more", "the one that was there", remedy) from error
        except OSError as error:
            raise damaged_shard(path, error) from error
        if not self._is_one_of(path, found):
            self._is_read = False  # it may have been written just now, by another process
            if not self.names(path):
                raise stray(path)
            if not self._is_one_of(path, found):
                raise damaged_shard(path, "its bytes are not those that were written")
        self._sound.add(self._name(path))
        return found

    def known(self, path: Path) -> set[str]:
        """Every sha256 that a file was written with; none where nobody wrote it down, as earlier versions did not.

        A kill may come between the line in shards.jsonl and the file's name, so the one before counts as well. Raises
        BadInput if the manifest is damaged.
        """
        self._read()
        return self._written.setdefault(self._name(path), set())

    def written(self) -> list[str]:
        """The names of all files that have a sha256. Raises BadInput if the manifest is damaged."""
        self._read()
        return sorted(name for name, sums in self._written.items() if sums)

    def damaged_lines(self) -> list[str]:
        """The lines of shards.jsonl that are damaged. Raises BadInput if the manifest is."""
        self._read()
        return self._damaged

    def _read(self) -> None:
        if not self._is_read:
            self._is_kept, self._damaged = self.path.exists(), []
            files = (file for entry in self._manifest().values() for file in entry.get("files", ()))
            for one in (*sealed_lines(self.path, set(), self._damaged), *files):
                self._written.setdefault(one["path"], set()).add(one["sha256"])
            self._is_read = True

    def _is_one_of(self, path: Path, sha256: str) -> bool:
        return sha256 in self.known(path) if self.known(path) else self.names(path)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._folder))


def damaged_shard(path: Path, error: Exception | str) -> BadInput:
    """What to say of a file that is not what was written."""
    why = error if isinstance(error, str) else brief(error)
    remedy = "Remove it and give the command that made it again; its calls are in the journal."
    return BadInput(str(path), f"a damaged shard ({why})", "what cai wrote", remedy)


def stray(path: Path) -> BadInput:
    """What to say of a file that lies among a run's own and is none of them."""
    remedy = "Move it away; should the run lack it then, the command that made the run makes it again."
    return BadInput(str(path), "a file that is none of this run's", "what cai wrote, and nothing else", remedy)
