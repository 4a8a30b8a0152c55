import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cai import inputs
from cai.errors import BadInput, CannotWrite
from cai.inputs import Counts, Prompts
from cai.rows import Drop, Message, Row
from tests.conftest import write_jsonl


def read(path: Path | str, limit: int | None = None, samples: int = 1, strict: bool = False) -> list[Row | Drop]:
    prompts = Prompts(str(path), "revise", limit, samples, strict)
    return [item for chunk in prompts.chunks(3) for item in chunk.items]


def rows(path: Path | str, **options: Any) -> list[Row]:
    items = read(path, **options)
    assert all(isinstance(item, Row) for item in items), items
    return [item for item in items if isinstance(item, Row)]


TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello: there"},
    {"role": "user", "content": "a: b\n\nc"},
]


def test_jsonl_keeps_ids_conversations_and_other_columns(tmp_path: Path):
    path = write_jsonl(
        tmp_path / "p.jsonl", [{"id": "x", "prompt": TURNS, "category": "c"}, {"id": 7, "prompt": " two  words "}]
    )
    first, second = rows(path)
    assert first.prompt == tuple(Message(**turn) for turn in TURNS)
    assert (first.row_id, first.source, json.loads(first.extra)) == ("x", "p.jsonl:1", {"category": "c"})
    assert (second.row_id, second.prompt, second.extra) == ("7", (Message("user", " two  words "),), "{}")


def test_csv_parquet_and_datasets_read_the_same_rows(tmp_path: Path):
    records = [{"id": f"r{n}", "prompt": f'say "{n}",\nplease', "kind": "k"} for n in range(5)]
    expected = [(row.row_id, row.prompt, row.extra) for row in rows(write_jsonl(tmp_path / "p.jsonl", records))]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "p.parquet")
    lines = [f'r{n},"say ""{n}"",\nplease",k' for n in range(5)]
    (tmp_path / "p.csv").write_text("id,prompt,kind\n" + "\n".join(lines) + "\n")
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(records), folder / "train-00000-of-00001.parquet")
    for spec in (tmp_path / "p.parquet", tmp_path / "p.csv", f"datasets:{folder}:train", f"datasets:{folder}"):
        assert [(row.row_id, row.prompt, row.extra) for row in rows(spec)] == expected, spec


def test_messages_in_parquet_may_carry_empty_extra_fields(tmp_path: Path):
    pq.write_table(
        pa.Table.from_pylist([{"prompt": [{"role": "user", "content": "x", "name": None}]}]), tmp_path / "p.parquet"
    )
    assert rows(tmp_path / "p.parquet")[0].prompt == (Message("user", "x"),)


BAD = {
    "not_readable": ['{"prompt": "x"', "[1]", "7", "\xff\xfe", '{"prompt": "x", "prompt": "y"}'],
    "no_prompt": [{"id": "a", "prompt": None}],
    "bad_prompt": [
        {"prompt": 5},
        {"prompt": []},
        {"prompt": {"role": "user"}},
        {"prompt": [{"role": "user", "content": 5}]},
    ],
    "empty_text": [{"prompt": ""}, {"prompt": " \n"}, {"prompt": [{"role": "user", "content": ""}]}],
    "no_user_turn": [{"prompt": TURNS[:2]}, {"prompt": [{"role": "system", "content": "x"}]}],
    "bad_role": [{"prompt": [{"role": "human", "content": "x"}]}, {"prompt": [{"role": ["user"], "content": "x"}]}],
    "bad_message": [
        {"prompt": ["x"]},
        {"prompt": [{"role": "user"}]},
        {"prompt": [{"role": "user", "content": "x", "name": "y"}]},
    ],
    "bad_id": [
        {"id": "", "prompt": "x"},
        {"id": 1.5, "prompt": "x"},
        {"id": True, "prompt": "x"},
        {"id": "a\nb", "prompt": "x"},
    ],
    "not_text": [{"prompt": "half \ud800"}, {"prompt": [{"role": "user", "content": "\udc00"}]}],
}


