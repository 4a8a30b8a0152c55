"""Finished calls, by content address. What is here is never asked again.

A segment is a text file, one call a line: a checksum, a space, and a JSON object. A line is written with one system
call the moment its answer is there, so a killed process loses only what was in flight. A torn or damaged line is
named and passed over; the call it held is asked again. Nothing is ever rewritten.
"""

import asyncio
import errno
import json
import math
import os
import re
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from cai.engines import MOST_TOKENS, Completion, Engine, Request, token_count
from cai.errors import BadInput, CannotWrite
from cai.files import writing

_KEY = re.compile("[0-9a-f]{64}")
_ENCODER = json.JSONEncoder(separators=(",", ":"))
# A line of the journal: the call's key, what it was for, and its completion.
Entry = dict[str, Any]
_COMPLETION_FIELDS = tuple(field.name for field in fields(Completion))
# What the calls of a judge are for; all others are those of answers.
JUDGING = ("verdict", "kept", "reasoning")
_TOKEN_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens")


@dataclass(slots=True)
class Tally:
    """What one session of a run asked its models. Token counts are of asked calls; reused ones cost nothing."""

    asked_calls: int = 0
    reused_calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    engine_restarts: int = 0
    shortened_calls: int = 0

    def count(self, completion: Completion) -> None:
        self.asked_calls += 1
        self.prompt_tokens += completion.prompt_tokens
        self.cached_tokens += completion.cached_tokens
        self.completion_tokens += completion.completion_tokens
        self.shortened_calls += completion.left_out > 0


class OtherRuns:
    """Calls that other runs have finished. Only their places are kept in memory, about 100 bytes a call.

    A run may change or go while its calls are used: what is not where it was is not found. `say` is told so, once.
    """

    def __init__(self, runs: Iterable[Path], say: Callable[[str], None] = lambda _: None) -> None:
        self._places: dict[bytes, tuple[Path, int]] = {}
        self._say: Callable[[str], None] | None = say
        self.damaged: list[str] = []
        for run in runs:
            if not (run / "journal").is_dir():
                raise BadInput(
                    f"--reuse {run}", "no journal", "the folder of a run", "Give the folder that was its --out."
                )
            for segment in sorted((run / "journal").glob("*.jsonl")):
                for offset, entry in _entries(segment, self.damaged):
                    self._places.setdefault(bytes.fromhex(entry["key"]), (segment, offset))

    def find(self, key: str) -> Entry | None:
        """The journal entry of a call, or None."""
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        entry = None
        with suppress(OSError), place[0].open("rb") as file:
            file.seek(place[1])
            entry = read_entry(file.readline())
        if entry is not None and entry["key"] == key:
            return entry
        if self._say is not None:
            self._say(f"{place[0]} is gone or has changed since it was read; what it no longer holds is asked anew.")
            self._say = None
        return None


class Finished:
    """Finished calls by content address, and those under way: equal ones that are asked at the same time are one."""

    def __init__(self) -> None:
        self._finished: dict[str, Entry] = {}
        self._under_way: dict[str, asyncio.Event] = {}

    async def ask_once(self, engine: Engine, request: Request) -> tuple[str, Completion, bool]:
        """The call's key, its completion, and whether the engine was asked for it."""
        key = request.key(engine.model)
        while (entry := self._find(key)) is None and key in self._under_way:
            await self._under_way[key].wait()
        if entry is not None:
            return key, completion_of(entry), False
        done = self._under_way[key] = asyncio.Event()
        try:
            begun, asked_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
            completion = await engine.complete(request)
            named = {"key": key, "purpose": request.purpose, "row_id": request.row_id, "model": engine.model}
            took = {"asked_at": asked_at, "seconds": round(time.monotonic() - begun, 3)}
            self._write({**named, **took, **_fields(completion)})
        finally:
            del self._under_way[key]
            done.set()  # whoever waited finds the answer, or asks
        return key, completion, True

    def _find(self, key: str) -> Entry | None:
        return self._finished.get(key)

    def _write(self, entry: Entry) -> None:
        self._finished[entry["key"]] = entry


