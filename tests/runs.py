"""Runs written by hand: tables, settings and the constitution's copy, as the stages leave them."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cai.constitution import load_constitution
from cai.rows import Label, Message, Pair, Response, Round, Trajectory, Verdict
from cai.schemas import to_table
from cai.store import Run, open_run

WORDS = ["".join(parts) for parts in product(["ba", "do", "ki", "lu", "me", "so"], repeat=3)]


def text(seed: object, words: int = 30) -> str:
    """A text of common words that is like no other one, the same for the same seed."""
    return " ".join(random.Random(str(seed)).choices(WORDS, k=words))


def said(prompt: str | Sequence[tuple[str, str]]) -> tuple[Message, ...]:
    return (Message("user", prompt),) if isinstance(prompt, str) else tuple(Message(*turn) for turn in prompt)


def one_round(revision: str | None = "a revision", taken: bool = True, gate: bool = True, **changes: Any) -> Round:
    """A round that asked for a revision, or with None one in which the gate found the answer clean."""
    made = Round(
        round=1, principle_id="physical-safety", violation_probability=0.9, gate_mass=1.0,
        critique=None if revision is None else "a critique", revision=revision,
        finish=None if revision is None else "stop", taken=taken and revision is not None, flags=(), failed_tries=(),
        choice_call=None, gate_call="g" if gate else None, critique_call=None, revision_call=None,
    )  # fmt: skip
    return replace(made, **changes)


def trajectory(row_id: str, rounds: Sequence[Round] = (), **changes: Any) -> Trajectory:
    """A row with a prompt and a response of its own; its final answer is the last revision that was taken."""
    response = changes.pop("response", text(("response", row_id)))
    final = next((one.revision for one in reversed(rounds) if one.taken and one.revision is not None), response)
    made = Trajectory(
        row_id=row_id, prompt_id=row_id, sample=0, prompt=said(changes.pop("prompt", text(("prompt", row_id)))),
        source="here:1", extra="{}", response=response, response_finish="stop", response_call="c",
        rounds=tuple(rounds), final=final, changed=final != response, model="m@1", critic="m@1", reviser="m@1",
        constitution="harmlessness", constitution_sha="0" * 64, templates_sha="1" * 64, seed=0, prompt_tokens=1,
        cached_tokens=0, completion_tokens=1, left_out_turns=0,
    )  # fmt: skip
    return replace(made, **changes)


def response(row_id: str, finish: str = "stop") -> Response:
    made = text(("response", row_id))
    asked = said(text(("prompt", row_id)))
    return Response(row_id, row_id, 0, asked, "here:1", "{}", made, finish, "c", "m@1", "1" * 64, 0, 1, 0, 1, 0)


def pair(pair_id: str, **changes: Any) -> Pair:
    asked = said(changes.pop("prompt", text(("prompt", pair_id))))
    made = Pair(
        pair_id=pair_id, row_id=pair_id, prompt_id=pair_id, prompt=asked, a=text(("a", pair_id)),
        b=text(("b", pair_id)), a_from="revision-1", b_from="response", source="here:1", position=0,
    )  # fmt: skip
    return replace(made, **changes)


def label(pair_id: str, chosen: str = "a", probability_a: float | None = 0.9, **changes: Any) -> Label:
    made = Label(
        pair_id=pair_id, row_id=pair_id, probability_a=probability_a, chosen=chosen, margin=2.2, position_gap=0.1,
        principles=("physical-safety",), agreement=1.0, judged=chosen,
        reason="" if chosen != "none" else "tie", reviewed=None,
        mode="logprob", judge="m@1", constitution="harmlessness", constitution_sha="0" * 64, templates_sha="1" * 64,
        seed=0, prompt_tokens=1, cached_tokens=0, completion_tokens=1, left_out_turns=0,
    )  # fmt: skip
    return replace(made, **changes)


def verdict(pair_id: str, probability_a: float | None = 0.9, order: str = "ab") -> Verdict:
    return Verdict(
        pair_id, "physical-safety", order, "logprob", probability_a, -0.1, -2.3, 1.0, None, "A", ("c",), "m@1", "1" * 64
    )


def write_run(folder: Path, shard_rows: int = 1000, **tables: Sequence[object]) -> Run:
    """A run with these tables, the harmlessness constitution, and a manifest in which revise and label are finished."""
    constitution = load_constitution("harmlessness")
    (folder / "inputs" / "revise").mkdir(parents=True)
    (folder / "inputs" / "revise" / "constitution.yaml").write_text(constitution.text)
    belongs = {"models": {"generator": "m@1"}, "texts": {"constitution_sha": constitution.sha}, "settings": {"seed": 0}}
    stages = {"revise": belongs, "label": belongs}
    (folder / "settings.json").write_text(json.dumps(stages))
    counts = {"read": 9, "kept": 8, "dropped": 1, "changed": 5}
    (folder / "manifest.json").write_text(json.dumps({name: {"counts": counts} for name in stages}))
    for table, rows in tables.items():
        (folder / table).mkdir()
        for index in range(max(1, -(-len(rows) // shard_rows))):
            part = rows[index * shard_rows : (index + 1) * shard_rows]
            pq.write_table(to_table(part, table), folder / table / f"part-{index:05d}.parquet")
    return open_run(str(folder))
