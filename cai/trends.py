"""The figures of many sessions as a person reads them: a table's rows, JSON, and a picture of each figure over time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from cai.drawing import COLOURS, Drawing, printed
from cai.errors import BadInput
from cai.figures import BOUNDS
from cai.history import COST, LOOK_BACK, History, too_few
from cai.label import LARGEST_MARGIN
from cai.seal import Json

# What all figures of a session have in common.
_SHARED = (
    *("finished", "run", "stage", "source", "first_row", "rows_read", "models"),
    *("constitution_sha", "templates_sha", "checks_sha", "settings_sha"),
    *(name for name in COST if name != "sessions"),
)
_FIGURE = ("values", "mean", "deviation", "earlier", "shifted")


def sessions_of(history: History) -> list[Json]:
    """Every session, oldest first, each with its figures by name, and of each whether there were too few rows to judge
    it. Raises BadInput if the folder holds none."""
    if not history.folder.is_dir():
        raise BadInput(f"--history {history.folder}", "no such folder", "a folder of figures", _WHERE)
    found = [
        {name: rows[0][name] for name in _SHARED}
        | {"figures": {row["figure"]: {name: row[name] for name in _FIGURE} for row in rows}}
        for rows in history.sessions()
    ]
    if not found:
        damaged = f" but {len(history.damaged)} damaged files" if history.damaged else ""
        raise BadInput(f"--history {history.folder}", f"no figures{damaged}", "those of a finished session", _WHERE)
    for series in series_of(found):
        _mark_too_few(series)
    return found


_WHERE = "Runs leave them in the folder 'history' beside them, if --history names no other one."


@dataclass(frozen=True, slots=True)
class Series:
    """The sessions of one stage on one source, and the figures that any of them has."""

    stage: str
    source: str
    sessions: Sequence[Json]

    @property
    def figures(self) -> list[str]:
        return [name for name in BOUNDS if any(name in one["figures"] for one in self.sessions)]


def _mark_too_few(series: Series) -> None:
    """Put into each figure whether its session and those that it was compared with had too few rows to judge it."""
    for place, session in enumerate(series.sessions):
        earlier = [one["figures"] for one in series.sessions[max(0, place - LOOK_BACK) : place]]
        for name, figure in session["figures"].items():
            before = sum(one[name]["values"] for one in earlier if name in one)
            figure["too_few"] = figure["earlier"] is not None and too_few(figure["values"], before)


def series_of(sessions: Sequence[Json]) -> list[Series]:
    """The sessions that are compared with one another, by stage and source."""

    def alike(one: Json) -> tuple[str, str]:
        return one["source"], one["stage"]

    ordered = sorted(sessions, key=alike)  # keeps the order in time
    return [Series(stage, source, list(some)) for (source, stage), some in groupby(ordered, key=alike)]


# Plot

_WIDE, _HIGH, _COLUMNS = 3.2, 1.9, 3  # inches of a panel, and how many stand side by side
_HEAD, _FOOT = 0.34, 0.3  # inches over the panels of a series, and below all
_DATES = 3  # of a panel: more would run into each other


def trends(sessions: Sequence[Json]) -> Drawing:
    """Each figure of each stage and source over the sessions, with standard errors; a shift is a ring of another
    colour."""
    several = series_of(sessions)
    high = _FOOT + sum(_HEAD + _rows(series) * _HIGH for series in several)

    def draw(figure: Any) -> None:
        top = high
        for number, series in enumerate(several):
            figure.text(0.1 / (_WIDE * _COLUMNS), (top - 0.25) / high, printed(_name(series)), fontsize=11)
            top -= _HEAD
            for place, name in enumerate(series.figures):
                left, ground = place % _COLUMNS * _WIDE, top - (place // _COLUMNS + 1) * _HIGH
                inside = (left + 0.62) / (_WIDE * _COLUMNS), (ground + 0.45) / high
                axes = figure.add_axes((*inside, (_WIDE - 0.95) / (_WIDE * _COLUMNS), (_HIGH - 0.8) / high))
                _panel(axes, series, name, _points(series, name, f"point-{number}"))
            top -= _rows(series) * _HIGH
        figure.text(0.1 / (_WIDE * _COLUMNS), 0.1 / high, _LEGEND, fontsize=8)

    hints = {
        one.gid: one.told
        for number, series in enumerate(several)
        for name in series.figures
        for one in _points(series, name, f"point-{number}")
    }
    told = "; ".join(_told(series) for series in several)
    return Drawing("Figures of each session", told, (_WIDE * _COLUMNS, high), draw, hints)


_LEGEND = "Bars: one standard error each way. A ring: the figure had shifted. Times are UTC."


def _name(series: Series) -> str:
    return f"cai {series.stage} on {series.source}"


def _rows(series: Series) -> int:
    return -(-len(series.figures) // _COLUMNS)


def _told(series: Series) -> str:
    """The last values of a series, and the figures that had ever shifted."""
    last = series.sessions[-1]["figures"]
    values = ", ".join(f"{name} {last[name]['mean']:.3g}" for name in series.figures if name in last)
    shifted = [
        name
        for name in series.figures
        if any(name in one["figures"] and one["figures"][name]["shifted"] for one in series.sessions)
    ]
    shifts = f", shifted: {', '.join(shifted)}" if shifted else ""
    return f"{_name(series)}, last of {len(series.sessions)} sessions: {values}{shifts}"


@dataclass(frozen=True, slots=True)
class _Point:
    """One session's figure in a panel: its place, its value and standard error, and what a pointer is told."""

    gid: str
    place: int
    value: float
    error: float
    shifted: bool
    told: str


