"""What the rows that a session made come to: the figures that `history.py` keeps and compares."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

from cai.audit import TABLES
from cai.inputs import Chunk
from cai.pairs import NO_PAIR
from cai.refusals import is_refusal
from cai.rows import Drop, Pair
from cai.seal import Json
from cai.store import Run


@dataclass(frozen=True, slots=True)
class Bound:
    """How far a figure may move before it is worth a word, in its own units or, `relative`, as a share of the mean."""

    by: float
    relative: bool = False


BOUNDS: Mapping[str, Bound] = {
    "drop_rate": Bound(0.05),
    "refusal_rate": Bound(0.1),
    "length_words": Bound(0.2, relative=True),
    "changed_rate": Bound(0.1),
    "gate_probability": Bound(0.1),
    "undecided_rate": Bound(0.1),
    "label_margin": Bound(0.25, relative=True),
    "position_gap": Bound(0.1),
}

# What `bound_of` takes, without blanks; a zero or an infinite number is left to it.
BOUND_PATTERN = rf"^({'|'.join(BOUNDS)})=\+?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"


def bound_of(told: str) -> tuple[str, Bound]:
    """The figure and the bound that "NAME=NUMBER" means. Raises ValueError, with what is expected, if it means none."""
    name, _, number = told.partition("=")
    try:
        by = float(number)
    except ValueError:
        by = math.nan
    if name not in BOUNDS or not 0 < by < math.inf:
        raise ValueError(f"NAME=NUMBER with a number above 0 and one of {', '.join(BOUNDS)}")
    return name, replace(BOUNDS[name], by=by)


@dataclass(frozen=True, slots=True)
class NewRows:
    """The part of a shard that is new: so many records, and of those that are not the ids, and how many rows among
    them make no pair."""

    shard: int
    records: int
    older: frozenset[str] = frozenset()
    older_without_pair: int = 0


@dataclass(slots=True)
class Mean:
    """Number, mean and standard deviation of values, added one by one (Welford 1962)."""

    values: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.join(Mean(times, value))

    def join(self, other: "Mean") -> None:
        """Add the values of another one."""
        if other.values:
            total, apart = self.values + other.values, other.mean - self.mean
            self.squares += other.squares + apart * apart * self.values * other.values / total
            self.mean += apart * other.values / total
            self.values = total

    @property
    def deviation(self) -> float:
        return math.sqrt(self.squares / self.values) if self.values else 0.0


def measure(run: Run, stage: str, new: Iterable[NewRows]) -> dict[str, Mean]:
    """The figures of a stage over new rows, by name; those of which there is no value are left out.

    A row whose answers are all the same is no dropped pair: it is not among what could have been judged.
    """
    means: dict[str, Mean] = {name: Mean() for name in BOUNDS}
    name_of = "pair_id" if stage == "label" else "row_id"
    for part in new:
        kept = 0
        for row in run.shard_records(TABLES[stage][-1], part.shard, [name_of, *_COLUMNS[stage]]):
            if row[name_of] not in part.older:
                kept += 1
                for name, value in _values(stage, row):
                    means[name].add(float(value))
        means["drop_rate"].add(0.0, kept)
        without_pair = sum(drop["reason"] == NO_PAIR for drop in run.shard_drops(stage, part.shard))
        means["drop_rate"].add(1.0, max(0, part.records - kept - (without_pair - part.older_without_pair)))
    return {name: mean for name, mean in means.items() if mean.values}


_COLUMNS = {
    "generate": ["response"],
    "revise": ["final", "changed", "rounds.list.element.violation_probability"],
    "label": ["judged", "margin", "position_gap"],
}


def _values(stage: str, row: Json) -> Iterator[tuple[str, float]]:
    if stage == "label":
        yield "undecided_rate", row["judged"] == "none"  # what people said of it is not the judge's doing
        yield from ((name, row[of]) for name, of in _OF_LABELS if row[of] is not None)
        return
    text: str = row["final" if stage == "revise" else "response"]
    yield "refusal_rate", is_refusal(text)
    yield "length_words", len(text.split())
    if stage == "revise":
        yield "changed_rate", row["changed"]
        probabilities = (one["violation_probability"] for one in row["rounds"])
        yield from (("gate_probability", value) for value in probabilities if value is not None)


_OF_LABELS = (("label_margin", "margin"), ("position_gap", "position_gap"))


def new_rows(chunks: Callable[[], Iterable[Chunk]], sizes: Mapping[int, int], first: int) -> Iterator[NewRows]:
    """The parts of the shards that lie behind the first so many records."""
    ends = accumulate(sizes.values())
    for (index, size), end in zip(sizes.items(), ends, strict=True):
        if end - size >= first:
            yield NewRows(index, size)
        elif end > first:  # the last shard of an earlier session, which has grown
            items = next((chunk.items for chunk in chunks() if chunk.index == index), ())[: size - (end - first)]
            kept = (item for item in items if not isinstance(item, Drop))
            ids = frozenset(item.pair_id if isinstance(item, Pair) else item.row_id for item in kept)
            without_pair = sum(isinstance(item, Drop) and item.reason == NO_PAIR for item in items)
            yield NewRows(index, end - first, ids, without_pair)
