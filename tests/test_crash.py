"""The short version of `python -m benchmarks.crash`: some kills of real processes, and nothing is lost."""

from pathlib import Path

from benchmarks.crash import STAGES, crash


def test_a_pipeline_killed_at_any_moment_loses_nothing_repeats_nothing_and_ends_in_the_same_bytes(tmp_path: Path):
    tally = crash(tmp_path, kills=12, rows=32, seed=0, say=print)
    assert tally.faults == [] and tally.good()
    assert tally.kills == tally.kills_by_stage.total() == 12 and tally.kills_by_stage.keys() <= STAGES.keys()
    assert tally.in_flight_calls <= 12 * 20, "at most what eight slots have under way"
