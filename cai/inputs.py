"""Prompts: from records to rows, as a stream, in order, nothing changed.

Each record becomes rows or one drop with a reason, so kept + dropped = read. What concerns the whole file (it is
missing, its columns are misnamed, none of its rows can be used) is BadInput before a model is asked anything.
"""

import difflib
import errno
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

from cai.errors import BadInput, CannotWrite
from cai.ids import digest, sample_row_id
from cai.rows import Drop, Message, Pair, Row, is_text
from cai.sources import LONGEST, Unreadable, is_left, kind_of, plain, read_records

COLUMNS = ("prompt", "id")
ROLES = ("system", "user", "assistant")

Item = TypeVar("Item")
Bad = Callable[[str, str, str], "BadRecord"]


@dataclass(frozen=True)
class Chunk:
    """The records of one shard in input order: rows or pairs to work on, and drops."""

    index: int
    items: tuple[Row | Pair | Drop, ...]

    @cached_property  # of a finished shard that is read only to come to the next one, nobody asks
    def digests(self) -> tuple[str, ...]:
        """What each item is."""
        return tuple(content_of(item) for item in self.items)

    @property
    def sha(self) -> str:
        return digest(list(self.digests))

    @property
    def places(self) -> str:
        """Where the items were read, and what else of them may be another though they are the same."""
        return digest([_place_of(item) for item in self.items])[:16]


class Prompts:
    """A prompt source. Iterating over `chunks` reads it anew each time."""

    def __init__(self, spec: str, stage: str, limit: int | None, samples: int, strict: bool) -> None:
        self.spec, self.stage, self.limit, self.samples, self.strict = spec, stage, limit, samples, strict
        self.made_of: str | None = None
        self.unread = False

    def look(self) -> None:
        """Read the first record: raises BadInput for a missing file or a misnamed column before anything slow."""
        next(self._items(), None)

    def chunks(self, records_in_chunk: int) -> Iterator[Chunk]:
        """The source in chunks of that many records; of each good record there are `samples` rows.

        Raises BadInput for a fault of the whole source, and with `strict` for the first record that cannot be used.
        """
        items = self._items()
        for index, group in enumerate(groups(items, records_in_chunk)):
            yield Chunk(index, tuple(item for record in group for item in record))

    def _items(self) -> Iterator[tuple[Row | Drop, ...]]:
        seen, copies = Counts(), Counts()
        position = 0
        records = read_records(self.spec)
        for number, (place, record) in enumerate(islice(records, self.limit)):
            if number == 0 and isinstance(record, dict):
                check_columns(place, record, ("prompt",), ("id",))
            try:
                prompt_id, prompt, extra = parse(record, place, copies)
                row_ids = [sample_row_id(prompt_id, k) for k in range(self.samples)]
                if not seen.add_new(row_ids):
                    raise BadRecord(
                        "duplicate_id", *_taken(prompt_id, [one for one in row_ids if one in seen], self.samples)
                    )
            except BadRecord as bad:
                yield (as_drop(bad, record, place, self.stage, self.strict),)
                continue
            rows = [Row(row_id, prompt_id, k, prompt, place, extra, position + k) for k, row_id in enumerate(row_ids)]
            position += self.samples
            yield tuple(rows)
        self.unread = is_left(records)


def _taken(prompt_id: str, taken: Sequence[str], samples: int) -> tuple[str, str]:
    """What was found and expected where other rows have ids of a record's rows already."""
    if len(taken) == samples:
        return f"the id '{prompt_id}' again", "each id once"
    found = f"the id '{prompt_id}', of which a sample would have the id '{taken[0]}', as another row has"
    return found, "ids that end in no ~1, ~2, ... where there are several samples"


class BadRecord(Exception):
    """One record that cannot be used: a countable reason, what was found, what was expected, its id if it has one."""

    def __init__(self, reason: str, found: str, expected: str, row_id: str = "") -> None:
        super().__init__(reason)
        self.reason, self.found, self.expected, self.row_id = reason, found, expected, row_id


def as_drop(bad: BadRecord, record: dict[str, Any] | Unreadable, place: str, stage: str, strict: bool) -> Drop:
    """The drop that a record becomes. Raises BadInput in its stead with `strict`."""
    if strict:
        remedy = "Mend the record; without --strict it is dropped and counted."
        raise BadInput(place, bad.found, bad.expected, remedy) from None
    raw = record.raw if isinstance(record, Unreadable) else json.dumps(plain(record), ensure_ascii=True)[:2000]
    sentence = f"{place}: found {bad.found}, expected {bad.expected}"
    return Drop(bad.row_id or place, stage, bad.reason, _printable(sentence), _printable(raw), place)


def check_columns(place: str, record: dict[str, Any], needed: tuple[str, ...], optional: tuple[str, ...]) -> None:
    """A misspelt column is a fault of the whole source: every row would be dropped, or lose its id, for it."""
    for known in (*needed, *optional):
        if known in record:
            continue
        spelt = {name.strip().casefold(): name for name in record}
        close = spelt.get(known) or spelt.get(f"{known}s")
        if close is None and known in needed:
            found = difflib.get_close_matches(known, list(spelt), n=1, cutoff=0.7)
            close = spelt[found[0]] if found else None
        if close is not None:
            raise BadInput(place, f"the column '{close}'", f"'{known}'", f"Rename the column to '{known}'.")
    for missing in needed:
        if missing not in record:
            columns = ", ".join(f"'{name}'" for name in record) or "none"
            expected = f"a column '{missing}' with text or messages"
            raise BadInput(place, f"the columns {columns}", expected, "Rename the column that holds it.")


