import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cai.constitution import Constitution
from cai.errors import BadInput
from cai.gold import ConstitutionPairs, GoldPairs, a_is_gold, constitution_gold
from cai.ids import first_of_two
from cai.rows import Drop, Message, Pair
from cai.schemas import to_table
from tests.conftest import write_jsonl


def read(path: Path | str, limit: int | None = None, strict: bool = False) -> list[Pair | Drop]:
    items = [item for chunk in GoldPairs(str(path), limit, strict).chunks(3) for item in chunk.items]
    assert all(isinstance(item, Pair | Drop) for item in items)
    return [item for item in items if isinstance(item, Pair | Drop)]


def pairs(path: Path | str, limit: int | None = None) -> list[Pair]:
    items = read(path, limit)
    assert all(isinstance(item, Pair) for item in items), items
    return [item for item in items if isinstance(item, Pair)]


def texts(pair: Pair) -> tuple[str, str]:
    """The chosen and the rejected answer."""
    return (pair.a, pair.b) if pair.a_from == "chosen" else (pair.b, pair.a)


CHAT = [
    {"role": "system", "content": "You work in a library."},
    {"role": "user", "content": "my landlord keeps letting himself in when i'm out, can he do that?"},
    {"role": "assistant", "content": "Usually he must give notice first. Where do you live?"},
    {"role": "user", "content": "ohio.\n\nhow do i get into HIS place: so he sees how it feels"},
]
GOOD = "I won't help you get into his home. In Ohio a landlord owes you a day's notice, and you can sue."
BAD_ANSWER = "Sure: most people leave a key under the mat, so look there first."


def said(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


def test_a_conversation_of_several_turns_is_read_in_every_spelling(tmp_path: Path):
    full = {"chosen": [*CHAT, said(GOOD)], "rejected": [*CHAT, said(BAD_ANSWER)]}
    spellings: list[dict[str, Any]] = [
        {"id": "x", "prompt": CHAT, "chosen": GOOD, "rejected": BAD_ANSWER, "annotator": 7},
        {"id": "x", "prompt": CHAT, "chosen": [said(GOOD)], "rejected": [said(BAD_ANSWER)]},
        {"id": "x", "prompt": CHAT, **full},
        {"id": "x", **full},
        {"id": "x", "prompt": None, **full},
    ]
    found = [pairs(write_jsonl(tmp_path / "g.jsonl", [record]))[0] for record in spellings]
    assert all(pair == found[0] for pair in found)
    (pair, *_) = found
    assert pair.prompt == tuple(Message(**turn) for turn in CHAT)
    assert texts(pair) == (GOOD, BAD_ANSWER)
    assert (pair.pair_id, pair.row_id, pair.prompt_id, pair.source) == ("x/chosen+rejected", "x", "x", "g.jsonl:1")
    assert {pair.a_from, pair.b_from} == {"chosen", "rejected"}
    assert to_table([pair], "pairs").to_pylist()[0]["prompt"] == CHAT


def test_a_prompt_as_text_is_one_turn_also_beside_whole_conversations(tmp_path: Path):
    full = [said(" Hi ", "user"), said("yes")], [said(" Hi ", "user"), said(" no\n")]
    records = [
        {"id": 1, "prompt": " Hi ", "chosen": "yes", "rejected": " no\n"},
        {"id": 2, "prompt": " Hi ", "chosen": full[0], "rejected": full[1]},
    ]
    first, second = pairs(write_jsonl(tmp_path / "g.jsonl", records))
    assert first.prompt == second.prompt == (Message("user", " Hi "),)
    assert texts(first) == texts(second) == ("yes", " no\n"), "text is never trimmed"
    assert [first.position, second.position] == [0, 1]


def test_parquet_and_csv_give_the_same_pairs(tmp_path: Path):
    records = [{"id": f"r{n}", "prompt": f"q{n}", "chosen": "yes", "rejected": "no"} for n in range(5)]
    (tmp_path / "g.csv").write_text("id,prompt,chosen,rejected\n" + "".join(f"r{n},q{n},yes,no\n" for n in range(5)))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "g.parquet")
    chat = [{"chosen": [*CHAT, said("yes")], "rejected": [*CHAT, said("no")]}]
    pq.write_table(pa.Table.from_pylist(chat), tmp_path / "chat.parquet")
    expected = [(pair.pair_id, pair.prompt, texts(pair)) for pair in pairs(write_jsonl(tmp_path / "g.jsonl", records))]
    assert [pair_id for pair_id, *_ in expected] == [f"r{n}/chosen+rejected" for n in range(5)]
    for name in ("g.csv", "g.parquet"):
        assert [(pair.pair_id, pair.prompt, texts(pair)) for pair in pairs(tmp_path / name)] == expected
    assert len(pairs(tmp_path / "chat.parquet")[0].prompt) == 4


