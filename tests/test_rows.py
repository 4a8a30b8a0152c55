from dataclasses import fields, replace

import pyarrow as pa
import pytest

from cai.rows import Drop, Response, Round, Trajectory
from cai.schemas import SCHEMAS, _check_keys, to_table  # pyright: ignore[reportPrivateUsage]

DROP = Drop("r1", "revise", "empty_text", "there: found nothing", "", "there:1")


@pytest.mark.parametrize(("kind", "table"), [(Response, "responses"), (Trajectory, "trajectories"), (Drop, "drops")])
def test_a_row_type_and_its_schema_have_the_same_fields_in_the_same_order(kind: type, table: str):
    assert [field.name for field in fields(kind)] == SCHEMAS[table].names


def test_a_round_and_its_schema_have_the_same_fields_in_the_same_order():
    inner = SCHEMAS["trajectories"].field("rounds").type.value_type
    assert [field.name for field in fields(Round)] == [field.name for field in inner]


def test_a_table_holds_what_the_row_held():
    assert to_table([DROP], "drops").to_pylist()[0]["reason"] == "empty_text"


def test_unknown_and_missing_keys_are_refused_also_inside_lists():
    schema = pa.schema(
        [pa.field("a", pa.string()), pa.field("turns", pa.list_(pa.struct([pa.field("role", pa.string())])))]
    )
    _check_keys({"a": "x", "turns": [{"role": "user"}]}, schema, "t")
    for record in ({"a": "x"}, {"a": "x", "turns": [], "b": 1}, {"a": "x", "turns": [{"role": "user", "name": "y"}]}):
        with pytest.raises(ValueError, match="not in both"):
            _check_keys(record, schema, "t")


def test_a_null_where_none_may_be_is_refused():
    with pytest.raises((pa.ArrowException, ValueError)):
        to_table([replace(DROP, reason=None)], "drops").validate(full=True)  # type: ignore[arg-type]
