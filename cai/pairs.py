"""Pairs of different answers to one prompt, made from the rows of a run, as a stream, in order."""

from collections.abc import Iterator
from itertools import combinations, groupby, pairwise
from typing import Literal

from cai.errors import BadInput
from cai.ids import first_of_two, sample_row_id
from cai.inputs import Chunk
from cai.rows import Drop, Pair, as_messages
from cai.store import Json, Run

Kind = Literal["auto", "revision", "consecutive", "samples", "all"]
NO_PAIR = "no_pair"  # why a row makes none: its answers are all the same
ROW_TABLES = {"trajectories": "revise", "responses": "generate"}


class RunPairs:
    """The pairs of a finished run; one chunk for each shard of its rows, so that a row's pairs stay together.

    `kind` is "revision" (the response against the final revision), "consecutive" (each revision against what it
    revised), "samples" (two responses to the same prompt, as in Bai et al. 2022), "all" of them, or "auto": revisions
    if there are trajectories, else samples. Raises BadInput if the run has no finished rows, or none of that kind.
    """

    def __init__(self, run: Run, kind: Kind, limit: int | None) -> None:
        self.spec, self._run, self._limit = str(run.folder), run, limit
        tables = [table for table in ROW_TABLES if run.finished_shards(table)]
        if not tables:
            raise BadInput(self.spec, "no rows", "a run of cai revise or cai generate", "Make them first.")
        self.table = tables[0]
        if ROW_TABLES[self.table] not in run.manifest():
            stage = ROW_TABLES[self.table]
            raise BadInput(self.spec, f"an unfinished cai {stage}", "a finished one", f"Run cai {stage} to its end.")
        run.check_files(ROW_TABLES[self.table])
        self.made_of: str | None = made_of(run)
        self.unread = False
        if self.table == "responses" and kind in ("revision", "consecutive"):
            found = "responses, which have no revisions"
            raise BadInput(f"--pairs {kind}", found, "a run of cai revise", "Take --pairs samples.")
        self.kind = kind if kind != "auto" else "revision" if self.table == "trajectories" else "samples"

    def chunks(self, records_in_chunk: int) -> Iterator[Chunk]:
        """The pairs of each shard, and a drop for each prompt that has none."""
        seen = position = 0
        # Samples are compared across the rows of a prompt, revisions within a row.
        unit = "prompt_id" if self.kind in ("samples", "all") else "row_id"
        for index in self._run.finished_shards(self.table):
            items: list[Pair | Drop] = []
            for _, group in groupby(self._run.shard_records(self.table, index), key=lambda row: row[unit]):
                if self._limit is not None and seen >= self._limit:
                    self.unread = True
                    break  # between prompts only, so that a higher limit adds pairs and changes none
                samples = list(group)
                seen += len(samples)
                found = list(self._pairs(samples, position))
                position += len(found)
                items += found
            if not items and self._limit is not None and seen >= self._limit:
                return
            yield Chunk(index, tuple(items))

    def _pairs(self, samples: list[Json], position: int) -> Iterator[Pair | Drop]:
        """The pairs of the rows that answer one prompt, each once, or a drop that says why there are none."""
        found: dict[str, Pair] = {}
        for row, (first, first_from), (second, second_from) in self._candidates(samples):
            if first != second:
                pair_id = f"{row['row_id']}/{first_from}+{second_from}"
                place = position + len(found)
                found.setdefault(pair_id, _pair(pair_id, row, (first, first_from), (second, second_from), place))
        if found:
            yield from found.values()
            return
        row = samples[0]
        detail = f"{row['source']}: found no two answers that differ, expected a pair of the kind '{self.kind}'"
        yield Drop(row["row_id"], "label", NO_PAIR, detail, row["response"], row["source"])

    def _candidates(self, samples: list[Json]) -> Iterator[tuple[Json, tuple[str, str], tuple[str, str]]]:
        if self.table == "trajectories" and self.kind != "samples":
            for row in samples:
                taken = [one["revision"] for one in row["rounds"] if one["taken"]]
                texts = [row["response"], *taken]
                names = ["response", *(f"revision-{number}" for number in range(1, len(texts)))]
                told = list(zip(texts, names, strict=True))
                if self.kind in ("revision", "all") and taken:
                    yield row, told[0], told[-1]
                if self.kind in ("consecutive", "all"):
                    yield from ((row, before, after) for before, after in pairwise(told))
        if self.kind in ("samples", "all"):
            for one, other in combinations(samples, 2):
                first, second = ((row["response"], f"sample-{row['sample']}") for row in (one, other))
                yield one, first, second


def row_of(pair: Json, origin: str) -> str:
    """The row that one of a pair's answers comes from: of two samples, each is a row of its own."""
    if not origin.startswith("sample-"):
        return pair["row_id"]
    return sample_row_id(pair["prompt_id"], int(origin.removeprefix("sample-")))


def made_of(run: Run) -> str:
    """A digest of the rows that a run's pairs are made of, by its manifest."""
    return run.files_sha(next((stage for table, stage in ROW_TABLES.items() if run.finished_shards(table)), ""))


def answers_from(run: Run) -> str:
    """The source of the prompts that the answers of a run's pairs were given to."""
    entries = (run.manifest().get(stage) for table, stage in ROW_TABLES.items() if run.finished_shards(table))
    return next((entry["prompts"]["source"] for entry in entries if entry), str(run.folder))


def _pair(pair_id: str, row: Json, first: tuple[str, str], second: tuple[str, str], position: int) -> Pair:
    a, b = (first, second) if first_of_two(pair_id) else (second, first)
    prompt = as_messages(row["prompt"])
    return Pair(pair_id, row["row_id"], row["prompt_id"], prompt, a[0], b[0], a[1], b[1], row["source"], position)
