"""From a run to datasets that trainers load: pick, clean, split, write, describe.

    tables of the run -> answers and decided pairs -> hygiene -> splits -> Parquet, views, README.md, manifest.json

Every row is either written or counted under the reason for which it was left out. Nothing is drawn: the same run and
the same method give the same bytes. The folder appears in one piece under its name, or not at all.
"""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from cai.card import card
from cai.constitution import Constitution, load_constitution
from cai.contents import ExportMethod, GoOn, make_contents
from cai.dataset import KIND, json_text, write_configs, write_text
from cai.errors import BadInput
from cai.folder import new_folder, refuse_other_files
from cai.ids import digest
from cai.seal import Json, sealed
from cai.signing import PrivateKey, sign
from cai.store import Run
from cai.versions import Since, Version, check_versions, last_version, next_version, write_changes
from cai.views import write_view

Say = Callable[[str], None]


def export(
    run: Run, out: Path, method: ExportMethod, command: str, say: Say, go_on: GoOn = lambda: None,
    key: PrivateKey | None = None,
) -> Json:  # fmt: skip
    """Write the datasets of a run to the folder `out`, and return what its manifest.json holds.

    An earlier export in `out` is replaced once the new one is finished. `command` is how a person repeats it; `say` is
    told what they should know; `go_on` is called between the steps, and ends the export by raising an error; with a
    `key` the manifest is signed.

    Raises BadInput if `out` holds anything else, the run nothing to train on, or a file that the method names cannot be
    read, CannotWrite if a file cannot be written.
    """
    check_place(run.folder, out)
    with new_folder(out) as folder, _standing_still(run):
        manifest = _fill(folder, run, method, command, None, say, go_on, key)
        refuse_other_files(out, KIND)  # nobody has put a file there meanwhile
        go_on()
    return manifest


def export_version(
    run: Run, out: Path, method: ExportMethod, command: str, say: Say, go_on: GoOn = lambda: None,
    key: PrivateKey | None = None,
) -> tuple[Path, Json]:  # fmt: skip
    """Write the datasets of a run as the next version in the folder `out`, unless nothing is new since the last one.

    Returns the folder of that version, or of the last one, and what its manifest.json holds. See `export` for the rest.
    """
    check_version_place(run.folder, out, method)
    target = next_version(out)
    try:
        with new_folder(target, lock_beside=out) as folder, _standing_still(run):
            since = Since(target.name, last_version(out))
            manifest = _fill(folder, run, method, command, since, say, go_on, key)
            if target.exists():  # another process was quicker to the lock, and is done
                found = "a folder that was not there a moment ago"
                raise BadInput(str(target), found, "none yet", "Give the command again.")
            go_on()
    except _NothingNew as same:
        say(f"Nothing is new since {same.last.folder}, so no version is written.")
        return same.last.folder, same.last.manifest
    return target, manifest


class _NothingNew(Exception):
    """What would be written is what the last version is."""

    def __init__(self, last: Version) -> None:
        super().__init__(str(last.folder))
        self.last = last


@contextmanager
def _standing_still(run: Run) -> Generator[None]:
    """Raise BadInput if the run is not fit for a dataset, or changes while one is made of it."""
    before = run.manifest()
    _refuse_unfit(run)
    yield
    if run.manifest() != before:
        found, remedy = "a run that has changed meanwhile", "Wait for the command that is working on it."
        raise BadInput(str(run.folder), found, "one that stands still", remedy)


def _fill(
    folder: Path, run: Run, method: ExportMethod, command: str, since: Since | None, say: Say, go_on: GoOn,
    key: PrivateKey | None,
) -> Json:  # fmt: skip
    """Write the datasets into a folder that is empty, and return what the manifest holds. Raises _NothingNew."""
    made = make_contents(run, method, since.splits() if since is not None else {}, go_on)
    tables, manifest = made.tables, made.manifest | {"command": command}
    files = write_configs(folder, tables) + write_view(folder, method.trainer, made.view)
    manifest["content_sha"] = digest([[file["path"], file["sha256"]] for file in files])
    if since is not None:
        manifest["version"], changes = since.told(tables)
        if since.last is not None:
            if not changes and since.last.made_like(manifest):
                raise _NothingNew(since.last)
            files += write_changes(folder, changes)
    for sentence in _worth_saying(manifest):
        say(sentence)
    text = card(manifest, constitutions_of(run))
    manifest["files"] = [*files, write_text(folder, folder / "README.md", text)]
    manifest = sealed(manifest, KIND)
    write_text(folder, folder / "manifest.json", json_text(manifest))
    if key is not None:
        sign(folder, key)
    return manifest


