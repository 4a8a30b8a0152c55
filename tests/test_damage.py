"""Files of a run that were cut or changed at any byte: the damage is named, and what is intact is used."""

import asyncio
import json
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cai import journal
from cai.audit import report
from cai.engines import Completion, Request, Sampling
from cai.engines.scripted import ScriptedEngine
from cai.errors import BadInput
from cai.journal import Journal, OtherRuns, Tally
from cai.rows import Message
from cai.store import Run, open_run
from tests.conftest import table_bytes
from tests.small import STAGES, Asked, answer_by_script, before, label, revise

JOURNAL_CASES = 2_000


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return answer_by_script(monkeypatch)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        answer_by_script(patch)
        return before("", tmp_path_factory.mktemp("damage") / "finished")


@pytest.fixture
def finished(tmp_path: Path, made_once: Path, asked: Asked) -> Path:
    """A folder in which every stage is finished."""
    return shutil.copytree(made_once, tmp_path / "finished")


# Ways to damage bytes. Each gives the new ones, and where the old ones were touched.

Damage = Callable[[bytes, random.Random], tuple[bytes, range]]


def flip(data: bytes, chance: random.Random) -> tuple[bytes, range]:
    at, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :], range(at, at + 1)


def flip_an_end(data: bytes, chance: random.Random) -> tuple[bytes, range]:
    """Join two lines."""
    at = chance.choice([place for place, byte in enumerate(data) if byte == 10])
    return data[:at] + bytes([10 ^ 1 << chance.randrange(8)]) + data[at + 1 :], range(at, at + 1)


def split(data: bytes, chance: random.Random) -> tuple[bytes, range]:
    at = chance.randrange(len(data))
    return data[:at] + b"\n" + data[at + 1 :], range(at, at + 1)


def cut(data: bytes, chance: random.Random) -> tuple[bytes, range]:
    at = chance.randrange(len(data))
    return data[:at], range(at, len(data))


def cut_out(data: bytes, chance: random.Random) -> tuple[bytes, range]:
    at = chance.randrange(len(data))
    end = min(len(data), at + chance.randrange(1, 400))
    return data[:at] + data[end:], range(at, end)


def zero(data: bytes, chance: random.Random) -> tuple[bytes, range]:
    """What a power cut may leave: a file as long as it was, and nothing in it."""
    at = chance.randrange(len(data))
    end = min(len(data), at + chance.randrange(1, 400))
    return data[:at] + bytes(end - at) + data[end:], range(at, end)


DAMAGES: list[Damage] = [flip, flip_an_end, split, cut, zero, cut_out]
IN_PLACE = DAMAGES[:-1]  # what a disk does; only a person takes bytes out of the middle


# The journal

FULL = Completion("text \u2028 with\nlines", "length", 5, 3, 7, (1, 2, 3), (-0.1, -2.5), 2)


def segment(path: Path, calls: int) -> list[str]:
    """A journal segment of so many calls; returns their keys."""

    async def fill() -> list[str]:
        engine = ScriptedEngine(lambda _: FULL)
        requests = [Request("response", "r", (Message("user", "hello"),), Sampling(9), seed=n) for n in range(calls)]
        with Journal(path, Tally()) as opened:
            return [(await opened.ask(engine, request))[0] for request in requests]

    return asyncio.run(fill())


def lines_touched(data: bytes, touched: range) -> set[int]:
    """The lines that lie in a range of bytes, by their numbers from 0; the newline belongs to the line it ends, and
    with it goes the next line."""
    first, last = data.count(b"\n", 0, touched.start), data.count(b"\n", 0, touched.stop)
    return set(range(first, last + 1)) if touched else set()


