"""One row of an exported dataset beside its origin: the run's row, its calls, and whether both still say the same."""

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from cai.candidates import HELPFUL
from cai.errors import BadInput
from cai.ids import file_digest
from cai.lineage import Exported, differences, ids_in, is_helpful, made_anew, open_datasets, rows_in, run_of
from cai.made_of import made_of
from cai.seal import Json
from cai.sources import Unreadable, read_records
from cai.store import Run
from cai.trace import did_you_mean, trace


def latest(folder: str) -> Exported:
    """The dataset in a folder, or the latest of its versions. Raises BadInput if there is none."""
    return open_datasets(folder)[0]


def dataset_story(folder: str, row_id: str, runs: Sequence[str] = ()) -> Json:
    """The rows of a dataset with this id (a row's or a pair's), and the story of the row that they were made of.

    Of a dataset with versions, that is the latest one that has the row; `versions` names all that do. `runs` are
    folders in which to look for its run. Raises BadInput if no version has the row, its run is nowhere, or what is
    read is damaged.
    """
    versions = open_datasets(folder)
    having = [(dataset, rows) for dataset in versions if (rows := rows_in(dataset, [row_id]))]
    if not having:
        raise _unknown(folder, versions, row_id)
    dataset, rows = having[0]
    story: Json = {
        "dataset": str(dataset.folder),
        "command": dataset.manifest.get("command"),
        "versions": [one.folder.name for one, _ in having] if dataset.manifest.get("version") else [],
        "rows": rows,
        "notes": [],
    }
    own = rows[0]["row"]["row_id"]
    if is_helpful(own):
        return story | {"helpful": _helpful(dataset, own.removeprefix(HELPFUL), runs)}
    origin = run_of(dataset, runs)
    story["run_as_it_was"] = origin.as_it_was
    story["trace"] = _traced(origin.run, row_id, own, dataset)
    anew = made_anew(origin.run, dataset, story["trace"].get("trajectories", []), story["trace"].get("pairs", []))
    for row in rows:
        row["differs"] = differences(row, anew)
        row["made_of"] = made_of(row["config"], row["row"], story["trace"])
    shown = {(row["config"], row["row"]["row_id"]) for row in rows}
    here = [one for one in story["trace"]["exports"] if one["dataset"] == story["dataset"]]
    story["same_prompt"] = [one for one in here if (one["config"], one["row_id"]) not in shown]
    return story


def _traced(run: Run, row_id: str, own: str, dataset: Exported) -> Json:
    """The story by the id that was asked for, or by that of the row: the pair may be no more."""
    try:
        return trace(run, row_id, known=[dataset])
    except BadInput:
        if row_id == own:
            raise
        return trace(run, own, known=[dataset])


def _unknown(folder: str, versions: Sequence[Exported], row_id: str) -> BadInput:
    known = sorted(set[str]().union(*(ids_in(dataset) for dataset in versions[:1])))
    meant = did_you_mean(row_id, known)
    why = "A row of the run that was left out, or dropped, is found with cai show RUN ROW_ID."
    remedy = f"{meant}Ids are in the columns row_id and pair_id of its Parquet files. {why}"
    return BadInput(folder, f"no row '{row_id}'", "the row_id or pair_id of one of its rows", remedy)


# Answers that were mixed in


def _helpful(dataset: Exported, name: str, runs: Sequence[str]) -> Json:
    """Where a helpful answer comes from: the row of another run, or a record of a file."""
    told = dataset.manifest.get("helpful") or {}
    for place in (Path(one) for one in runs) if runs else _helpful_places(dataset):
        if os.path.isfile(place / "settings.json"):
            run = Run(place)
            if run.files_sha("generate") == told.get("sha"):
                return {"trace": trace(run, name)}
        elif os.path.isfile(place) and file_digest(place) == told.get("sha"):
            return {"file": str(place), "records": list(_records(place, name))}
    found = f"neither a run nor a file '{told.get('name')}' with the digest {told.get('sha')}"
    remedy = "Say where it is now with --run."
    raise BadInput(str(dataset.folder), found, "what its helpful answers were taken from", remedy)


def _helpful_places(dataset: Exported) -> Iterator[Path]:
    words = shlex.split(dataset.manifest.get("command", ""))
    named = [words[place + 1] for place, word in enumerate(words[:-1]) if word == "--helpful"]
    for place in (Path("."), *dataset.folder.absolute().parents):
        yield from (place / one for one in named)


def _records(path: Path, name: str) -> Iterator[Json]:
    for place, record in read_records(str(path)):
        if not isinstance(record, Unreadable) and name in (str(record.get("id") or place), place):
            yield {"place": place, "record": record}
