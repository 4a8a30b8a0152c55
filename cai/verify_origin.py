"""Which run is a dataset held against, and is it the one that it was made of?

The search is that of `cai show`, see `lineage`. But `cai verify` has to prove something: no run passes for the
dataset's by its name, its place or somebody's word alone, and every doubt is a finding.
"""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from cai.candidates import HELPFUL
from cai.dataset import SPLITS, rows_of
from cai.errors import BadInput
from cai.findings import Findings
from cai.lineage import Exported, Origin, is_unchanged, named_run, run_of
from cai.pairs import ROW_TABLES
from cai.seal import Json
from cai.store import Run
from cai.verify_folder import NO_FILE, unopenable

# That very run may have been given already.
_REMEDY = "Give --run RUN if its run lies elsewhere; if that was made anew (cai label --replace), export it once more."


def find_run(
    folder: Path, manifest: Json, given: Path | None, findings: Findings, beside: Sequence[Path]
) -> Origin | None:
    """The run to hold a dataset against: the one that is `given`, or that one of those `beside` which it was made of,
    or else the one that its manifest leads to. None if there is none, and then something has been said."""
    dataset = Exported(folder, manifest)
    near = None if given is not None else _among(beside, dataset)
    place = given or near or _place_of(dataset)
    if place is None or not (place / "settings.json").is_file():
        if given is not None:
            findings.differ(given, "no run", "the run that the dataset was made of")
            return None
        findings.note(
            f"{folder}: NOT CHECKED against its run, which is not where it was ({_told(manifest)}): whether each row "
            "has its trace there, the constitutions' text in the card, and most numbers of its manifest. Give --run "
            "RUN."
        )
        return None
    if waiting := unopenable(place):
        findings.differ(waiting[0], NO_FILE, "a file of the run that the dataset was made of")
        return None
    run = Run(place)
    origin = Origin(run, is_unchanged(dataset, run))
    if not _is_its_run(origin, dataset, given is not None, findings):
        return None
    if beside and given is None and near is None:
        findings.note(
            f"{folder}: none of the runs that were given with it is the one that it was made of; that was looked "
            f"for, and found in {run.folder}."
        )
    return origin


def _among(runs: Sequence[Path], dataset: Exported) -> Path | None:
    """The one of these runs that the dataset was made of: its manifest has the digest that the dataset's names, or else
    commands have worked on it since. Of several like that, the one that is called as it was."""
    if not runs:
        return None
    name = Path(named_run(dataset) or "").name
    with suppress(BadInput, OSError):
        return run_of(dataset, sorted(map(str, runs), key=lambda one: Path(one).name != name)).run.folder
    return None


def _told(manifest: Json) -> str:
    words = shlex.split(manifest["command"])
    return words[2] if len(words) > 2 else "the manifest does not say where"


def _place_of(dataset: Exported) -> Path | None:
    """The run that the dataset was made of, in any of the places where `cai show` looks; else the one that the command
    in the manifest names, from where the command was given or from the current folder."""
    with suppress(BadInput, OSError):
        origin = run_of(dataset)
        if origin.as_it_was:
            return origin.run.folder
    words = shlex.split(dataset.manifest["command"])
    if len(words) < 3:
        return None
    run, out = Path(words[2]), next((Path(b) for a, b in pairwise(words) if a == "--out"), None)
    home = dataset.folder.absolute()
    if dataset.manifest.get("version"):
        home = home.parent
    # A dataset that was written to a/b from a folder, and lies in /x/a/b, was written from /x.
    if not run.is_absolute() and out is not None and not out.is_absolute():
        parts = [part for part in out.parts if part != "."]
        if parts and ".." not in parts and list(home.parts[-len(parts) :]) == parts:
            found = Path(*home.parts[: -len(parts)]) / run
            if (found / "settings.json").is_file():
                return found
    return run if (run / "settings.json").is_file() else None


def _has_a_row(run: Run, folder: Path) -> bool:
    """Whether a dataset has any row of a run, or no row that could be one: another run may have the same name."""
    rows = [
        row["row_id"]
        for config in ("sft", "preference")
        for split in SPLITS
        for row in rows_of(folder, config, split, ["row_id"])
        if not row["row_id"].startswith(HELPFUL)
    ]
    there = {row["row_id"] for table in ROW_TABLES for row in run.records(table, ["row_id"])} if rows else set[str]()
    return not rows or not there.isdisjoint(rows)


def _is_its_run(origin: Origin, dataset: Exported, given: bool, findings: Findings) -> bool:
    """Whether it is the run that the dataset was made of, maybe grown since."""
    run, folder, told = origin.run, dataset.folder, dataset.manifest["run"]
    settings = run.settings()
    for stage, was in told["stages"].items():
        for name in ("models", "texts", "settings"):
            if settings.get(stage, {}).get(name) == was[name]:
                continue
            found = f"a run whose cai {stage} has other {name} than the one that the dataset was made of"
            if given:
                findings.differ(run.folder, found, "that run")
            else:
                findings.note(f"{folder}: NOT CHECKED against its run: {run.folder} is {found}. {_REMEDY}")
            return False
    if origin.as_it_was:
        findings.looked["manifests of the run, by their sha256"] += 1
        return True
    if not given and not _has_a_row(run, folder):
        found = "one that has none of its rows"
        findings.note(f"{folder}: NOT CHECKED against its run: {run.folder} is {found}. {_REMEDY}")
        return False
    were = [f"cai {stage}" for stage, was in told["stages"].items() if was["finished"]]
    if were and not (run.folder / "manifest.json").is_file():
        # A run that is worked on has one too, without the stages that are not finished.
        expected = f"the one of the run, of which {' and '.join(were)} had been finished for {folder.name}"
        findings.differ(run.folder / "manifest.json", "no such file", expected)
        return True
    findings.note(
        f"{folder}: the run {run.folder} has another manifest than when this was exported, so commands have worked "
        "on it since (or somebody has changed it: cai verify on the run tells), and what was counted of it "
        "then cannot be counted anew."
    )
    return True
