"""Which rows and pairs of a run stand in its exported datasets."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from cai.dataset import CONFIGS
from cai.errors import BadInput
from cai.lineage import Exported, datasets_of
from cai.report.sample import Sample
from cai.store import Run


@dataclass(frozen=True, slots=True)
class Place:
    """A config and split of a dataset."""

    config: str
    split: str
    dataset: str


@dataclass(slots=True)
class Exports:
    """The datasets that were looked at, those that could not be read, and by the id of a row (of `sft`) or a pair (of
    the other configs) where it stands."""

    datasets: list[str] = field(default_factory=list[str])
    unread: list[str] = field(default_factory=list[str])
    places: dict[str, list[Place]] = field(default_factory=dict[str, list[Place]])

    def of(self, name: str) -> list[Place]:
        return self.places.get(name, [])


def exports_of_run(run: Run, given: Sequence[str], sample: Sample) -> Exports:
    """What stands in the datasets beside the run and in those that are `given`, each of their rows offered to `sample`.

    Raises BadInput if one that is given is none of this run's, or damaged; one beside the run is then only named.
    """
    found = Exports()
    for dataset in datasets_of(run, given):
        try:
            ids = [(place, *names) for place in _files(dataset) for names in _ids(dataset, *place)]
        except BadInput:
            if given:
                raise
            found.unread.append(str(dataset.folder))
            continue
        found.datasets.append(str(dataset.folder))
        same: dict[tuple[str, str], Place] = {}
        for (_, config, split), row_id, name in ids:
            place = same.setdefault((config, split), Place(config, split, str(dataset.folder)))
            places = found.places.setdefault(name, [])
            if place not in places:  # kto has a pair twice
                places.append(place)
            sample.offer(row_id, [f"in {config}"])
    return found


def _files(dataset: Exported) -> list[tuple[str, str, str]]:
    """Path, config and split of each file of rows."""
    paths: list[str] = [one["path"] for one in dataset.manifest["files"]]
    parts = [(path, *path.split("/", 1)) for path in paths if path.endswith(".parquet") and "/" in path]
    return [(path, config, name.split("-")[0]) for path, config, name in parts if config in CONFIGS]


def _ids(dataset: Exported, path: str, config: str, split: str) -> list[tuple[str, str]]:
    """The id of the row, and that by which it is known: of the pair, or in sft of the row."""
    name = "row_id" if config == "sft" else "pair_id"
    try:
        rows: list[dict[str, str]] = pq.read_table(dataset.folder / path, columns=["row_id", name]).to_pylist()
    except (OSError, pa.ArrowException, KeyError) as error:
        remedy = "Give cai verify this dataset, and restore the file."
        raise BadInput(str(dataset.folder / path), f"{error}", f"the {config}/{split} that it had", remedy) from error
    return [(row["row_id"], row[name]) for row in rows]