@pytest.mark.parametrize(
    ("reason", "number"), [(reason, n) for reason, records in BAD.items() for n in range(len(records))]
)
def test_one_bad_record_among_good_ones_is_a_drop_with_reason_and_place(tmp_path: Path, reason: str, number: int):
    record = BAD[reason][number]
    line = record.encode("latin-1") if isinstance(record, str) else json.dumps(record).encode()
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"id": "good", "prompt": "x"}\n' + line + b'\n{"id": "last", "prompt": "y"}')
    first, drop, last = read(path)
    assert isinstance(first, Row) and isinstance(last, Row) and isinstance(drop, Drop)
    assert (drop.reason, drop.source) == (reason, "p.jsonl:2")
    assert drop.detail.startswith("p.jsonl:2: found ")
    assert drop.raw
    with pytest.raises(BadInput, match=r"^p\.jsonl:2: found "):
        read(path, strict=True)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_limit_that_leaves_records_unread_is_known_from_one_more_of_them(tmp_path: Path, ending: str):
    path = tmp_path / f"p.{ending}"
    if ending == "jsonl":
        write_jsonl(path, [{"prompt": "x"}, {"prompt": "y"}])
    elif ending == "csv":
        path.write_text("prompt\nx\ny\n")
    else:
        pq.write_table(pa.table({"prompt": ["x", "y"]}), path)
    for limit, unread in ((1, True), (2, False), (3, False), (None, False), (1, True)):
        source = Prompts(str(path), "revise", limit, 1, strict=False)
        assert [len(chunk.items) for chunk in source.chunks(9)] == [min(limit or 2, 2)]
        assert source.unread is unread, limit


def test_what_lies_behind_a_limit_is_not_read_on_and_may_be_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "p.csv").write_text('prompt\nx\n"unclosed\n')
    source = Prompts(str(tmp_path / "p.csv"), "revise", 1, 1, strict=True)
    assert len(list(source.chunks(9))) == 1 and source.unread
    taken: list[int] = []

    def many(_: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for number in range(1000):
            taken.append(number)
            yield f"p:{number}", {"prompt": str(number)}

    monkeypatch.setattr(inputs, "read_records", many)
    assert len(list(Prompts("p", "revise", 16, 1, strict=False).chunks(9))) == 2 and len(taken) == 17


def test_a_second_row_with_the_same_id_is_dropped(tmp_path: Path):
    first, drop = read(write_jsonl(tmp_path / "p.jsonl", [{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}]))
    assert isinstance(first, Row) and isinstance(drop, Drop)
    assert drop.reason == "duplicate_id"


def test_an_id_made_from_the_conversation_survives_new_records_before_it(tmp_path: Path):
    old = rows(write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}]))
    new = rows(write_jsonl(tmp_path / "q.jsonl", [{"prompt": "z"}, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}]))
    assert [row.row_id for row in new[1:]] == [row.row_id for row in old]
    assert len({row.row_id for row in new}) == 4


def test_an_id_that_another_prompts_sample_would_have_is_dropped(tmp_path: Path):
    items = read(
        write_jsonl(tmp_path / "p.jsonl", [{"id": "q", "prompt": "x"}, {"id": "q~1", "prompt": "y"}]), samples=2
    )
    assert [type(item).__name__ for item in items] == ["Row", "Row", "Drop"]
    assert isinstance(items[2], Drop) and "found the id 'q~1', of which a sample would have" in items[2].detail


def test_of_an_id_that_stands_once_it_is_not_said_that_it_stands_again(tmp_path: Path):
    ids = ("x~1", "x", "x~1")
    source = write_jsonl(tmp_path / "p.jsonl", [{"id": one, "prompt": one} for one in ids])
    said = [item.detail for item in read(source, samples=2) if isinstance(item, Drop)]
    assert said == [
        "p.jsonl:2: found the id 'x', of which a sample would have the id 'x~1', as another row has, expected ids that "
        "end in no ~1, ~2, ... where there are several samples",
        "p.jsonl:3: found the id 'x~1' again, expected each id once",
    ]


def test_an_empty_id_in_csv_is_none(tmp_path: Path):
    (tmp_path / "p.csv").write_text("id,prompt\n,x\nb,y\n")
    first, second = rows(tmp_path / "p.csv")
    assert len(first.row_id) == 16 and second.row_id == "b"


def test_a_faulty_text_in_a_reason_is_spelled_out(tmp_path: Path):
    record = {"prompt": [{"role": "user", "content": "x", "\ud800": "y"}]}
    _, drop = read(write_jsonl(tmp_path / "p.jsonl", [{"prompt": "good"}, record]))
    assert isinstance(drop, Drop) and "\\ud800" in drop.detail
    drop.detail.encode()


