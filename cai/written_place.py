"""Where a report, a summary, a picture or a constitution may be written: outside of runs and datasets."""

from pathlib import Path

from cai.errors import BadInput
from cai.lineage import is_dataset


def check_file_place(option: str, file: str) -> None:
    """Raise BadInput if a file that a person has named cannot be written, or would be a stranger in a run or a dataset:
    `cai verify` would find it, and `cai sign` refuse the folder."""
    place = f"{option} {file}"
    folder = Path(file).absolute().parent
    if Path(file).is_dir():
        raise BadInput(place, "a folder", "a file", f"Choose another {option}.")
    if not folder.is_dir():
        raise BadInput(place, "no such folder", "a folder that is there", "Make it first.")
    for above in (folder.resolve(), *folder.resolve().parents):
        what = "run" if _is_run(above) else "dataset" if is_dataset(above) else None
        if what is not None:
            expected = f"a place outside of it: a {what} holds what its commands wrote, and nothing else"
            raise BadInput(place, f"a place in the {what} {above}", expected, f"Choose another {option}.")


def _is_run(folder: Path) -> bool:
    # Other programs have a settings.json, too; a run has both from before its first row.
    return (folder / "settings.json").is_file() and (folder / "manifest.json").is_file()
