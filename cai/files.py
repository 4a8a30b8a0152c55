"""Where files come from and how they are written: the user's first, then those that travel with the package."""

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from cai.errors import CannotWrite

_PACKAGE = Path(__file__).parent
# In a wheel the shipped folders lie in cai/shipped; in a checkout they are the folders at its top.
_SHIPPED = _PACKAGE / "shipped" if (_PACKAGE / "shipped").is_dir() else _PACKAGE.parent


def find_shipped(folder: str, name: str, suffix: str) -> Path | None:
    """The file that `name` means: a path as it stands, else NAME in the user's `folder`, else the one that is shipped.

    `folder` is relative to the current folder and to the shipped files alike ("constitutions", "prompts"), so that a
    file of the user with a shipped name comes first. None if there is no such file.
    """
    with_suffix = name if name.endswith(suffix) else name + suffix
    return Path(name) if Path(name).is_file() else find_in([Path(folder)], with_suffix)


def find_in(folders: Iterable[Path], name: str) -> Path | None:
    """The first file called `name` in these folders, each taken as it stands and then among the shipped ones."""
    places = [folder / name for folder in folders]
    return next((path for path in (*places, *(_SHIPPED / place for place in places)) if path.is_file()), None)


def shipped_names(folder: str, suffix: str) -> list[str]:
    """The names that `find_shipped` knows in `folder`, for an error that lists them."""
    found = [path for root in (Path(folder), _SHIPPED / folder) for path in root.glob(f"*{suffix}")]
    return sorted({path.name.removesuffix(suffix) for path in found})


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Name the file in the error if it cannot be written. Raises CannotWrite."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(str(path), error) from error


def no_link(path: str, flags: int) -> int:
    """An `opener` for `open` that opens no file through a link that has its name: another one would be written."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the name, sync, rename: a finished name means a finished file, also after a power cut.

    Raises CannotWrite, and then what was written so far makes room again.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            with suppress(FileNotFoundError):
                scratch.unlink()  # left by a killed process; or a link, and what it leads to is somebody's
            with scratch.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        except OSError:
            with suppress(OSError):
                scratch.unlink()
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder, which holds the names of its files. Raises OSError."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