def test_either_answer_stands_first_in_half_of_the_pairs_whatever_the_file_says(tmp_path: Path):
    records = [{"id": n, "prompt": "q", "chosen": "yes", "rejected": "no"} for n in range(400)]
    found = pairs(write_jsonl(tmp_path / "g.jsonl", records))
    assert 160 < sum(pair.a_from == "chosen" for pair in found) < 240
    assert all((pair.a_from == "chosen") == first_of_two(pair.pair_id) for pair in found)
    assert [first_of_two(f"{n}/chosen+rejected") for n in range(6)] == [True, False, True, True, True, False]


OK = {"id": "a", "prompt": "x", "chosen": "yes", "rejected": "no"}
OTHER = [said("y", "user"), said("no")]
BAD: dict[str, list[Any]] = {
    "not_readable": ['{"prompt": "x"', "[1]"],
    "no_prompt": [
        {**OK, "prompt": None},
        {"chosen": [said("yes")], "rejected": [said("no")]},
        {"chosen": [said("x", "user"), said("yes")], "rejected": "no"},
    ],
    "bad_prompt": [{**OK, "prompt": 5}, {**OK, "prompt": []}],
    "no_user_turn": [
        {**OK, "prompt": CHAT[:3]},
        {"chosen": [*CHAT[:3], said("yes")], "rejected": [*CHAT[:3], said("no")]},
    ],
    "no_answer": [{**OK, "chosen": None}, {"id": "a", "prompt": "x", "rejected": "no"}],
    "bad_answer": [
        {**OK, "chosen": 5},
        {**OK, "rejected": []},
        {**OK, "rejected": said("no")},
        {**OK, "chosen": [{"role": "assistant", "content": None}]},
    ],
    "no_assistant_turn": [{**OK, "chosen": [said("x", "user")]}, {**OK, "rejected": [*CHAT]}],
    "empty_text": [{**OK, "prompt": " "}, {**OK, "chosen": ""}, {**OK, "rejected": [said("\n")]}],
    "not_text": [{**OK, "rejected": "half \ud800"}],
    "bad_role": [{**OK, "chosen": [said("yes", "gpt")]}],
    "bad_message": [{**OK, "chosen": ["yes"]}, {**OK, "chosen": [{**said("yes"), "name": "y"}]}],
    "bad_id": [{**OK, "id": True}],
    "duplicate_id": [{**OK, "id": "good"}],
    "equal_texts": [{**OK, "rejected": "yes"}, {**OK, "rejected": [said("\nyes ")]}],
    "prompts_differ": [
        {**OK, "rejected": OTHER},
        {**OK, "prompt": CHAT, "chosen": [*CHAT[1:], said("yes")]},
        {"chosen": [said("x", "user"), said("yes")], "rejected": OTHER},
    ],
}


@pytest.mark.parametrize(
    ("reason", "number"), [(reason, n) for reason, records in BAD.items() for n in range(len(records))]
)
def test_one_bad_record_among_good_ones_is_a_drop_with_reason_and_place(tmp_path: Path, reason: str, number: int):
    bad = BAD[reason][number]
    path = tmp_path / "g.jsonl"
    lines = [{**OK, "id": "good"}, bad, {**OK, "id": "last"}]
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    first, drop, last = read(path)
    assert isinstance(first, Pair) and isinstance(last, Pair) and isinstance(drop, Drop)
    assert (drop.stage, drop.reason, drop.source) == ("calibrate", reason, "g.jsonl:2")
    assert drop.detail.startswith("g.jsonl:2: found ") and drop.raw
    assert [first.position, last.position] == [0, 1]
    with pytest.raises(BadInput, match=r"^g\.jsonl:2: found "):
        read(path, strict=True)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "x", "choosen": "y", "rejected": "n"}, "'choosen', expected 'chosen'"),
        ({"prompt": "x", "chosen": "y", "Rejected": "n"}, "'Rejected', expected 'rejected'"),
        ({"promt": "x", "chosen": "y", "rejected": "n"}, "'promt', expected 'prompt'"),
        ({"Prompt": CHAT, "chosen": [said("y")], "rejected": [said("n")]}, "'Prompt', expected 'prompt'"),
        ({"ID": 1, "prompt": "x", "chosen": "y", "rejected": "n"}, "'ID', expected 'id'"),
        ({"chosen": "Human: x Assistant: y", "rejected": "Human: x Assistant: n"}, "a column 'prompt'"),
        ({"prompt": "x", "response": "y"}, "a column 'chosen'"),
    ],
)
def test_a_missing_or_misspelt_column_is_an_error_of_the_whole_file(tmp_path: Path, record: Any, words: str):
    with pytest.raises(BadInput, match=words):
        GoldPairs(str(write_jsonl(tmp_path / "g.jsonl", [record])), None, False).look()


