import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.drawing import COLOURS
from cai.figures import BOUNDS
from cai.seal import Json
from cai.trends import axis_of, dates, trends

SVG = "{http://www.w3.org/2000/svg}"
DAYS = [f"2026-11-{day}T02:16:56.207+00:00" for day in ("20", "21", "22")]


def session(finished: str, source: str = "p.jsonl", **figures: tuple[float, float] | None) -> Json:
    """Figures as (mean, deviation) over 100 values; a mean above 0.6 had shifted from 0.5, one below 0.1 is of too
    few."""
    told = {
        name: {
            "values": 100, "mean": one[0], "deviation": one[1], "earlier": 0.5, "shifted": one[0] > 0.6,
            "too_few": one[0] < 0.1,
        }
        for name, one in figures.items()
        if one is not None
    }  # fmt: skip
    return {"finished": finished, "run": "data/runs/one", "stage": "revise", "source": source, "figures": told}


def drawn(sessions: list[Json]) -> ET.Element:
    return ET.fromstring(trends(sessions).as_file())


def points(root: ET.Element) -> dict[str, tuple[float, float]]:
    return {
        one.attrib["id"].removeprefix("drawing-point-"): (float(use.attrib["x"]), float(use.attrib["y"]))
        for one in root.iter(f"{SVG}g")
        if one.get("id", "").startswith("drawing-point-")
        for use in one.iter(f"{SVG}use")
    }


def test_each_session_has_a_point_in_its_place_and_a_standard_error_each_way():
    root = drawn(
        [session(day, changed_rate=one) for day, one in zip(DAYS, ((0.3, 0.4), None, (0.5, 0.2)), strict=True)]
    )
    found = points(root)
    assert list(found) == ["0-changed_rate-0", "0-changed_rate-2"], "the session without the figure leaves its place"
    (_, low), (_, high) = found.values()
    unit = (low - high) / 0.2
    (errors,) = (one for one in root.iter(f"{SVG}g") if one.get("id", "").startswith("drawing-errors-"))
    spans = [[float(word) for word in path.attrib["d"].split()[2::3]] for path in errors.iter(f"{SVG}path")]
    # The deviations over the root of 100 values.
    assert spans[0] == pytest.approx([low + 0.04 * unit, low - 0.04 * unit], abs=0.02)
    assert spans[1] == pytest.approx([high + 0.02 * unit, high - 0.02 * unit], abs=0.02)


def test_a_shift_is_a_ring_of_another_colour_and_a_pointer_is_told_of_it():
    root = drawn([session(day, refusal_rate=(mean, 0.1)) for day, mean in zip(DAYS, (0.5, 0.0, 0.9), strict=True)])
    marks = {
        str(one.findtext(f"{SVG}title")): next(one.iter(f"{SVG}use")).attrib
        for one in root.iter(f"{SVG}g")
        if one.get("id", "").startswith("drawing-point-")
    }
    assert list(marks) == [
        "2026-11-20T02:16: 0.5 over 100; data/runs/one",
        "2026-11-21T02:16: 0 over 100, too few rows to judge; data/runs/one",
        "2026-11-22T02:16: 0.9 over 100, shifted from 0.5; data/runs/one",
    ]
    assert [(one.get("fill"), one.get("fill-opacity")) for one in marks.values()] == [
        (COLOURS[0], None), (COLOURS[0], None), (None, "0")
    ]  # fmt: skip
    assert list(marks.values())[2]["stroke"] == COLOURS[1]
    assert "shifted: refusal_rate" in str(root.findtext(f"{SVG}desc"))


@given(st.sampled_from(sorted(BOUNDS)), st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_an_axis_holds_its_values_never_leaves_the_possible_and_shows_no_more_than_is_worth_a_word(
    name: str, shares: list[float]
):
    most = {"length_words": 300.0, "label_margin": 5.0}.get(name, 1.0)
    values = [share * most for share in shares]
    bottom, top = axis_of(name, values)
    assert 0 <= bottom <= min(values) + 1e-9 and max(values) - 1e-9 <= top
    assert top <= (math.inf if name == "length_words" else most) + 1e-9
    bound = BOUNDS[name]
    middle = (min(values) + max(values)) / 2
    assert top - bottom >= min(2 * bound.by * (middle if bound.relative else 1), most) - 1e-9 and top > bottom


def test_the_axes_that_are_drawn_are_those_even_where_an_error_reaches_beyond():
    root = drawn([session(day, refusal_rate=(mean, 1.0)) for day, mean in zip(DAYS, (0.0, 0.5, 1.0), strict=True)])
    ticks = [float(one.text) for one in root.iter(f"{SVG}text") if one.text and one.text.replace(".", "").isdigit()]
    assert (min(ticks), max(ticks)) == (0.0, 1.0)
    found = list(points(root).values())
    frame = next(one for one in root.iter(f"{SVG}g") if one.get("id") == "drawing-patch_2")
    sides = [float(word) for word in next(frame.iter(f"{SVG}path")).attrib["d"].split()[2::3]]
    assert (max(sides), min(sides)) == pytest.approx((found[0][1], found[2][1]), abs=0.01)
    (errors,) = (one for one in root.iter(f"{SVG}g") if one.get("id", "").startswith("drawing-errors-"))
    ends = [float(word) for path in errors.iter(f"{SVG}path") for word in path.attrib["d"].split()[2::3]]
    assert (max(ends), min(ends)) == pytest.approx((found[0][1], found[2][1]), abs=0.01), (
        "between the points at 0 and 1"
    )


@pytest.mark.parametrize(
    ("finished", "words", "of"),
    [
        (DAYS, ["2026-11-20", "2026-11-21", "2026-11-22"], ""),
        (["2026-11-22T02:16:56.2", "2026-11-22T02:29:00.1"], ["02:16", "02:29"], "2026-11-22"),
        (["2026-11-22T02:16:56.2", "2026-11-22T02:16:59.1"], ["02:16:56", "02:16:59"], "2026-11-22"),
        (
            ["2026-11-21T23:16:56.2", "2026-11-22T02:16:59.1", "2026-11-22T02:17:59.1"],
            ["11-21 23:16", "11-22 02:16", "11-22 02:17"],
            "2026",
        ),
        (
            ["2026-12-31T02:16:56.2", "2026-12-31T03:16:56.2", "2027-01-01T02:16:59.1"],
            ["12-31 02:16", "12-31 03:16", "01-01 02:16"],
            "2026 to 2027",
        ),
    ],
)
def test_dates_are_days_where_these_tell_sessions_apart_and_times_where_they_do_not(
    finished: list[str], words: list[str], of: str
):
    assert dates(finished) == (words, of)
    texts = [one.text for one in drawn([session(one, changed_rate=(0.1, 0.1)) for one in finished]).iter(f"{SVG}text")]
    assert {words[0], words[-1], *([of] if of else [])} <= set(texts)


def test_each_source_has_its_name_and_its_own_panels():
    sources = ["$a$ & <b>\x1b[31m", "other.jsonl"]
    sessions = [session(DAYS[0], source, drop_rate=(0.0, 0.0), length_words=(9.0, 1.0)) for source in sources]
    root = drawn(sessions)
    texts = [one.text for one in root.iter(f"{SVG}text")]
    assert texts.count("drop_rate") == texts.count("length_words") == 2
    assert "cai revise on $a$ & <b>?[31m" in texts and "cai revise on other.jsonl" in texts
    found = points(root)
    assert len(set(found.values())) == 4
    assert trends(sessions).as_file() == trends(sessions).as_file()