def test_samples_share_their_prompt_and_keep_the_first_id(tmp_path: Path):
    made = rows(write_jsonl(tmp_path / "p.jsonl", [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"}]), samples=3)
    assert [row.row_id for row in made] == ["a", "a~1", "a~2", "b", "b~1", "b~2"]
    assert [row.position for row in made] == list(range(6))
    assert {row.prompt_id for row in made} == {"a", "b"}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"promt": "x"}, "'promt', expected 'prompt'"),
        ({"Prompt": "x"}, "'Prompt', expected 'prompt'"),
        ({"prompts": "x"}, "'prompts', expected 'prompt'"),
        ({"prompt": "x", "ID": 1}, "'ID', expected 'id'"),
        ({"prompt": "x", "ids": 1}, "'ids', expected 'id'"),
        ({"text": "x"}, "a column 'prompt'"),
    ],
)
def test_a_misspelt_column_is_an_error_of_the_whole_file(tmp_path: Path, record: dict[str, Any], words: str):
    with pytest.raises(BadInput, match=words):
        read(write_jsonl(tmp_path / "p.jsonl", [record]))


def test_columns_that_only_look_a_little_alike_are_carried_along(tmp_path: Path):
    record = {"id": 1, "prompt": "x", "prompt_type": "t", "idx": 5, "Id": 3}
    assert json.loads(rows(write_jsonl(tmp_path / "p.jsonl", [record]))[0].extra) == {
        "prompt_type": "t",
        "idx": 5,
        "Id": 3,
    }


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.jsonl", None, "no such file"),
        ("p.txt", "x", "the ending '.txt'"),
        ("p.parquet", "not parquet", "no Parquet file"),
        ("p.csv", 'id,prompt\n1,"open quote\n2,two\n', "unexpected end of data"),
        ("p.csv", 'id,prompt\n1,"he said "hi" there"\n', "expected after"),
        ("p.csv", "prompt,note,note\nx,1,2\n", "a column name twice"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, name: str, content: str | None, words: str):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=words):
        read(tmp_path / name)


def test_a_csv_line_with_too_few_columns_is_a_drop(tmp_path: Path):
    (tmp_path / "p.csv").write_text("id,prompt\na,x\nb\nc,z,1\nd,w\n")
    assert [type(item).__name__ for item in read(tmp_path / "p.csv")] == ["Row", "Drop", "Drop", "Row"]


def test_a_csv_line_in_another_encoding_is_a_drop_and_a_bad_one_is_named(tmp_path: Path):
    path = tmp_path / "p.csv"
    path.write_bytes("id,prompt\n1,good\n2,\u00e9t\u00e9\n".encode("latin-1"))
    good, bad = read(path)
    assert isinstance(good, Row) and isinstance(bad, Drop) and "bytes that are not UTF-8" in bad.detail
    path.write_text('id,prompt\n1,a\n2,b\n3,"c"d\n')
    with pytest.raises(BadInput, match=r"p\.csv:4: "):
        read(path)


def test_a_parquet_file_with_a_time_zone_that_is_none_is_an_error(tmp_path: Path):
    when = pa.array([0], pa.timestamp("us", tz="Mars/Olympus"))
    pq.write_table(pa.table({"prompt": ["hi"], "when": when}), tmp_path / "p.parquet")
    with pytest.raises(BadInput, match="rows after 0 that cannot be read"):
        read(tmp_path / "p.parquet")


def test_a_limit_reads_no_further(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\nnot json\n')
    assert len(rows(path, limit=2)) == 2


def test_the_shipped_set_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shipped = rows("redteam")
    assert len(shipped) >= 40
    assert sum(len(row.prompt) > 1 for row in shipped) >= 10
    assert len({row.prompt for row in shipped}) == len(shipped)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | anything, "content": anything}
)
record = st.fixed_dictionaries(
    {"prompt": anything | st.lists(message, max_size=4)}, optional={"id": anything, "x": anything}
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(record, max_size=6))
def test_whatever_a_record_holds_it_becomes_rows_or_one_drop_and_its_text_is_unchanged(
    tmp_path: Path, records: list[Any]
):
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "good"}, *records])
    items = read(path)
    assert len(items) == len(records) + 1
    for given_record, item in zip(records, items[1:], strict=True):
        if isinstance(item, Drop):
            assert item.reason in {*BAD, "duplicate_id"}
            continue
        said = given_record["prompt"]
        texts = [said] if isinstance(said, str) else [turn["content"] for turn in said]
        assert [turn.content for turn in item.prompt] == texts
        json.loads(item.extra)


def test_a_full_disk_for_temporary_files_is_named():
    counts = Counts()
    counts._file.execute("pragma max_page_count = 3")
    with pytest.raises(CannotWrite, match=r"temporary files \(TMPDIR\): found no space left on the disk"):
        for number in range(1000):
            counts.add(f"text {number}")
