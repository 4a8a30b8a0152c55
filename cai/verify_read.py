"""Each row and each drop of a shard against what the shard read, see `verify_source`.

Which record became which row or drop, the digests in the shard's footer say. A row must be what was read. A drop of the
reader must be the one that it makes now, and one that came of the model's answers the one that they make now, see
`verify_again`. Where its record is not there, a drop is one of the reader by its digest, or its text is in the journal.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cai.findings import Findings
from cai.inputs import content_of
from cai.journal import Entry
from cai.review import Answers
from cai.rows import Drop, Pair, Row, as_turns
from cai.seal import Json
from cai.store import Run
from cai.verify_again import REFUSED, Again, Found, differing, item_of
from cai.verify_source import Item, Reread

# What may be another where the same record was read in another place: also the words of a drop name that.
_PLACES: dict[type, frozenset[str]] = {
    Row: frozenset({"source"}),
    Pair: frozenset({"source", "position"}),
    Drop: frozenset({"source", "row_id", "detail"}),
}


@dataclass(slots=True)
class Shard:
    """A shard whose files are all as they were written, with its footer and its part of the journal."""

    run: Run
    stage: str
    index: int
    mark: Json
    entries: Mapping[str, Entry]
    answers: Answers | None

    def rows(self, table: str) -> list[Json]:
        return list(self.run.shard_records(table, self.index))

    def place(self, table: str) -> str:
        return f"{table}/part-{self.index:05d}.parquet"


@dataclass(slots=True)
class Reading:
    """How the shards of a stage are held against what they read, and what came of it.

    Without `source` there is no record to hold anything against; without `remade` no answer is followed. `same` and
    `other` count the records that the run has so, or not; `lost` the drops that were not worked out again.
    """

    source: Reread | None
    remade: Again | None
    findings: Findings
    same: int = 0
    other: int = 0
    lost: int = 0

    def check(self, shard: Shard, table: str, rows: Sequence[Json], is_last: bool) -> None:
        """Compare a shard with what it read; `rows` are those of its `table`. The source may have gone on behind the
        last one."""
        inputs: list[str] = shard.mark["inputs"]
        kept = _kept(inputs, rows)
        if isinstance(kept, str):
            found = "a prompt or answers that it was not made of"
            self.findings.differ(f"{shard.place(table)}, '{kept}'", found, "what the shard read")
            return
        items = self._read(shard, table, is_last)
        drops = iter(shard.run.shard_drops(shard.stage, shard.index))
        texts = {entry["text"] for entry in shard.entries.values()}
        for at, sha in enumerate(inputs):
            item = items[at] if at < len(items) else None
            row = kept.get(at)
            if row is not None:
                for difference in self._of_row(row, item, shard.index):
                    self.findings.differ(f"{shard.place(table)}, '{id_of(row)}'", *difference)
            elif (drop := next(drops, None)) is not None:
                known = item if item is not None and content_of(item) == sha else None
                place = shard.run.drops(shard.stage, shard.index).relative_to(shard.run.folder)
                for difference in self._of_drop(drop, known, sha, shard, texts):
                    self.findings.differ(f"{place}, '{drop['row_id']}'", *difference)

    def _read(self, shard: Shard, table: str, is_last: bool) -> Sequence[Item]:
        """The records of a shard, as far as they are there."""
        source, inputs = self.source, shard.mark["inputs"]
        items = source.items(shard.index, self.findings) if source is not None else None
        if source is None or items is None:
            return ()
        if shard.index in source.grown:
            items = _of_those(items, inputs)
        elif not source.whole and is_last:
            items = items[: len(inputs)]
        read = [content_of(item) for item in items]
        same = sum(one == sha for one, sha in zip(read, inputs, strict=False))
        self.same, self.other = self.same + same, self.other + len(inputs) - same
        self.findings.looked[source.counted] += len(items)
        if not source.doubt and read != inputs:
            first = next((at for at, pair in enumerate(zip(inputs, read, strict=False)) if pair[0] != pair[1]), same)
            found = f"{len(inputs)} records, and another one in place {first + 1}"
            self.findings.differ(shard.place(table), found, f"the {len(items)} that {source.called} gives")
        return items

    def _of_row(self, row: Json, item: Item | None, index: int) -> Iterator[Found]:
        """Where a row is not the record that it was made of."""
        source = self.source
        named = item.pair_id if isinstance(item, Pair) else item.row_id if item is not None else None
        # Where another record stands in its place, that has been said of the shard.
        if source is not None and item is not None and not source.doubt and named == id_of(row):
            yield from differing(_told(item, self._is_moved(index)), row, f"what {source.called} has")

    def _of_drop(self, drop: Json, item: Item | None, sha: str, shard: Shard, texts: set[str]) -> Iterator[Found]:
        """Where a drop is not what becomes of its record; without that, where its text was never said."""
        source, moved = self.source, self._is_moved(shard.index)
        if source is not None and isinstance(item, Drop):
            self.findings.looked["drops worked out again"] += 1
            yield from differing(_told(item, moved), drop, f"what {source.called} makes")
        elif source is not None and isinstance(item, Row | Pair) and self.remade is not None:
            principles = source.principles.get(item.pair_id) if isinstance(item, Pair) else None
            self.findings.looked["drops worked out again"] += drop["reason"] != REFUSED
            yield from self.remade.dropped(item, drop, shard.entries, principles, {"source"} if moved else set())
        elif content_of(Drop(**drop)) != sha:
            self.lost += 1
            if self.remade is not None and drop["reason"] != REFUSED and drop["raw"] not in texts:
                yield "a text that is no answer in the journal", "what the model said"

    def _is_moved(self, index: int) -> bool:
        return self.source is not None and (bool(self.source.doubt) or index in self.source.moved)

    def end(self, stage: str, skipped: bool) -> None:
        """Say what was not compared."""
        source = self.source
        if source is not None and source.doubt:
            self.findings.note(
                f"cai {stage}: {source.doubt}, so a difference from it is none of the run's: "
                f"{self.same} of {self.same + self.other} records are as the run has them."
            )
        elif source is not None and source.whole and not skipped:
            if source.is_over(self.findings):
                source.check_unread(f"manifest.json, cai {stage}", self.findings)
            else:
                self.findings.differ(f"cai {stage}", f"fewer shards than {source.called} gives", "one for each")
        if self.lost and self.remade is not None:
            self.findings.note(
                f"cai {stage}: {self.lost} dropped rows were not worked out again: a run does not keep their prompts, "
                "and they are not in the source, or it was not read."
            )


def id_of(row: Json) -> str:
    """What a row of a table goes by: the id of its pair, if it is of one."""
    return row["pair_id"] if "pair_id" in row else row["row_id"]


def _of_those(items: Sequence[Item], inputs: Sequence[str]) -> Sequence[Item]:
    """The items that a shard read before others came between them; all, if one of them is not there."""
    left = iter(items)
    there = [next((item for item in left if content_of(item) == sha), None) for sha in inputs]
    found = [item for item in there if item is not None]
    return found if len(found) == len(inputs) else items


def _kept(inputs: Sequence[str], rows: Sequence[Json]) -> dict[int, Json] | str:
    """The rows by the places of the records that they were made of; the id of the first that was made of none."""
    found, left = dict[int, Json](), iter(enumerate(inputs))
    for row in rows:
        sha = content_of(item_of(row))
        at = next((at for at, one in left if one == sha), None)
        if at is None:
            return id_of(row)
        found[at] = row
    return found


def _told(item: Item, moved: bool) -> Json:
    """What of a record stands in the row, pair or drop that it becomes."""
    record: dict[str, Any] = asdict(item)
    if not isinstance(item, Drop):
        record["prompt"] = as_turns(item.prompt)
    left_out = {"position"} if isinstance(item, Row) else set[str]()
    left_out |= _PLACES[type(item)] if moved else set()
    return {name: value for name, value in record.items() if name not in left_out}
