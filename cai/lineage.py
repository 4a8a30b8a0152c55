"""From an exported row back to its run, and from a run's row to the datasets that it went into.

A dataset's manifest says which run it was made of: the sha256 of that run's manifest, the models, texts and settings of
its stages, and the command, which names the folder. Every row carries the ids that lead back. So nothing has to be
believed: the row that the run would give now is made once more and compared with the one that was exported.
"""

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cai.candidates import HELPFUL, answers_of, cut_off_rows, decided_pair
from cai.dataset import CONFIGS, KIND, Answer, DecidedPair, kto_rows, preference_row, reward_row, sft_row
from cai.errors import BadInput
from cai.ids import file_digest
from cai.pasted import folder_word
from cai.seal import Json
from cai.store import Run

# What of a stage must be the same for a folder to be the run that a dataset names, worked on since.
_ALIKE = ("models", "texts", "settings")


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported dataset, or one version of it: its folder, and what its manifest.json holds."""

    folder: Path
    manifest: Json


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds an exported dataset, or versions of one."""
    return next(_exports(folder), None) is not None


def open_datasets(folder: str) -> list[Exported]:
    """The dataset in a folder, or the versions of one, the latest first. Raises BadInput if there is none."""
    found = list(_exports(Path(folder)))
    if not found:
        remedy = "Check the path."
        raise BadInput(folder, "no exported dataset", "the folder that was --out of a cai export", remedy)
    return found