def parse(record: dict[str, Any] | Unreadable, place: str, copies: "Counts") -> tuple[str, tuple[Message, ...], str]:
    """Id, conversation and carried-along columns (a JSON object) of one record.

    A record without an id is named by its conversation; see `derived_id` for `copies`.
    """
    if isinstance(record, Unreadable):
        raise BadRecord("not_readable", record.found, "an object with a 'prompt'")
    row_id = given_id(record)
    prompt = conversation(record.get("prompt"), row_id)
    row_id = row_id or derived_id([[message.role, message.content] for message in prompt], copies)
    extra = {name: plain(value) for name, value in record.items() if name not in COLUMNS}
    return row_id, prompt, json.dumps(extra, ensure_ascii=True, sort_keys=True) if extra else "{}"


def given_id(record: dict[str, Any]) -> str:
    """The id in the record, as text; "" if it has none."""
    value = record.get("id")
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 500:
        raise BadRecord("bad_id", f"the id {json.dumps(plain(value))[:80]}", "printable text or a whole number")
    return value


def derived_id(content: object, copies: "Counts") -> str:
    """An id made from what a record says, so that it, and all that is derived from it, stays the same when records are
    added before it. `copies` counts equal records, which get "-2", "-3", ... behind the id.
    """
    row_id = digest(content)[:16]
    times = copies.add(row_id)
    return row_id if times == 1 else f"{row_id}-{times}"


def conversation(value: object, row_id: str) -> tuple[Message, ...]:
    """A prompt, text or messages, as messages that end with the user's turn."""

    def bad(reason: str, found: str, expected: str) -> BadRecord:
        return BadRecord(reason, found, expected, row_id)

    if value is None:
        raise bad("no_prompt", "no 'prompt'", "text or a list of messages")
    if isinstance(value, str):
        return (Message("user", text_of(value, "prompt", "bad_prompt", bad)),)
    if not isinstance(value, list) or not value:
        raise bad("bad_prompt", f"a prompt of the type {kind_of(value)}", "text or a list of messages")
    messages = messages_of(value, "bad_prompt", bad)
    if messages[-1].role != "user":
        raise bad(
            "no_user_turn",
            f"a conversation that ends with the {messages[-1].role}",
            "one that ends with the user's turn",
        )
    return messages


def messages_of(turns: list[Any], wrong_type: str, bad: Bad) -> tuple[Message, ...]:
    """The turns as messages. `bad` makes the error; `wrong_type` is its reason where a content is not text."""
    messages: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise bad(
                "bad_message", f"no role and content in message {number}", 'messages as {"role": ..., "content": ...}'
            )
        if others := [name for name, extra in turn.items() if name not in ("role", "content") and extra is not None]:
            raise bad("bad_message", f"the key '{others[0]}' in message {number}", "role and content only")
        if turn["role"] not in ROLES:
            raise bad(
                "bad_role", f"the role {json.dumps(plain(turn['role']))[:40]} in message {number}", ", ".join(ROLES)
            )
        messages.append(
            Message(turn["role"], text_of(turn["content"], f"content in message {number}", wrong_type, bad))
        )
    return tuple(messages)


def text_of(value: object, where: str, wrong_type: str, bad: Bad) -> str:
    """The value if it is text that says something and that a table can hold."""
    if not isinstance(value, str):
        raise bad(wrong_type, f"{where} of the type {kind_of(value)}", "text")
    if len(value) > LONGEST:
        raise bad(wrong_type, f"{where} of {len(value)} characters", f"at most {LONGEST}")
    if not value.strip():
        raise bad("empty_text", f"an empty {where}", "some text")
    if not is_text(value):
        raise bad("not_text", f"half a surrogate pair in {where}", "text that UTF-8 can hold")
    return value


def content_of(item: Row | Pair | Drop) -> str:
    """What an item is, for the mark of its shard, wherever it was read: a renamed source holds the same ones."""
    if isinstance(item, Drop):
        return digest([item.reason, item.raw])[:16]
    turns = [[message.role, message.content] for message in item.prompt]
    if isinstance(item, Row):
        return digest([item.row_id, turns, item.extra])[:16]
    return digest([item.pair_id, turns, item.a, item.b, item.a_from, item.b_from])[:16]


def _place_of(item: Row | Pair | Drop) -> list[str | int]:
    return [item.source, item.row_id, item.detail] if isinstance(item, Drop) else [item.source, item.position]


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Counts:
    """How often each text was added, exactly, in memory that stays flat over millions of them: SQLite moves what does
    not fit into its cache to a temporary file, which is gone with the process."""

    def __init__(self) -> None:
        # The reader of a source may be handed from thread to thread, never to two at once.
        self._file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._file.execute("pragma journal_mode = off")
        self._file.execute("create table texts (text blob primary key, times integer) without rowid")
        self._file.execute("begin")

    def add_new(self, texts: Sequence[str]) -> bool:
        """Add texts that differ, unless one of them is there already: then none is added."""
        if len(texts) > 1 and any(text in self for text in texts):
            return False
        return all(self._run("insert or ignore into texts values (?, 1)", text).rowcount for text in texts)

    def __contains__(self, text: str) -> bool:
        return self._run("select 1 from texts where text = ?", text).fetchone() is not None

    def add(self, text: str) -> int:
        """How often it has been added by now."""
        added = "insert into texts values (?, 1) on conflict do update set times = times + 1 returning times"
        (times,) = self._run(added, text).fetchone()
        return times

    def _run(self, statement: str, text: str) -> sqlite3.Cursor:
        """Raises CannotWrite where there is no room for the temporary file."""
        try:
            return self._file.execute(statement, (_bytes(text),))
        except sqlite3.OperationalError as error:
            full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
            place = "the folder for temporary files (TMPDIR)"
            raise CannotWrite(place, OSError(errno.ENOSPC if full else errno.EIO, str(error))) from error


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of that size; the last one may be shorter."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
