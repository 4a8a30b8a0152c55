"""Input that means harm, in thousands: each record is used or dropped for a documented reason, its text unchanged."""

import asyncio
import csv
import json
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cai.gold import GoldPairs
from cai.inputs import Prompts
from cai.rows import Drop, Message, Pair, Row
from cai.settings import ReviseSettings
from cai.sources import LONGEST
from cai.stages import revise_stage
from cai.store import open_run
from tests.conftest import Quiet
from tests.hostile import BROKEN, TREACHEROUS, WRONG, harmless, lines, seeds

TABLES = (Path(__file__).parent.parent / "docs" / "tables.md").read_text()
OF_INPUT, OF_GOLD = (
    set(re.findall(r"`([a-z_]+)`", part))
    for part in re.search(r"Reasons of the input:(.*?)Of gold also:(.*?)Of the engine:", TABLES, re.S).groups()  # type: ignore[union-attr]
)


def read(path: Path) -> list[Row | Drop]:
    items = [item for chunk in Prompts(str(path), "revise", None, 1, False).chunks(500) for item in chunk.items]
    assert all(isinstance(item, Row | Drop) for item in items)
    return [item for item in items if isinstance(item, Row | Drop)]


def turns(prompt: Any) -> tuple[Message, ...]:
    """What the messages of a row must be, by what its record says."""
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    return tuple(Message(turn["role"], turn["content"]) for turn in prompt)


def check(item: Row | Drop, line: bytes, fine: bool) -> None:
    if isinstance(item, Drop):
        assert not fine, (item.detail, line[:300])
        assert item.reason in OF_INPUT and item.detail.startswith(f"{item.source}: found "), item
        "".join((item.row_id, item.detail, item.raw)).encode()
    else:
        record = json.loads(line)
        assert item.prompt == turns(record["prompt"])
        extra = json.loads(item.extra)
        assert extra.keys() == record.keys() - {"prompt", "id"}
        assert all(extra[name] == value for name, value in record.items() if name in extra and isinstance(value, str))


def test_ten_thousand_hostile_json_lines_are_each_used_unchanged_or_dropped_with_a_documented_reason(tmp_path: Path):
    written = list(lines(10_000, seed=1))
    (tmp_path / "p.jsonl").write_bytes(b"\n".join(line for line, _ in written))
    there = [(line, fine) for line, fine in written if line.strip()]
    items = read(tmp_path / "p.jsonl")
    assert len(items) == len(there), "kept + dropped = read"
    for item, (line, fine) in zip(items, there, strict=True):
        check(item, line, fine)
    reasons = {item.reason for item in items if isinstance(item, Drop)}
    assert reasons == OF_INPUT, "each reason is seen at least once"


def test_a_thousand_hostile_lines_go_through_a_whole_run_and_the_tables_hold_their_text(tmp_path: Path):
    written = list(lines(1_000, seed=2))
    (tmp_path / "p.jsonl").write_bytes(b"\n".join(line for line, _ in written))
    settings = ReviseSettings(
        prompts=str(tmp_path / "p.jsonl"), out=str(tmp_path / "run"), engine="scripted", rounds=1, shard_rows=100,
        failed_revision="keep",
    )  # fmt: skip
    outcome = asyncio.run(revise_stage(settings, Quiet()))
    run, counts = open_run(outcome.folder), outcome.entry["counts"]
    rows, drops = list(run.records("trajectories")), list(run.dropped("revise", "trajectories"))
    assert len(rows) + len(drops) == counts["read"] == sum(bool(line.strip()) for line, _ in written)
    places = {row["source"]: row for row in rows} | {drop["source"]: drop for drop in drops}
    assert len(places) == counts["read"], "each record is in exactly one place"
    for number, (line, fine) in enumerate(written, start=1):
        found = places.get(f"p.jsonl:{number}")
        if found is None:
            assert not line.strip()
        elif "reason" in found:
            assert not fine and found["reason"] in OF_INPUT
        else:
            assert turns(found["prompt"]) == turns(json.loads(line)["prompt"])


def test_hostile_csv_cells_are_used_character_for_character(tmp_path: Path):
    chance = random.Random(3)
    records = [harmless(chance, one) for one in seeds() * 3 if isinstance(one["prompt"], str)]
    records = [
        {"id": f"r{n}", "prompt": one["prompt"], "note": chance.choice(TREACHEROUS)} for n, one in enumerate(records)
    ]
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "prompt", "note"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(records)
    items = read(tmp_path / "p.csv")
    assert len(items) == len(records) > 1000
    for item, record in zip(items, records, strict=True):
        assert isinstance(item, Row) and item.prompt == turns(record["prompt"])
        assert json.loads(item.extra) == {"note": record["note"]}


