"""A folder that appears in one piece, or not at all, and never takes the place of somebody else's files."""

import fcntl
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cai.errors import BadInput
from cai.ids import file_digest


def refuse_other_files(out: Path, kind: str) -> None:
    """Raise BadInput if `out` holds anything that an earlier export did not write, or that was changed since.

    `kind` is what the manifest.json of such a folder says it is.
    """
    _finish_swap(out)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BadInput(f"--out {out}", "a file or a link", "a folder", "Choose another --out.")
    try:
        manifest: Any = json.loads((out / "manifest.json").read_bytes())
        ours = {file["path"]: file["sha256"] for file in manifest["files"]} if manifest["kind"] == kind else {}
    except (OSError, ValueError, KeyError, TypeError):
        ours = {}
    for path in out.rglob("*"):  # one by one: somebody else's folder may be large
        name = path.relative_to(out).as_posix()
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

    Raises BadInput if `out` cannot be written or replaced, or another process is making it.
    """
    scratch, old = _beside(out, "new"), _beside(out, "old")
    try:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(_beside(out, "lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            found, remedy = "a folder that another export is writing", "Wait for it, or choose another --out."
            raise BadInput(f"--out {out}", found, "a free one", remedy) from error
        try:
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
            raise _unwritable(out, error) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            _beside(out, "lock").unlink(missing_ok=True)
    finally:
        os.close(lock)


def _unwritable(out: Path, error: OSError) -> BadInput:
    found = f"a folder that cannot be written or replaced ({error.strerror})"
    return BadInput(f"--out {out}", found, "a writable folder, no mount point", "Choose another --out.")


def _finish_swap(out: Path) -> None:
    """Where an export was killed between its two renames, give the earlier one its name back."""
    if _beside(out, "old").is_dir() and not out.exists():
        os.replace(_beside(out, "old"), out)


def _beside(out: Path, what: str) -> Path:
    return out.absolute().parent / f".{out.absolute().name}.cai-{what}"
