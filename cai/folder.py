"""A folder that appears in one piece, or not at all, and never takes the place of somebody else's files."""

import errno
import json
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cai import lock
from cai.errors import BadInput, CannotWrite
from cai.ids import file_digest


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
        if (path.is_dir() and not path.is_symlink()) or (ours and name == "manifest.json"):
            continue
        if name not in ours or path.is_symlink() or file_digest(path) != ours[name]:
            found = "a file of somebody else's" if name not in ours else "a file that was changed since it was exported"
            raise BadInput(
                f"--out {out}", f"{found} ({name})", "a new folder, or an export as it was written",
                "Choose another --out, or move the file away.",
            )  # fmt: skip


@contextmanager
def new_folder(out: Path) -> Generator[Path]:
    """A scratch folder beside `out` that takes its place at the end; on an error it is removed and `out` stays.

    Raises BadInput if `out` cannot be written or replaced or another process is making it, CannotWrite if the disk is
    full.
    """
    scratch, old, lock_file = _beside(out, "new"), _beside(out, "old"), _beside(out, "lock")
    made = [folder for folder in scratch.parents if not folder.exists()]
    try:
        held = lock.take(lock_file)
    except lock.Held as other:
        found = f"a folder that process {other.pid} is writing"
        raise BadInput(f"--out {out}", found, "a free one", "Wait for it, or choose another --out.") from None
    except OSError as error:
        _remove_empty(made)
        raise cannot_make(out, error) from error
    try:
        _finish_swap(out)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        yield scratch
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)  # left by an export that was killed after its renames
            os.replace(out, old)
        os.replace(scratch, out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        _finish_swap(out)
        raise cannot_make(out, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        lock.let_go(held, lock_file, remove=True)
        _remove_empty(made)


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
