"""The arithmetic of benchmarks/scale.py, by hand."""

import pytest

from benchmarks.scale import DECODE_SHARE, MOST_CALLS, PIPELINE, PREFILL_SHARE, Gpus, Model, Row, seconds

ROW = Row(calls=2.0, prompt=1000.0, cached=400.0, written=100.0)


def test_reading_is_paid_by_operations_and_writing_by_bandwidth():
    model, gpus = Model(1.0, 2.0, 1e5), Gpus(1, 80, 2.0, 1e6)
    prefill = 600 * 2e9 / (PREFILL_SHARE * 1e18)
    context = 1000 / 2 + 100 / 2 / 2
    step = (2e9 + MOST_CALLS * context * 1e5) / (DECODE_SHARE * 2e12)
    assert seconds(ROW, model, gpus) == pytest.approx(PIPELINE * (prefill + 100 * step / MOST_CALLS))
    assert seconds(ROW, model, gpus, reuse=False) > seconds(ROW, model, gpus)


def test_fewer_calls_are_in_flight_where_memory_is_short_and_each_pays_more_of_the_weights():
    model = Model(1.0, 60.0, 1e6)
    small, large = (seconds(ROW, model, Gpus(1, memory, 2.0, 1e3)) for memory in (80, 800))
    assert small > 1.5 * large
