"""A folder that one process holds while it writes there; and one that appears in one piece, or not at all, and never
takes the place of somebody else's files."""

import errno
import json
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai import lock
from cai.errors import BadInput, CannotWrite
from cai.ids import file_digest
from cai.seal import SIGNATURE


def refuse_other_files(out: Path, kind: str) -> None:
    """Raise BadInput if `out` holds anything that an earlier export did not write, or that was changed since.

    `kind` is what the manifest.json of such a folder says it is.
    """
    killed = not out.exists() and _beside(out, "old").is_dir()
    there = _beside(out, "old") if killed else out  # between its two renames
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BadInput(f"--out {out}", "a file or a link", "a folder", "Choose another --out.")
    try:
        manifest: Any = json.loads((there / "manifest.json").read_bytes())
        ours = {file["path"]: file["sha256"] for file in manifest["files"]} if manifest["kind"] == kind else {}
    except (OSError, ValueError, KeyError, TypeError):
        ours = {}
    for path in there.rglob("*"):  # one by one: somebody else's folder may be large
        name = path.relative_to(there).as_posix()
        if (path.is_dir() and not path.is_symlink()) or (ours and name in ("manifest.json", SIGNATURE)):
            continue
        if name not in ours or path.is_symlink() or file_digest(path) != ours[name]:
            found = "a file of somebody else's" if name not in ours else "a file that was changed since it was exported"
            raise BadInput(
                f"--out {out}", f"{found} ({name})", "a new folder, or an export as it was written",
                "Choose another --out, or move the file away.",
            )  # fmt: skip


@contextmanager
def new_folder(out: Path, lock_beside: Path | None = None) -> Generator[Path]:
    """A scratch folder beside `out` that takes its place at the end; on an error it is removed and `out` stays.

    One process at a time makes it; with `lock_beside`, one at a time of all that name the same folder there.

    Raises BadInput if `out` cannot be written or replaced or another process is making it, CannotWrite if the disk is
    full.
    """
    scratch, old, lock_file = _beside(out, "new"), _beside(out, "old"), _beside(lock_beside or out, "lock")
    held = hold(lock_file, out, "a folder", "is writing", "Wait for it, or choose another --out.")
    made = [folder for folder in scratch.parents if not folder.exists()]
    try:
        with _making(out):
            _finish_swap(out)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        yield scratch
        with _making(out):
            if out.exists():
                shutil.rmtree(old, ignore_errors=True)  # left by an export that was killed after its renames
                os.replace(out, old)
            os.replace(scratch, out)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        _remove_empty(made)
        held.let_go(remove=True)


@contextmanager
def _making(out: Path) -> Generator[None]:
    """What is done to the folder itself; an error in what it holds is not of its making."""
    try:
        yield
    except OSError as error:
        _finish_swap(out)
        raise cannot_make(out, error) from error


@dataclass(frozen=True, slots=True)
class Hold:
    """A folder's lock file that this process holds, and the folders that were made for it."""

    file: Path
    descriptor: int
    made: Sequence[Path]

    def is_there(self) -> bool:
        """Whether the lock file still is the one that was taken."""
        return lock.is_at(self.descriptor, self.file)

    def let_go(self, remove: bool) -> None:
        """Give it back, and with `remove` leave nothing of what was made for it."""
        lock.let_go(self.descriptor, self.file, remove)
        if remove:
            _remove_empty(self.made)


def begun_for(path: Path) -> Path | None:
    """The folder that the scratch folder `path` was to become; None if it is no scratch folder."""
    name = path.name.removeprefix(".").removesuffix(".cai-new")
    is_scratch = path.name == f".{name}.cai-new" and path.is_dir() and not path.is_symlink()
    return path.with_name(name) if is_scratch else None


def hold(file: Path, out: Path, what: str, doing: str, remedy: str) -> Hold:
    """Take the lock file of the folder `out`, made together with its folders if need be.

    Raises BadInput if another process has it (`what` that process `doing`), or if it may not be made, CannotWrite if
    the disk is full.
    """
    made = [folder for folder in file.parents if not folder.exists()]
    try:
        return Hold(file, lock.take(file), made)
    except lock.Held as other:
        found = f"{what} that process {other.pid} {doing}"
        raise BadInput(f"--out {out}", found, "a free one", remedy) from None
    except OSError as error:
        _remove_empty(made)
        raise cannot_make(out, error) from error


def cannot_make(folder: Path, error: OSError) -> BadInput | CannotWrite:
    """Why a folder that --out names could not be made, taken or replaced."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CannotWrite(str(folder), error)
    found = f"a folder that cannot be written or replaced ({error.strerror or error})"
    return BadInput(f"--out {folder}", found, "a writable folder, no mount point", "Choose another --out.")


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):  # one that somebody has put something into stays
        for folder in folders:
            folder.rmdir()


def _finish_swap(out: Path) -> None:
    """Where an export was killed between its two renames, give the earlier one its name back."""
    if _beside(out, "old").is_dir() and not out.exists():
        os.replace(_beside(out, "old"), out)


def _beside(out: Path, what: str) -> Path:
    return out.absolute().parent / f".{out.absolute().name}.cai-{what}"
