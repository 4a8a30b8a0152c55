"""What is printed while a stage works."""

import pytest

from cai import progress
from cai.journal import Tally
from cai.progress import Progress


def test_the_speed_and_the_time_left_count_from_when_the_engines_are_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = Progress()
    shown.begin("revise", 100, 0)
    clock[0] = 120.0  # a cluster and models are slow to start
    shown.asking(Tally())
    clock[0] = 122.0
    shown.row(True)
    assert "0.50 rows/s, 0 dropped, about 198 s left" in capsys.readouterr().err


def test_a_stage_that_is_over_in_a_moment_has_no_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = Progress()
    shown.begin("revise", 1, 0)
    shown.asking(Tally())
    clock[0] = 0.01
    shown.row(True)
    assert "revise: 1 of 1 rows, 0 dropped, about 0 s left" in capsys.readouterr().err
