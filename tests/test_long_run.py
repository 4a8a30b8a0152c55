"""The benchmark of long runs, on a short one with many shards: what is bounded there is bounded in a long one."""

from pathlib import Path

from benchmarks.long_run import measure


def test_open_files_and_the_journal_are_bounded_by_what_is_in_flight_and_a_resume_asks_nothing(tmp_path: Path):
    figures = measure(tmp_path, rows=480, seed=0, shard_rows=2)
    assert figures["shards"] == 240
    # 64 slots hold at most 96 rows in flight, so at most 49 of the shards are open at once.
    assert figures["open_files_max"] < 100, figures
    assert figures["journal_mb"] < 480 * 5 * 1000 / 2**20, "five calls of less than 1000 bytes for each row"
    # In so short a run the libraries and the first rows in flight alone come to 1000.
    assert len(figures["peak_mb"]) == 10 and figures["slope_mb_per_100k_rows"] < 5000, "under 50 kB stay of each row"
    seconds = figures["resume_seconds"]
    assert 0 < seconds["first_row"] <= seconds["last_shard_removed"] and seconds["finished"] > 0
