"""The rows that the report shows, read once more and put together: the trajectory or drop, its pairs and verdicts."""

from collections.abc import Collection
from dataclasses import dataclass, field

from cai.audit import TABLES
from cai.pairs import row_of
from cai.report.exported import Exports, Place
from cai.report.figures import is_benign, later_side, outcome
from cai.seal import Json
from cai.store import Run


@dataclass(slots=True)
class Judged:
    """A pair with its label and its verdicts; `later` is the side that is the revision, if one is."""

    pair: Json
    label: Json
    verdicts: list[Json]
    later: str | None
    exported: list[Place]


@dataclass(slots=True)
class Shown:
    """One row: what it was, or why it was dropped, and what was said of its pairs."""

    row_id: str
    row: Json | None = None
    drop: Json | None = None
    judged: list[Judged] = field(default_factory=list[Judged])
    exported: list[Place] | None = None  # None where no dataset of the run is known

    @property
    def principles(self) -> list[str]:
        rounds = self.row["rounds"] if self.row is not None and "rounds" in self.row else []
        return list(dict.fromkeys(one["principle_id"] for one in rounds if one["critique"] is not None))

    @property
    def states(self) -> list[str]:
        """What the row is an example of, in the words of the page's filter."""
        if self.row is None:
            return ["dropped"]
        found = ["changed" if self.row.get("changed") else "unchanged"]
        found += ["benign"] if is_benign(self.row) else []
        failed = any(one["revision"] is not None and not one["taken"] for one in self.row.get("rounds", ()))
        found += ["revision failed"] if failed else []
        for one in self.judged:
            found += outcome(one.label["chosen"], one.later) or ["undecided"]
        return list(dict.fromkeys([*found, *self._exported()]))

    def _exported(self) -> list[str]:
        """What the row was exported as, its pairs included. The rows of reward are those of preference."""
        if self.exported is None:
            return []
        configs = {one.config for one in (*self.exported, *(place for each in self.judged for place in each.exported))}
        return [f"in {one}" for one in ("sft", "preference") if one in configs] or (
            ["in kto alone"] if configs else ["not exported"]
        )


def shown_rows(run: Run, row_ids: Collection[str], exports: Exports | None = None) -> list[Shown]:
    """These rows in the order of the run, the dropped ones last. Raises BadInput if a file is damaged."""
    exports = exports or Exports()
    found: dict[str, Shown] = {}
    stages = run.settings()
    table = "trajectories" if "revise" in stages else "responses" if "generate" in stages else None
    if table is not None:
        for row in run.records(table):
            if row["row_id"] in row_ids:
                places = exports.of(row["row_id"]) if exports.datasets else None
                found[row["row_id"]] = Shown(row["row_id"], row=row, exported=places)
    for stage in stages:
        if stage == "label":
            continue
        for drop in run.dropped(stage, TABLES[stage][-1]):
            if drop["row_id"] in row_ids and drop["row_id"] not in found:
                found[drop["row_id"]] = Shown(drop["row_id"], drop=drop)
    if "label" in stages:
        for index in run.finished_shards("labels"):
            _add_judged(run, index, found, exports)
    return list(found.values())


def _add_judged(run: Run, index: int, found: dict[str, Shown], exports: Exports) -> None:
    pairs: dict[str, Json] = {}
    for pair in run.shard_records("pairs", index):
        if any(row_of(pair, pair[f"{side}_from"]) in found for side in "ab"):
            pairs[pair["pair_id"]] = pair
    verdicts: dict[str, list[Json]] = {}
    for verdict in run.shard_records("verdicts", index) if pairs else ():
        if verdict["pair_id"] in pairs:
            verdicts.setdefault(verdict["pair_id"], []).append(verdict)
    for label in run.shard_records("labels", index) if pairs else ():
        pair = pairs.get(label["pair_id"])
        if pair is not None:
            told, places = verdicts.get(label["pair_id"], []), exports.of(label["pair_id"])
            judged = Judged(pair, label, told, later_side(pair), places)
            for row_id in dict.fromkeys(row_of(pair, pair[f"{side}_from"]) for side in "ab"):
                if row_id in found:
                    found[row_id].judged.append(judged)


def drop_samples(run: Run, chosen: dict[tuple[str, str], list[str]]) -> dict[tuple[str, str], list[Json]]:
    """The drops with these ids, by stage and reason, at most one for each id."""
    found: dict[tuple[str, str], dict[str, Json]] = {key: {} for key in chosen}
    for stage in dict.fromkeys(stage for stage, _ in chosen):
        for drop in run.dropped(stage, TABLES[stage][-1]):
            key = stage, drop["reason"]
            if drop["row_id"] in chosen[key]:
                found[key].setdefault(drop["row_id"], drop)
    return {key: list(drops.values()) for key, drops in found.items()}