def _exports(folder: Path) -> Iterator[Exported]:
    for place in (folder, *sorted(folder.glob("v[0-9]*"), reverse=True)):
        try:
            manifest: Any = json.loads((place / "manifest.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(manifest, dict) and manifest.get("kind") == KIND and "files" in manifest:
            yield Exported(place, manifest)


def rows_in(dataset: Exported, names: Iterable[str]) -> list[Json]:
    """The rows of a dataset with one of these ids, a row's or a pair's: config, split, file, row in it, and the row.

    Raises BadInput if a file is not as the manifest has it.
    """
    wanted, found = set(names), list[Json]()
    for config in CONFIGS:
        for path in files_of(dataset, config):
            with pq.ParquetFile(path) as file:
                columns = [name for name in ("row_id", "pair_id") if name in file.schema_arrow.names]
                ids: list[Json] = file.read(columns=columns).to_pylist()
                places = [place for place, one in enumerate(ids) if wanted & set(one.values())]
                rows: list[Json] = file.read().take(places).to_pylist() if places else []
            split = path.name.split("-")[0]
            found += [
                {"config": config, "split": split, "file": str(path), "number": place + 1, "row": row}
                for place, row in zip(places, rows, strict=True)
            ]
    return found


def ids_in(dataset: Exported) -> set[str]:
    """Every id of a row or a pair in a dataset."""
    ids = set[str]()
    for path in chain.from_iterable(files_of(dataset, config) for config in CONFIGS):
        with pq.ParquetFile(path) as file:
            columns = [name for name in ("row_id", "pair_id") if name in file.schema_arrow.names]
            ids.update(value for one in file.read(columns=columns).to_pylist() for value in one.values())
    return ids


def files_of(dataset: Exported, config: str) -> Iterator[Path]:
    """The Parquet files of a config. Raises BadInput if one is not as the manifest has it."""
    for file in dataset.manifest["files"]:
        path = dataset.folder / file["path"]
        if file["path"].startswith(f"{config}/") and path.suffix == ".parquet":
            if not path.is_file() or file_digest(path) != file["sha256"]:
                found = "a file that is not as cai export wrote it, or none"
                remedy = "Restore it, or give the cai export of the dataset's manifest.json once more."
                raise BadInput(str(path), found, "the one that the dataset's manifest has", remedy)
            yield path


# From the dataset to its run


@dataclass(frozen=True, slots=True)
class Origin:
    """The run that a dataset was made of. `as_it_was` is false where that run has been worked on since."""

    run: Run
    as_it_was: bool


def run_of(dataset: Exported, given: Sequence[str] = ()) -> Origin:
    """The run that a dataset was made of: among the folders that are `given`, else where its command had it, seen from
    here or from any folder above the dataset, or else beside the dataset.

    Raises BadInput if it is in none of these places.
    """
    places = [Path(one) for one in given] or _places(dataset)
    runs = [Run(place) for place in places if os.path.isfile(place / "settings.json")]  # some may not be read
    for run in runs:
        if is_unchanged(dataset, run):
            return Origin(run, True)
    for run in runs:
        if _is_worked_on(dataset, run):
            return Origin(run, False)
    told = dataset.manifest.get("command", "a command that it does not name")
    sha = dataset.manifest["run"]["manifest_sha256"]
    found = f"no run that it was made of in {', '.join(given)}" if given else "its run neither in its place nor near"
    expected = f"the run of '{told}', whose manifest.json had the sha256 {sha}"
    raise BadInput(str(dataset.folder), found, expected, "Say where that folder is now with --run FOLDER.")


def _places(dataset: Exported) -> list[Path]:
    folder, named = dataset.folder.absolute(), named_run(dataset)
    above = [Path("."), *folder.parents]
    by_name = [place / named for place in above] if named is not None else []
    beside = chain.from_iterable(sorted(place.iterdir()) for place in folder.parents[:2] if place.is_dir())
    return [*by_name, *(place for place in beside if place.is_dir())]


def named_run(dataset: Exported) -> str | None:
    """The folder of the run as the command that made the dataset had it."""
    try:
        words = shlex.split(dataset.manifest["command"])
    except (KeyError, ValueError, AttributeError):
        return None
    return words[2] if words[:2] == ["cai", "export"] and len(words) > 2 else None


def is_unchanged(dataset: Exported, run: Run) -> bool:
    """Whether a run's manifest is, byte by byte, the one that the dataset was made with."""
    path = run.folder / "manifest.json"
    return path.is_file() and file_digest(path) == dataset.manifest["run"]["manifest_sha256"]


def _is_worked_on(dataset: Exported, run: Run) -> bool:
    """Whether a run has the models, texts and settings that the dataset's rows were made with: labels may be new."""
    try:
        told, now = dataset.manifest["run"]["stages"], run.settings()
    except BadInput:  # a damaged run, and maybe quite another one
        return False
    making = [stage for stage in ("generate", "revise") if stage in told]
    return bool(making) and all(
        stage in now and all(now[stage][name] == told[stage][name] for name in _ALIKE) for stage in making
    )


def datasets_of(run: Run, given: Sequence[str] = (), known: Sequence[Exported] = ()) -> list[Exported]:
    """The datasets that were made of a run: those that are `known` to be, those in the folders that are `given`, and
    those that lie beside it or in a folder `sets` beside the folder of the runs, as data/sets beside data/runs.

    Raises BadInput if a folder that is given holds no dataset, or one of another run.
    """
    named = [one for folder in given for one in open_datasets(folder)]
    for dataset in named:
        if not is_unchanged(dataset, run) and not _is_worked_on(dataset, run):
            told = dataset.manifest.get("command", "another run")
            remedy = f"Give cai show {folder_word(dataset.folder)} ROW_ID, which looks for its run."
            raise BadInput(f"--dataset {dataset.folder}", f"a dataset of '{told}'", f"one of {run.folder}", remedy)
    # As the run was named, so that paths read as they were given; "." and ".." do not say where they lie.
    here = run.folder if run.folder.name not in ("", "..") else run.folder.resolve()
    above = here.parent.parent if here.parent.name not in ("", "..") else here.parent / ".."
    folders = [one for one in (here.parent, above / "sets") if one.is_dir()]
    beside = [place for folder in folders for place in sorted(folder.iterdir()) if place.is_dir()]
    near = [one for place in beside for one in _exports(place) if _is_here(one, run)]
    found = {one.folder.resolve(): one for one in reversed([*known, *named, *near])}
    return list(reversed(found.values()))


def _is_here(dataset: Exported, run: Run) -> bool:
    """Whether a dataset beside a run is this run's: two runs of one source and settings differ in their folders."""
    named = named_run(dataset)
    same_name = named is not None and Path(named).name == run.folder.absolute().name
    return is_unchanged(dataset, run) or (same_name and _is_worked_on(dataset, run))


# Is the exported row what the run says?


def made_anew(run: Run, dataset: Exported, trajectories: Sequence[Json], pairs: Sequence[Json]) -> list[Json]:
    """The rows that these trajectories and judged pairs of a run give, by the method of a dataset: config and row."""
    method = dataset.manifest["method"]
    answers = [one for row in trajectories for one in answers_of(row, method["sft"], method["clean_answers"])]
    rows = [{"config": "sft", "row": sft_row(one)} for one in answers if isinstance(one, Answer)]
    cut_off = cut_off_rows(run) if pairs else set[str]()
    for judged in pairs:
        pair = decided_pair(run, judged["pair"], judged["label"], cut_off)
        if isinstance(pair, DecidedPair):
            rows.append({"config": "preference", "row": preference_row(pair)})
            rows.append({"config": "reward", "row": reward_row(pair)})
            rows += [{"config": "kto", "row": row} for row in kto_rows(pair)]
    return rows


def left_out(
    run: Run, dataset: Exported, trajectories: Sequence[Json], pairs: Sequence[Json], exported: Sequence[Json],
    places: Mapping[tuple[str, str], int],
) -> list[Json]:  # fmt: skip
    """Which of these trajectories and judged pairs are in none of the rows that were `exported` to a dataset, and why:
    `id`, `kind` (sft or pairs) and `reason`, as `candidates` has them; "later" where an export goes on to look for
    duplicates, lengths and evaluation sets, of which the card has the counts alone; "not_there_yet" where it came into
    the run after the dataset was made of it. `run_as_it_was` is false where the run has been worked on since: then any
    other reason is that of the run as it is now. `places` says how many of its kind lie before one in the run.
    """
    as_it_was = is_unchanged(dataset, run)

    def told(kind: str, name: str, reason: str) -> Json:
        if not as_it_was and _came_later(run, dataset, kind, places[kind, name]):
            reason = "not_there_yet"
        return {"id": name, "kind": kind, "reason": reason, "run_as_it_was": as_it_was}

    method, cut_off = dataset.manifest["method"], cut_off_rows(run) if pairs else set[str]()
    there = {one.get("pair_id", one["row_id"]) for one in exported}
    found: list[Json] = []
    for row in trajectories:
        given = list(answers_of(row, method["sft"], method["clean_answers"]))
        reasons = dict.fromkeys("later" if isinstance(one, Answer) else one for one in given)
        if row["row_id"] not in there:
            # Several reasons may come to the same one.
            found += [one for reason in reasons if (one := told("sft", row["row_id"], reason)) not in found]
    for judged in pairs:
        one = decided_pair(run, judged["pair"], judged["label"], cut_off)
        reason = "later" if isinstance(one, DecidedPair) else one
        if judged["pair"]["pair_id"] not in there:
            found.append(told("pairs", judged["pair"]["pair_id"], reason))
    return found


def _came_later(run: Run, dataset: Exported, kind: str, place: int) -> bool:
    """Whether a row or pair was surely not in the run when a dataset was made of it: rows are only added at the end."""
    stage = "revise" if kind == "sft" else "label"
    was = dataset.manifest["run"]["stages"].get(stage)
    if was is None:
        return True
    now = run.settings()[stage]
    alike = was["finished"] and all(now[name] == was[name] for name in _ALIKE)
    # What an engine refused is asked again when its shard grows, and may be kept then; other drops are what they were.
    refused = was["counts"]["dropped_by_reason"].get("refused_by_engine", 0)
    return alike and place >= was["counts"]["kept"] + refused


def differences(exported: Json, anew: Sequence[Json]) -> list[str] | None:
    """The columns in which an exported row is not what its run gives; None if the run gives no such row at all."""
    row = exported["row"]
    identity = [name for name in ("row_id", "pair_id", "answer_from", "label") if name in row]
    same = [
        one["row"]
        for one in anew
        if one["config"] == exported["config"] and all(one["row"][name] == row[name] for name in identity)
    ]
    found = [[name for name in row if row[name] != one[name]] for one in same]
    return min(found, key=len) if found else None


def is_helpful(row_id: str) -> bool:
    """Whether a row was mixed in from elsewhere (`cai export --helpful`), so that the run knows nothing of it."""
    return row_id.startswith(HELPFUL)
