"""Gold pairs: prompts with two answers of which people have said which is the better one, to try a judge on.

Each record becomes a pair or one drop with a reason, so kept + dropped = read. What concerns the whole source (it is
missing, its columns are misnamed) is BadInput.

    {"prompt": "Is the moon a star?", "chosen": "No, it is a moon.", "rejected": "Yes."}
    {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [the same prompt, another answer]}
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from cai.constitution import Constitution
from cai.errors import BadInput
from cai.ids import first_of_two
from cai.inputs import (
    BadRecord,
    Chunk,
    Counts,
    as_drop,
    check_columns,
    conversation,
    derived_id,
    given_id,
    groups,
    messages_of,
    text_of,
)
from cai.rows import Drop, Message, Pair
from cai.sources import Unreadable, is_left, kind_of, read_records
from cai.store import Json

STAGE = "calibrate"
CHOSEN, REJECTED = "chosen", "rejected"


class GoldPairs:
    """A source of gold pairs. Iterating over `chunks` reads it anew each time."""

    def __init__(self, spec: str, limit: int | None, strict: bool) -> None:
        self.spec, self.limit, self.strict = spec, limit, strict
        self.made_of: str | None = None
        self.unread = False

    def look(self) -> None:
        """Read the first record: raises BadInput for a missing file or a misnamed column before anything slow."""
        next(self._items(), None)

    def chunks(self, records_in_chunk: int) -> Iterator[Chunk]:
        """The source in chunks of that many records.

        Raises BadInput for a fault of the whole source, and with `strict` for the first record that cannot be used.
        """
        for index, group in enumerate(groups(self._items(), records_in_chunk)):
            yield Chunk(index, tuple(group))

    def _items(self) -> Iterator[Pair | Drop]:
        seen, copies = Counts(), Counts()
        position = 0
        records = read_records(self.spec)
        for number, (place, record) in enumerate(islice(records, self.limit)):
            if number == 0 and isinstance(record, dict):
                _check(place, record)
            try:
                pair = parse_pair(record, place, position, copies)
                if not seen.add_new([pair.row_id]):
                    raise BadRecord("duplicate_id", f"the id '{pair.row_id}' again", "each id once")
            except BadRecord as bad:
                yield as_drop(bad, record, place, STAGE, self.strict)
                continue
            position += 1
            yield pair
        self.unread = is_left(records)


def _check(place: str, record: dict[str, Any]) -> None:
    # Two answers as text have no beginning to share, so the prompt must have a column of its own.
    if isinstance(record.get(CHOSEN), str) and isinstance(record.get(REJECTED), str):
        check_columns(place, record, ("prompt", CHOSEN, REJECTED), ("id",))
    else:
        check_columns(place, record, (CHOSEN, REJECTED), ("prompt", "id"))


def parse_pair(record: dict[str, Any] | Unreadable, place: str, position: int, copies: Counts) -> Pair:
    """The pair in one record. Raises BadRecord.

    An answer is text, one message, or the whole conversation with the answer at its end; without a column `prompt`,
    the prompt is what both conversations begin with. A record without an id is named by all it says.
    """
    if isinstance(record, Unreadable):
        raise BadRecord("not_readable", record.found, f"an object with '{CHOSEN}' and '{REJECTED}'")
    row_id = given_id(record)
    before_chosen, chosen = _answer(record.get(CHOSEN), CHOSEN, row_id)
    before_rejected, rejected = _answer(record.get(REJECTED), REJECTED, row_id)
    given = record.get("prompt")
    if given is None and before_chosen and before_rejected:
        given = record[CHOSEN][:-1]
    prompt = conversation(given, row_id)
    for column, before in ((CHOSEN, before_chosen), (REJECTED, before_rejected)):
        if before and before != prompt:
            found = f"other turns before the answer in '{column}'"
            raise BadRecord("prompts_differ", found, "one prompt for both answers, turn by turn", row_id)
    if chosen.strip() == rejected.strip():
        raise BadRecord("equal_texts", "the same text twice", "two different answers", row_id)
    row_id = row_id or derived_id([[[one.role, one.content] for one in prompt], chosen, rejected], copies)
    return gold_pair(row_id, prompt, chosen, rejected, place, position)


def gold_pair(row_id: str, prompt: tuple[Message, ...], chosen: str, rejected: str, source: str, position: int) -> Pair:
    """A pair of which `chosen` is known to be the better answer; its id decides which of the two is a."""
    pair_id = f"{row_id}/{CHOSEN}+{REJECTED}"
    sides = ((chosen, CHOSEN), (rejected, REJECTED))
    (a, a_from), (b, b_from) = sides if first_of_two(pair_id) else reversed(sides)
    return Pair(pair_id, row_id, row_id, prompt, a, b, a_from, b_from, source, position)


def constitution_gold(constitution: Constitution) -> Iterator[tuple[str, Pair]]:
    """The examples of a constitution as gold pairs ("physical-safety-1", ...), each with the id of its principle."""
    position = 0
    for principle in constitution.principles:
        for number, example in enumerate(principle.examples, start=1):
            prompt, place = (Message("user", example.prompt),), f"{constitution.path.name}:{principle.id}"
            row_id = f"{principle.id}-{number}"
            yield principle.id, gold_pair(row_id, prompt, example.better, example.worse, place, position)
            position += 1


class ConstitutionPairs:
    """The examples of a constitution as a source of gold pairs. `principles` says, by pair_id, which one judges."""

    def __init__(self, constitution: Constitution) -> None:
        found = list(constitution_gold(constitution))
        self.spec = str(constitution.path)
        self.made_of: str | None = None
        self.unread = False
        if not found:
            raise BadInput(self.spec, "no examples", "examples to test a judge with", "Write some for its principles.")
        self.principles = {pair.pair_id: (name,) for name, pair in found}
        self._pairs = [pair for _, pair in found]

    def chunks(self, records_in_chunk: int) -> Iterator[Chunk]:
        """The pairs in chunks of that many."""
        for index, group in enumerate(groups(self._pairs, records_in_chunk)):
            yield Chunk(index, tuple(group))


def a_is_gold(pair: Json) -> bool:
    """Whether a is the answer that people chose. Raises ValueError for a pair that is not gold."""
    if {pair["a_from"], pair["b_from"]} != {CHOSEN, REJECTED}:
        raise ValueError(f"{pair['pair_id']} is no gold pair: it is of {pair['a_from']} and {pair['b_from']}")
    return pair["a_from"] == CHOSEN


def _answer(value: object, column: str, row_id: str) -> tuple[tuple[Message, ...], str]:
    """The turns before an answer, if they stand there, and the answer."""

    def bad(reason: str, found: str, expected: str) -> BadRecord:
        return BadRecord(reason, f"{found} in '{column}'", expected, row_id)

    if value is None:
        raise bad("no_answer", "nothing", "text or messages")
    if isinstance(value, str):
        return (), text_of(value, "answer", "bad_answer", bad)
    if not isinstance(value, list) or not value:
        raise bad("bad_answer", f"the type {kind_of(value)}", "text or messages")
    *before, answer = messages_of(value, "bad_answer", bad)
    if answer.role != "assistant":
        raise bad("no_assistant_turn", f"messages that end with the {answer.role}", "the assistant's answer at the end")
    return tuple(before), answer.content