class Journal(Finished):
    """One segment: the calls of the rows of one shard."""

    def __init__(self, path: Path, tally: Tally, others: OtherRuns | None = None) -> None:
        super().__init__()
        self._path, self._tally, self._others = path, tally, others
        self.damaged: list[str] = []

    def __enter__(self) -> Self:
        self._finished.clear()
        for _, entry in _entries(self._path, self.damaged):
            self._finished.setdefault(entry["key"], entry)
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            opened = os.fstat(self._file)
            size, self._identity = opened.st_size, (opened.st_ino, opened.st_dev)
            # The last line may have been torn, by a kill or a full disk: then the next one ends it first.
            self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with suppress(CannotWrite) if kind else nullcontext(), writing(self._path):
                os.fsync(self._file)
        finally:
            os.close(self._file)
            self._file = -1  # a late write must fail, not land in whatever gets the number next

    async def ask(self, engine: Engine, request: Request) -> tuple[str, Completion]:
        """The call's key and its completion: from this segment, from other runs, or from the engine."""
        key, completion, asked = await self.ask_once(engine, request)
        if asked:
            self._tally.count(completion)
        else:
            self._tally.reused_calls += 1
        return key, completion

    def entries(self) -> tuple[Entry, ...]:
        """All finished calls of this segment."""
        return tuple(self._finished.values())

    def find(self, key: str) -> Entry | None:
        """A finished call, from this segment or from other runs."""
        return self._find(key)

    def add(self, entry: Entry) -> None:
        """Write down and count a call that was asked elsewhere."""
        self._write(entry)
        self._tally.count(completion_of(entry))

    def _find(self, key: str) -> Entry | None:
        entry = self._finished.get(key)
        if entry is None and self._others is not None and (entry := self._others.find(key)) is not None:
            entry = {**entry, "taken_over": True}  # paid for elsewhere
            self._write(entry)  # so that this run's journal is whole
        return entry

    def _write(self, entry: Entry) -> None:
        text = _ENCODER.encode(entry)
        line = f"{zlib.crc32(text.encode()):08x} {text}\n".encode()
        with writing(self._path):
            there = os.stat(self._path)
            if (there.st_ino, there.st_dev) != self._identity:  # nobody will find again what is written now
                raise FileNotFoundError(errno.ENOENT, "another file has its name")
            line = b"\n" + line if self._torn else line
            self._torn = True
            while line:
                line = line[os.write(self._file, line) :]
            self._torn = False
        super()._write(entry)


def read_entries(path: Path) -> Iterator[Entry]:
    """The sound entries of a segment, if it is there; of equal calls the first counts."""
    seen: set[str] = set()
    for _, entry in _entries(path, []):
        if entry["key"] not in seen:
            seen.add(entry["key"])
            yield entry


def _fields(completion: Completion) -> dict[str, Any]:
    return {name: getattr(completion, name) for name in _COMPLETION_FIELDS}


def completion_of(entry: Entry) -> Completion:
    """The answer that a line of the journal holds."""
    values = {name: entry[name] for name in _COMPLETION_FIELDS if name in entry}  # later versions know more fields
    values["token_ids"] = tuple(values["token_ids"])
    # Earlier versions wrote down whatever a server told, and no table holds a number of 26 digits.
    values |= {name: token_count(values[name]) for name in _TOKEN_COUNTS}
    if values["choice_logprobs"] is not None:
        values["choice_logprobs"] = tuple(values["choice_logprobs"])
    return Completion(**values)


def entries_with(path: Path, texts: Collection[str], damaged: list[str]) -> Iterator[tuple[str, Entry]]:
    """Place and entry of each sound line of a segment in which one of these texts stands; of the others none is read.

    What is not sound among them is named in `damaged`, and so is a line that a kill has torn.
    """
    # As the lines are written: what is not ASCII is escaped.
    wanted = [_ENCODER.encode(text)[1:-1].encode("ascii") for text in texts]
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            has_one = any(text in line for text in wanted)
            entry = read_entry(line) if has_one else None
            if entry is not None:
                yield f"{path}:{number}", entry
            elif line.strip() and (has_one or not line.endswith(b"}\n")):
                damaged.append(f"{path}:{number}")


def _entries(path: Path, damaged: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Offset and entry of each sound line; what is not sound is named in `damaged`."""
    if not path.exists():
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            entry = read_entry(line)
            if entry is not None:
                yield offset, entry
            elif line.strip():
                damaged.append(f"{path}:{number}")
            offset += len(line)


def read_entry(line: bytes) -> dict[str, Any] | None:
    """The entry in a line; None if the line is damaged, or is no entry though nothing has happened to it."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and _is_entry(entry) else None


def _is_entry(entry: dict[str, Any]) -> bool:
    key, token_ids, logprobs = entry.get("key"), entry.get("token_ids"), entry.get("choice_logprobs", ())
    return (
        isinstance(key, str)
        and _KEY.fullmatch(key) is not None
        and all(isinstance(entry.get(name), str) for name in ("text", "finish"))
        and all(_is_count(entry.get(name), most=math.inf) for name in _TOKEN_COUNTS)
        and isinstance(token_ids, list)
        and all(_is_count(one) for one in token_ids)
        and (logprobs is None or (isinstance(logprobs, list) and all(isinstance(one, float | int) for one in logprobs)))
        and _is_count(entry.get("left_out", 0))  # earlier versions did not know it
    )


def _is_count(value: object, most: float = MOST_TOKENS) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
