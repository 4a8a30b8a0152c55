"""What lies in a folder that is looked at, before any of it is opened."""

import os
from collections.abc import Iterator
from pathlib import Path

NO_FILE = "a named pipe or a device, which is not opened"


def unopenable(folder: Path) -> list[Path]:
    """What in a folder is neither a file nor a folder, nor a link to one: who opens a named pipe waits for ever."""
    return [path for path in files_below(folder) if path.exists() and not path.is_file() and not path.is_dir()]


def files_below(folder: Path) -> Iterator[Path]:
    """All files and links below a folder, in order; a link to a folder is a link."""
    for path, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if (Path(path) / name).is_symlink()]
        yield from (Path(path) / name for name in sorted([*files, *links]))


def empty_folders(folder: Path) -> list[Path]:
    """The folders below a folder in which nothing lies."""
    return sorted(Path(path) for path, folders, files in os.walk(folder) if not folders and not files)