def test_hostile_parquet_cells_are_used_unchanged_and_one_that_is_no_text_is_one_drop(tmp_path: Path):
    chance = random.Random(4)
    texts: list[Any] = [harmless(chance, one)["prompt"] for one in seeds() if isinstance(one["prompt"], str)]
    raw = [text.encode() for text in texts] + [b"\xff\xfe", None, b"", b"half \xed\xa0\x80", b"last"]
    chance.shuffle(raw)
    raw.insert(0, b"first")
    # A writer may say "text" of any bytes.
    column = pa.StringArray.from_buffers(len(raw), *_buffers(raw))
    pq.write_table(pa.table({"prompt": column}), tmp_path / "p.parquet")
    items = read(tmp_path / "p.parquet")
    assert len(items) == len(raw)
    for item, given in zip(items, raw, strict=True):
        if isinstance(item, Row):
            assert given is not None and item.prompt[0].content.encode() == given
        else:
            assert given is None or given in (b"", b"\xff\xfe", b"half \xed\xa0\x80")
    reasons = sorted(item.reason for item in items if isinstance(item, Drop))
    assert reasons == ["empty_text", "no_prompt", "not_readable", "not_readable"]


def _buffers(values: list[bytes | None]) -> tuple[Any, Any, Any]:
    held: Any = pa.array(values, pa.binary())
    validity, offsets, data = held.buffers()
    return offsets, data, validity


def test_a_line_of_a_hundred_megabytes_is_one_drop_that_says_so_and_is_never_held_whole(tmp_path: Path):
    path, megabyte = tmp_path / "p.jsonl", b"x" * (1 << 20)
    with path.open("wb") as file:
        file.write(b'{"id": "first", "prompt": "a"}\n{"id": "long", "prompt": "')
        for _ in range(100):
            file.write(megabyte)
        file.write(b'"}\n{"id": "last", "prompt": "b"}\n')
    tracemalloc.start()
    first, drop, last = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(first, Row) and isinstance(last, Row) and (first.row_id, last.row_id) == ("first", "last")
    assert isinstance(drop, Drop) and (drop.reason, len(drop.raw)) == ("not_readable", 2000)
    assert drop.detail.startswith("p.jsonl:2: found a line of 104857629 bytes, of which at most 16777216 are read")
    assert peak < 4 * LONGEST


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_a_text_that_is_too_long_is_one_drop_in_any_kind_of_file(tmp_path: Path, name: str):
    long = "x" * (LONGEST + 1)
    if name == "p.csv":
        (tmp_path / name).write_text(f"id,prompt\nfirst,a\nlong,{long}\nlast,b\n")
    else:
        pq.write_table(pa.table({"id": ["first", "long", "last"], "prompt": ["a", long, "b"]}), tmp_path / name)
    first, drop, last = read(tmp_path / name)
    assert isinstance(first, Row) and isinstance(last, Row) and isinstance(drop, Drop)
    assert (drop.row_id, drop.reason) == ("long", "bad_prompt")
    assert f"found prompt of {LONGEST + 1} characters, expected at most {LONGEST}" in drop.detail


def test_two_thousand_hostile_gold_records_are_each_a_pair_with_its_texts_or_a_documented_drop(tmp_path: Path):
    chance, real = random.Random(5), seeds()
    records: list[dict[str, Any]] = []
    for number in range(2_000):
        record = harmless(chance, {**chance.choice(real), "id": number})
        answers = [chance.choice(TREACHEROUS) + f"an answer {side}" for side in ("chosen", "rejected")]
        record |= dict(zip(("chosen", "rejected"), answers, strict=True))
        if number and chance.random() < 0.6:
            broken = chance.choice(BROKEN)(chance, {"prompt": record["prompt"], "id": number, "category": "x"})
            record = {**broken, "chosen": record["chosen"], "rejected": record["rejected"]}
            if chance.random() < 0.5:
                record[chance.choice(["chosen", "rejected"])] = chance.choice(
                    [*WRONG, [{"role": "user", "content": "x"}]]
                )
        records.append(record)
    path = tmp_path / "g.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    items = [item for chunk in GoldPairs(str(path), None, False).chunks(100) for item in chunk.items]
    assert len(items) == len(records)
    for item, record in zip(items, records, strict=True):
        if isinstance(item, Drop):
            assert item.reason in OF_INPUT | OF_GOLD
        else:
            assert isinstance(item, Pair) and item.prompt == turns(record["prompt"])
            assert {item.a_from: item.a, item.b_from: item.b} == {side: record[side] for side in ("chosen", "rejected")}
    assert sum(isinstance(item, Pair) for item in items) > 700
