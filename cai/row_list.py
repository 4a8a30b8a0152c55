"""The rows of a run or of an exported dataset, one short record each, so that an id can be found: `cai show PATH`."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.parquet as pq

from cai.audit import TABLES
from cai.candidates import HELPFUL
from cai.dataset import CONFIGS
from cai.label import why_none
from cai.lineage import Exported, datasets_of, files_of
from cai.seal import Json
from cai.store import Run

_FIRST = 60  # characters of a prompt: enough to know it again


def rows_of_run(run: Run) -> Iterator[Json]:
    """Each row, pair and drop of a run: `id`, `what` it is, first words of the `prompt`, `principles`, `outcome`, and
    as what it was `exported` to the datasets nearby. Raises BadInput if a file is damaged."""
    exported: dict[str, list[str]] = {}
    for dataset in datasets_of(run):
        for row in rows_of_dataset(dataset):
            named = exported.setdefault(row.get("pair_id", row["row_id"]), [])
            if row["config"] not in named:
                named.append(row["config"])
    stages = run.settings()
    for stage in (one for one in TABLES if one in stages):  # the answers before the pairs that are made of them
        table = TABLES[stage][-1]
        rows = _pairs(run) if table == "labels" else map(_ROWS[table], run.records(table))
        yield from ({**row, "exported": exported.get(row["id"], [])} for row in rows)
        for drop in run.dropped(stage, table):
            yield _row(drop["row_id"], f"dropped in {drop['stage']}", "", [], drop["reason"]) | {"exported": []}


def rows_of_dataset(dataset: Exported) -> Iterator[Json]:
    """Each row of a dataset: `config`, `split`, its `number` in the file, `row_id` (and `pair_id`), first words of the
    `prompt`, `principles` and `outcome`. Raises BadInput if a file is not as the manifest has it."""
    for config in CONFIGS:
        for path in files_of(dataset, config):
            with pq.ParquetFile(path) as file:
                rows: list[Json] = file.read().to_pylist()
            for number, row in enumerate(rows, start=1):
                prompt = row["messages"][:-1] if config == "sft" else row["prompt"]
                told: Json = {"config": config, "split": path.name.split("-")[0], "number": number}
                told |= {name: row[name] for name in ("row_id", "pair_id") if name in row}
                told |= {"prompt": _first_words(prompt), "principles": list(row["principle_ids"])}
                yield told | {"outcome": _exported_as(config, row)}


def _exported_as(config: str, row: Json) -> str:
    if config == "sft":
        return "mixed in" if row["row_id"].startswith(HELPFUL) else f"to imitate: {row['answer_from']}"
    if config == "kto":
        return "a good answer" if row["label"] else "a bad answer"
    return f"chosen with {row['chosen_probability']:.3f}"


def _pairs(run: Run) -> Iterator[Json]:
    for index in run.finished_shards("labels"):
        labels = {label["pair_id"]: label for label in run.shard_records("labels", index)}
        for pair in run.shard_records("pairs", index):
            if pair["pair_id"] in labels:
                label = labels[pair["pair_id"]]
                side = label["chosen"]
                outcome = f"undecided: {why_none(label)}" if side == "none" else f"chosen: {pair[f'{side}_from']}"
                yield _row(pair["pair_id"], "pair", pair["prompt"], label["principles"], outcome)


def _trajectory(row: Json) -> Json:
    principles = list(dict.fromkeys(one["principle_id"] for one in row["rounds"]))
    return _row(row["row_id"], "row", row["prompt"], principles, _outcome(row))


def _outcome(row: Json) -> str:
    """What became of the answer of a trajectory."""
    if any(one["taken"] for one in row["rounds"]):
        return "revised" if row["changed"] else "revised, with the same words"
    if any(one["revision"] is not None for one in row["rounds"]):
        return "no revision passed"
    cut = ", cut off" if row["response_finish"] == "length" else ""
    if any(one["critique"] is not None for one in row["rounds"]):
        return f"nothing found{cut}"
    return f"clean for the gate{cut}" if row["rounds"] else f"not judged{cut}"


def _response(row: Json) -> Json:
    return _row(row["row_id"], "row", row["prompt"], [], "cut off" if row["finish"] == "length" else "answered")


_ROWS: Mapping[str, Any] = {"trajectories": _trajectory, "responses": _response}


def _row(name: str, what: str, prompt: Any, principles: list[str], outcome: str) -> Json:
    words = _first_words(prompt) if prompt else ""
    return {"id": name, "what": what, "prompt": words, "principles": list(principles), "outcome": outcome}


def _first_words(prompt: list[Json]) -> str:
    """The beginning of the turn that was answered."""
    words = " ".join(prompt[-1]["content"][: 4 * _FIRST].split())
    return words if len(words) <= _FIRST else words[: _FIRST - 4].rstrip() + " ..."