def _points(series: Series, name: str, panel: str) -> list[_Point]:
    points: list[_Point] = []
    for place, session in enumerate(series.sessions):
        figure = session["figures"].get(name)
        if figure is not None:
            mean, error = figure["mean"], figure["deviation"] / figure["values"] ** 0.5
            shifted = f", shifted from {figure['earlier']:.3g}" if figure["shifted"] else ""
            judged = ", too few rows to judge" if figure["too_few"] else ""
            told = f"{session['finished'][:16]}: {mean:.3g} over {figure['values']}{shifted}{judged}; {session['run']}"
            points.append(_Point(f"{panel}-{name}-{place}", place, mean, error, figure["shifted"], told))
    return points


def _panel(axes: Any, series: Series, name: str, points: Sequence[_Point]) -> None:
    bottom, top = axis_of(name, [end for one in points for end in (one.value - one.error, one.value + one.error)])
    axes.plot([one.place for one in points], [one.value for one in points], color=COLOURS[0], clip_on=False)
    lows, highs = ([min(max(one.value + side * one.error, bottom), top) for one in points] for side in (-1, 1))
    errors = axes.vlines([one.place for one in points], lows, highs, COLOURS[0], alpha=0.5, linewidth=3, clip_on=False)
    errors.set_gid(f"errors-{points[0].gid}")
    for one in points:
        ring = {"markersize": 10, "markerfacecolor": "none", "markeredgecolor": COLOURS[1], "markeredgewidth": 2.5}
        how = ring if one.shifted else {"markersize": 5, "color": COLOURS[0]}
        axes.plot([one.place], [one.value], "o", gid=one.gid, clip_on=False, zorder=3, **how)
    axes.set_title(name, loc="left", fontsize=9)
    axes.set_ylim(bottom, top)
    axes.locator_params(axis="y", nbins=5)
    axes.grid(True, axis="y")
    last = len(series.sessions) - 1
    axes.set_xlim(-0.5, 0.5) if last == 0 else axes.set_xlim(-0.04 * last, 1.04 * last)
    words, of = dates([one["finished"] for one in series.sessions])
    ticks = sorted({round(last * number / (_DATES - 1)) for number in range(_DATES)})
    axes.set_xticks(ticks, [words[tick] for tick in ticks])
    axes.set_xlabel(of, fontsize=8, labelpad=1)


def axis_of(name: str, values: Sequence[float]) -> tuple[float, float]:
    """From where to where the axis of a figure goes: around the values, and never beyond what the figure can be.

    It spans at least twice the bound within which a figure may move without a word, so that what is as good as
    constant looks so.
    """
    low, high = min(values), max(values)
    middle, bound, most = (low + high) / 2, BOUNDS[name], _MOST.get(name, 1.0)
    least = 2 * bound.by * (abs(middle) if bound.relative else 1.0)
    span = min(max(1.1 * (high - low), least) or 1.0, most)
    bottom = min(max(0.0, middle - span / 2), most - span)
    return bottom, bottom + span


_MOST = {"length_words": math.inf, "label_margin": LARGEST_MARGIN}  # the others are rates and probabilities


def dates(finished: Sequence[str]) -> tuple[list[str], str]:
    """What tells sessions apart along an axis (days, times or both), and the day or the years that these leave out."""
    days = [one[:10] for one in finished]
    if len(set(days)) == len(days):
        return days, ""
    minutes = len({one[:16] for one in finished}) == len(finished)
    times = [one[11 : 16 if minutes else 19] for one in finished]
    if len(set(days)) == 1:
        return times, days[0]
    first, last = days[0][:4], days[-1][:4]
    words = [f"{day[5:]} {time[:5]}" for day, time in zip(days, times, strict=True)]
    return words, first if first == last else f"{first} to {last}"
