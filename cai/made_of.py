"""Which calls of a model an exported row is made of: those that its texts came from, and those that decided its label.

The story of the run's row has more than that: rounds whose revision is not in this row, and pairs that are others.
"""

from collections.abc import Iterator, Sequence

from cai.pairs import row_of
from cai.seal import Json
from cai.trace import ROUND_CALLS, uses_in


def made_of(config: str, row: Json, story: Json) -> list[Json]:
    """The parts of a row of a dataset, out of its run's story (`trace.trace`): `part` is answer, chosen, rejected or
    label, `origin` what it is in the run, `row_id` of which row, and `calls` the key and use of each. A part of a row
    that is not in the story has `calls` None."""
    if config == "sft":
        return [_text("answer", row["row_id"], row["answer_from"], story)]
    judged = next((one for one in story.get("pairs", []) if one["pair"]["pair_id"] == row["pair_id"]), None)
    if judged is None or judged["label"]["chosen"] == "none":
        return []
    pair, chosen = judged["pair"], judged["label"]["chosen"]
    sides = {"chosen": chosen, "rejected": "b" if chosen == "a" else "a"}
    if config == "kto":
        only = "chosen" if row["label"] else "rejected"
        sides = {only: sides[only]}
    origins = {part: pair[f"{side}_from"] for part, side in sides.items()}
    parts = [_text(part, row_of(pair, origin), origin, story) for part, origin in origins.items()]
    label: Json = {"part": "label", "origin": "verdicts", "row_id": pair["row_id"]}
    return [*parts, label | {"calls": list(uses_in("labels", judged))}]


def has_critique(parts: Sequence[Json]) -> bool:
    """Whether a critique is among the calls that a row is made of."""
    return any(call["use"] == "critique" for part in parts for call in part["calls"] or ())


def _text(part: str, row_id: str, origin: str, story: Json) -> Json:
    rows = [*story.get("trajectories", []), *story.get("responses", [])]
    row = next((one for one in rows if one["row_id"] == row_id), None)
    calls = None if row is None else list(_calls(row, origin, with_gate=part == "answer"))
    return {"part": part, "origin": origin, "row_id": row_id, "calls": calls}


def _calls(row: Json, origin: str, with_gate: bool) -> Iterator[Json]:
    """The calls that lead to a text of a row. That a response was left as it was, and so is one to imitate, the gate
    decided (`with_gate`); in a pair it is only an answer."""
    if "rounds" not in row:
        yield from uses_in("responses", row)
        return
    yield {"key": row["response_call"], "row_id": row["row_id"], "use": "response"}
    if origin.startswith("revision-"):
        taken = [one for one in row["rounds"] if one["taken"]]
        rounds = taken[: int(origin.removeprefix("revision-"))]
    else:
        rounds = row["rounds"] if with_gate else []
    for one in rounds:
        told = {"row_id": row["row_id"], "round": one["round"], "principle_id": one["principle_id"]}
        used = ((name, one[f"{name}_call"]) for name in ROUND_CALLS)
        yield from ({"key": key, **told, "use": name} for name, key in used if key)