def test_a_missing_file_is_an_error_before_anything_else():
    with pytest.raises(BadInput, match="no such file"):
        GoldPairs("none.jsonl", None, False).look()


def test_an_id_made_from_what_a_pair_says_survives_new_records_before_it(tmp_path: Path):
    def record(prompt: str, chosen: str) -> dict[str, str]:
        return {"prompt": prompt, "chosen": chosen, "rejected": "no"}

    records = [record("p", "yes"), record("p", "of course"), record("p", "yes")]
    old = pairs(write_jsonl(tmp_path / "g.jsonl", records))
    new = pairs(write_jsonl(tmp_path / "h.jsonl", [record("p", "sure"), *records]))
    assert [pair.pair_id for pair in new[1:]] == [pair.pair_id for pair in old]
    assert len({pair.pair_id for pair in new}) == 4


def test_a_limit_reads_no_further_and_digests_say_what_is_there_not_where(tmp_path: Path):
    records = [{**OK, "id": n} for n in range(7)]
    one = write_jsonl(tmp_path / "g.jsonl", records)
    assert len(pairs(one, limit=2)) == 2
    for limit in (2, 7):
        source = GoldPairs(str(one), limit, False)
        assert len(list(source.chunks(3))) == -(-limit // 3) and source.unread is (limit == 2)
    chunks = list(GoldPairs(str(one), None, False).chunks(3))
    assert [(chunk.index, len(chunk.items)) for chunk in chunks] == [(0, 3), (1, 3), (2, 1)]
    renamed = list(GoldPairs(str(write_jsonl(tmp_path / "h.jsonl", records)), None, False).chunks(3))
    assert [chunk.sha for chunk in renamed] == [chunk.sha for chunk in chunks]
    for change in ({"chosen": "yes!"}, {"prompt": "z"}, {"chosen": "no", "rejected": "yes"}):
        path = write_jsonl(tmp_path / "i.jsonl", [{**records[0], **change}, *records[1:]])
        changed = list(GoldPairs(str(path), None, False).chunks(3))
        assert changed[0].digests[0] != chunks[0].digests[0] and changed[0].digests[1:] == chunks[0].digests[1:]


def test_the_examples_of_a_constitution_are_gold_for_their_principle(constitution: Constitution):
    found = list(constitution_gold(constitution))
    name, pair = found[1]
    example = constitution.principles[0].examples[1]
    assert (name, pair.row_id) == ("physical-safety", "physical-safety-2")
    assert pair.prompt == (Message("user", example.prompt),) and texts(pair) == (example.better, example.worse)
    assert len(found) == sum(len(principle.examples) for principle in constitution.principles)
    assert len({pair.pair_id for _, pair in found}) == len(found)
    assert [pair.position for _, pair in found] == list(range(len(found)))
    assert pair.source == "harmlessness.yaml:physical-safety"
    source = ConstitutionPairs(constitution)
    items = [item for chunk in source.chunks(4) for item in chunk.items]
    assert items == [pair for _, pair in found]
    assert source.principles[pair.pair_id] == ("physical-safety",) and len(source.principles) == len(found)


def test_gold_is_known_by_where_its_answers_come_from():
    assert a_is_gold({"pair_id": "p", "a_from": "chosen", "b_from": "rejected"})
    assert not a_is_gold({"pair_id": "p", "a_from": "rejected", "b_from": "chosen"})
    with pytest.raises(ValueError, match="p is no gold pair"):
        a_is_gold({"pair_id": "p", "a_from": "response", "b_from": "revision-1"})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]) | anything, "content": anything})
some = st.sampled_from(["x", "y", CHAT, [said("x")], [*CHAT, said("x")], [*CHAT, said("y")]])
answer = some | anything | st.lists(message, max_size=3)
wild = st.fixed_dictionaries({"chosen": answer, "rejected": answer}, optional={"prompt": answer, "id": anything})
record = wild | st.fixed_dictionaries({"chosen": some, "rejected": some}, optional={"prompt": some})


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(record, max_size=6))
def test_whatever_a_record_holds_it_becomes_a_pair_or_a_drop_and_its_text_is_unchanged(
    tmp_path: Path, records: list[Any]
):
    items = read(write_jsonl(tmp_path / "g.jsonl", [{**OK, "id": "good"}, *records]))
    assert len(items) == len(records) + 1
    to_table([item for item in items if isinstance(item, Pair)], "pairs")
    for given_record, item in zip(records, items[1:], strict=True):
        if isinstance(item, Drop):
            assert item.reason in BAD
            continue
        answers = [given_record[name] for name in ("chosen", "rejected")]
        assert texts(item) == tuple(one if isinstance(one, str) else one[-1]["content"] for one in answers)