def check_place(run: Path, out: Path) -> None:
    """Raise BadInput if the folder `out` cannot be made, or holds anything but an earlier export: the run, for one."""
    _check_name(run, out)
    refuse_other_files(out, KIND)
    _check_writable(out)


def _check_name(run: Path, out: Path) -> None:
    """Raise BadInput if a dataset in the folder `out` could not be loaded, or would lie around its run."""
    if set(out.name) & set("*?[]"):
        raise BadInput(f"--out {out}", "a pattern", "a name without *, ?, [ and ]", "datasets could not load it.")
    if out.absolute() == run.absolute() or out.absolute() in run.absolute().parents:
        raise BadInput(f"--out {out}", "the run, or a folder that it lies in", "another one", "Choose another --out.")


def check_version_place(run: Path, out: Path, method: ExportMethod) -> None:
    """Raise BadInput if the folder `out` cannot be made, or cannot hold one more version of a run's dataset."""
    _check_name(run, out)
    last = check_versions(out)
    if last is not None and last["method"]["near_duplicates"] != method.near_duplicates:
        was, now = last["method"]["near_duplicates"] or 1, method.near_duplicates or 1
        raise BadInput(
            f"--near-duplicates {now}", f"versions in {out} that were made with {was}", "the same in all of them",
            "Choose another --out: what was put into different splits may be nearly the same now.",
        )  # fmt: skip
    _check_writable(out)


def _check_writable(out: Path) -> None:
    parent = next(one for one in out.absolute().parents if one.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BadInput(f"--out {out}", f"{parent}, which is no writable folder", "one", "Choose another --out.")


def _refuse_unfit(run: Run) -> None:
    """Raise BadInput for gold, which is there to measure with, for labels of which some may be another judge's, and for
    a finished stage that is no more as its manifest says."""
    stages, finished = run.settings(), run.manifest()
    for stage in finished:
        run.check_files(stage)
    if "calibrate" in stages:
        raise BadInput(str(run.folder), "verdicts on gold pairs", "a run to train on", "Gold is for measuring.")
    if "label" in stages and "label" not in finished:
        raise BadInput(str(run.folder), "an unfinished cai label", "a finished one", "Give that command once more.")


def constitutions_of(run: Run) -> list[Constitution]:
    """The constitutions that the run keeps copies of, each once."""
    copies = [run.constitution(path.parent.name) for path in sorted(run.folder.glob("inputs/*/constitution.yaml"))]
    return list({one.sha: one for one in (load_constitution(str(path)) for path in copies if path)}.values())


def _worth_saying(manifest: Json) -> Iterator[str]:
    if manifest["run"]["labels_are_older"]:
        yield "The run has other rows than it was labelled with: give cai label once more to have pairs of all of them."
    for stage, entry in manifest["run"]["stages"].items():
        if not entry["finished"]:
            yield f"cai {stage} is not finished; the dataset holds what is there."
    method = manifest["method"]
    all_taken = "over_helpful_share" not in manifest["counts"]["sft"]["left_out"]
    if method["helpful"] is not None and all_taken and manifest["helpful_share"] < method["helpful_share"] - 0.01:
        yield f"There are too few helpful answers: their share is {manifest['helpful_share']:.1%}."
    for config, entry in manifest["counts"].items():
        if not sum(entry["written"].values()):
            yield f"No rows for {config}."
    if manifest["separability"]["verdict"] == "style":
        yield "Single words tell chosen from rejected answers: these pairs teach style. See the card."