def test_a_journal_damaged_anywhere_loses_the_damaged_calls_alone_and_names_their_lines(tmp_path: Path):
    path, chance = tmp_path / "run" / "journal" / "part-00000.jsonl", random.Random(0)
    keys = segment(path, 8)
    data = path.read_bytes()
    wanted = [entry for _, entry in journal._entries(path, [])]
    assert [entry["key"] for entry in wanted] == keys
    for case in range(JOURNAL_CASES):
        hurt, touched = DAMAGES[case % len(DAMAGES)](data, chance)
        path.write_bytes(hurt)
        damaged: list[str] = []
        found = [entry for _, entry in journal._entries(path, damaged)]
        assert all(entry in wanted for entry in found), "what is found is what was written"
        missing = {number for number, entry in enumerate(wanted) if entry not in found}
        assert missing <= lines_touched(data, touched), (case, touched)
        whole = {line for line in hurt.split(b"\n") if line in data.split(b"\n")}
        named = {int(place.removeprefix(f"{path}:")) for place in damaged}
        assert named == {n for n, line in enumerate(hurt.split(b"\n"), 1) if line not in whole and line.strip()}, case


def test_no_single_flipped_bit_passes_for_a_line_of_the_journal(tmp_path: Path):
    segment(tmp_path / "j.jsonl", 1)
    line = (tmp_path / "j.jsonl").read_bytes()
    assert journal.read_entry(line) is not None
    for at in range(len(line) - 1):
        for bit in range(8):
            assert journal.read_entry(line[:at] + bytes([line[at] ^ 1 << bit]) + line[at + 1 :]) is None


def test_lines_of_a_journal_in_another_order_or_twice_are_the_same_calls(tmp_path: Path):
    path, chance = tmp_path / "j.jsonl", random.Random(0)
    segment(path, 8)
    lines = path.read_bytes().splitlines(keepends=True)
    wanted = sorted(entry["key"] for _, entry in journal._entries(path, []))
    for _ in range(20):
        mixed = [*lines, *chance.choices(lines, k=3)]
        chance.shuffle(mixed)
        path.write_bytes(b"".join(mixed))
        with Journal(path, Tally()) as opened:
            assert sorted(opened._finished) == wanted and opened.damaged == []


ENTRY: dict[str, Any] = {
    "key": "a" * 64, "purpose": "response", "row_id": "r", "model": "m", "seconds": 0.1, "text": "t", "finish": "stop",
    "prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 1, "token_ids": [], "choice_logprobs": None,
    "left_out": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    "entry",
    [
        *({name: value for name, value in ENTRY.items() if name != missing}
          for missing in ("key", "text", "finish", "prompt_tokens", "token_ids", "choice_logprobs")),
        *(ENTRY | {name: value}
          for name, value in (
              ("key", 5), ("key", "xyz"), ("key", "A" * 64), ("text", None), ("text", 3), ("finish", []),
              ("prompt_tokens", "1"), ("cached_tokens", -1), ("completion_tokens", True), ("token_ids", None),
              ("token_ids", ["1"]), ("choice_logprobs", "no"), ("choice_logprobs", [None]), ("left_out", None),
          )),
        [], "text", None, 7, {},
    ],
)  # fmt: skip
def test_a_line_that_is_no_entry_though_its_checksum_is_right_is_named_and_passed_over(tmp_path: Path, entry: object):
    path = tmp_path / "run" / "journal" / "j.jsonl"
    segment(path, 2)
    first, second = path.read_bytes().splitlines(keepends=True)
    text = json.dumps(entry).encode()
    path.write_bytes(first + b"%08x %s\n" % (zlib.crc32(text), text) + second)
    with Journal(path, Tally()) as opened:
        assert opened.damaged == [f"{path}:2"] and len(opened._finished) == 2
    assert OtherRuns([tmp_path / "run"]).damaged == [f"{path}:2"]


def test_an_entry_as_it_is_written_is_one(tmp_path: Path):
    text = json.dumps(ENTRY).encode()
    assert journal.read_entry(b"%08x %s\n" % (zlib.crc32(text), text)) == ENTRY


@pytest.mark.parametrize("stage", ["revise", "label"])
def test_a_damaged_journal_gives_the_same_tables_and_only_the_damaged_calls_are_asked_again(
    finished: Path, asked: Asked, stage: str
):
    wanted, chance = table_bytes(finished / "run"), random.Random(1)
    path = finished / "run" / "journal" / "part-00000.jsonl"
    data = path.read_bytes()
    tables = {"revise": ["trajectories"], "label": ["pairs", "verdicts", "labels"]}[stage]
    made = ("response", "critique", "revision")  # the others are the judge's
    written = [entry for _, entry in journal._entries(path, [])]
    used = {entry["key"] for entry in written if (entry["purpose"] in made) == (stage == "revise")}
    assert used
    for case in range(24):
        hurt, _ = DAMAGES[case % len(DAMAGES)](data, chance)
        path.write_bytes(hurt)
        left = {entry["key"] for _, entry in journal._entries(path, [])}
        for table in tables:
            shutil.rmtree(finished / "run" / table)
        asked.clear()
        watch = STAGES[stage](finished)
        assert table_bytes(finished / "run") == wanted
        assert sorted(asked) == sorted(used - left), case
        whole = data.split(b"\n")
        damaged = [n for n, line in enumerate(hurt.split(b"\n"), 1) if line.strip() and line not in whole]
        told = "is damaged and passed over; the call it held is asked again."
        assert [f"{path}:{number} {told}" for number in damaged] == watch.said, case


# What else is in a run


def lines_of(path: Path) -> Iterator[str]:
    return (line for line in path.read_text().splitlines() if line)


@pytest.mark.parametrize("name", ["manifest.json", "settings.json"])
def test_whatever_byte_of_a_run_s_own_files_is_changed_it_is_named_or_says_the_same(finished: Path, name: str):
    run = open_run(str(finished / "run"))
    read = {"manifest.json": run.manifest, "settings.json": run.settings}[name]
    path, chance, wanted = run.folder / name, random.Random(2), read()
    data, refused = path.read_bytes(), 0
    for case in range(1_000):
        hurt, _ = IN_PLACE[case % len(IN_PLACE)](data, chance)
        path.write_bytes(hurt)
        try:
            assert read() == wanted, case
        except BadInput as error:
            refused += 1
            assert str(error).startswith(f"{path}: found a damaged file (") and "expected what cai wrote. Re" in str(
                error
            )
    assert refused > 900


def test_the_seal_of_a_record_cannot_be_flipped_away(finished: Path):
    """A record without one is taken for an earlier version's."""
    path = finished / "run" / "manifest.json"
    data = path.read_bytes()
    for at in range(data.index(b'"sealed"'), data.index(b'"sealed"') + len('"sealed": "0123456789abcdef"')):
        for bit in range(8):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            with pytest.raises(BadInput, match="damaged"):
                Run(finished / "run").manifest()


def test_a_run_of_an_earlier_version_is_read(finished: Path, asked: Asked):
    for name in ("manifest.json", "settings.json"):
        path = finished / "run" / name
        value = json.loads(path.read_text())
        value.pop("other files", None)
        path.write_text(
            json.dumps(
                {
                    stage: {k: v for k, v in one.items() if k not in ("sealed", "code_sha")}
                    for stage, one in value.items()
                }
            )
        )
    sessions = finished / "run" / "sessions.jsonl"
    kept = [
        {k: v for k, v in json.loads(line).items() if k not in ("sealed", "engines", "versions")}
        for line in lines_of(sessions)
    ]
    sessions.write_text("".join(json.dumps(one) + "\n" for one in kept))
    (finished / "run" / "shards.jsonl").unlink()
    before = report(open_run(str(finished / "run")))
    assert before["revise"]["cost"]["asked_calls"] > 0
    for stage in STAGES.values():
        assert stage(finished).said == []
    assert asked == [] and report(open_run(str(finished / "run"))) == before


@pytest.mark.parametrize("name", ["sessions.jsonl", "shards.jsonl"])
def test_a_damaged_line_of_a_run_s_own_is_named_and_passed_over(finished: Path, name: str, asked: Asked):
    path, chance = finished / "run" / name, random.Random(3)
    data, tables = path.read_bytes(), table_bytes(finished / "run")
    written = list(lines_of(path))
    for case in range(500):
        hurt, _ = IN_PLACE[case % len(IN_PLACE)](data, chance)
        path.write_bytes(hurt)
        found = [line for line in hurt.decode("utf-8", "replace").split("\n") if line.strip() and line not in written]
        assert len(Run(finished / "run").damaged_lines()) == len(found), case
    path.write_bytes(flip(data[:-1], chance)[0])
    (place,) = Run(finished / "run").damaged_lines()
    assert revise(finished).said == [f"{place} is damaged and passed over; no finished call hangs on it."]
    assert asked == [] and table_bytes(finished / "run") == tables


PARTS = [f"{table}/part-00000.parquet" for table in ("trajectories", "pairs", "verdicts", "labels")]
PARTS.append("drops/revise-00001.parquet")


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("unfinished", [False, True])
def test_whatever_byte_of_a_table_is_changed_nobody_reads_it(finished: Path, name: str, unfinished: bool):
    path, chance = finished / "run" / name, random.Random(4)
    if unfinished:
        (finished / "run" / "manifest.json").unlink()
    data = path.read_bytes()
    index, table = int(path.stem[-5:]), path.parent.name
    for case in range(100):
        hurt, _ = IN_PLACE[case % len(IN_PLACE)](data, chance)
        if hurt == data:
            continue
        path.write_bytes(hurt)
        run = open_run(str(finished / "run"))
        with pytest.raises(BadInput, match=r"found a damaged shard \(its bytes are not those that were written\)"):
            list(run.dropped("revise", "trajectories") if table == "drops" else run.shard_records(table, index))


def in_a_page(path: Path, where: int) -> None:
    """Flip a bit of a Parquet file at so many thousandths of its length."""
    data = bytearray(path.read_bytes())
    data[len(data) * where // 1000] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("where", [0, 300, 999])
@pytest.mark.parametrize("name", PARTS)
def test_a_flipped_bit_in_a_table_is_named_by_every_command_that_would_read_it(
    finished: Path, name: str, where: int, asked: Asked
):
    path, wanted = finished / "run" / name, table_bytes(finished / "run")
    in_a_page(path, where)
    early = path.parent.name in ("trajectories", "drops")
    for stage in (
        revise if early else label,
        STAGES["label"] if path.parent.name == "trajectories" else STAGES["export"],
    ):
        with pytest.raises(BadInput, match=rf"{name}: found a damaged shard .* its calls are in the journal"):
            stage(finished)
    path.unlink()
    for stage in STAGES.values():
        stage(finished)
    assert asked == [] and table_bytes(finished / "run") == wanted


def test_a_shard_that_is_damaged_before_its_stage_is_finished_is_not_published(finished: Path, asked: Asked):
    wanted = table_bytes(finished / "run")
    (finished / "run" / "manifest.json").unlink()
    in_a_page(finished / "run" / PARTS[0], 400)
    for read in (lambda: revise(finished), lambda: report(open_run(str(finished / "run")))):
        with pytest.raises(BadInput, match=r"part-00000\.parquet: found a damaged shard"):
            read()
    assert not (finished / "run" / "manifest.json").exists()
    (finished / "run" / PARTS[0]).unlink()
    revise(finished)
    label(finished)
    assert asked == [] and table_bytes(finished / "run") == wanted


def test_a_shard_that_is_damaged_while_its_stage_works_is_not_published(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
):
    folder = before("revise", tmp_path / "a")
    real = Run.add_session

    def hurt_first(run: Run, session: Any) -> None:
        in_a_page(run.shard("trajectories", 0), 500)
        real(run, session)

    monkeypatch.setattr(Run, "add_session", hurt_first)
    with pytest.raises(BadInput, match=r"part-00000\.parquet: found a damaged shard"):
        revise(folder)
    assert "revise" not in open_run(str(folder / "run")).manifest()


def test_a_shard_that_a_finished_stage_has_lost_is_not_passed_over(finished: Path):
    (finished / "run" / PARTS[0]).unlink()
    with pytest.raises(BadInput, match=rf"{PARTS[0]}: found no such file, though the manifest has it.*Give cai revise"):
        label(finished)
    revise(finished)
    label(finished)


def test_a_changed_copy_of_the_constitution_judges_nothing_and_is_mended_by_its_stage(finished: Path, asked: Asked):
    path = finished / "run" / "inputs" / "revise" / "constitution.yaml"
    text = path.read_text()
    path.write_text(text.replace("harm", "hurt"))
    for stage in (label, STAGES["export"]):
        with pytest.raises(BadInput, match=r"constitution\.yaml: found another text than the one that cai revise used"):
            stage(finished)
    revise(finished)
    assert path.read_text() == text and asked == []
    label(finished)
