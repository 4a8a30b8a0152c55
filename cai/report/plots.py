"""The pictures in the report's page, as SVG that stands inside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from cai.drawing import COLOURS, Drawing


def bars(
    name: str, title: str, told: str, places: Sequence[str], series: Mapping[str, Sequence[float]], along: str, up: str,
    stacked: bool = False,
) -> str:  # fmt: skip
    """Columns over `places`, one colour for each of `series`. `told` is read out in place of the picture."""

    def draw(figure: Any) -> None:
        axes = _axes(figure)
        wide = 0.8 if stacked else 0.8 / len(series)
        ground = [0.0] * len(places)
        for number, (label, values) in enumerate(series.items()):
            shift = 0.0 if stacked else (number - (len(series) - 1) / 2) * wide
            at = [place + shift for place in range(len(places))]
            axes.bar(at, values, wide, bottom=ground if stacked else None, color=COLOURS[number], label=label)
            ground = [low + value for low, value in zip(ground, values, strict=True)]
        every = 2 if len(places) > 12 else 1  # more would run into each other
        axes.set_xticks(range(0, len(places), every), places[::every])
        axes.set_xlabel(along)
        axes.set_ylabel(up)
        _finish(figure, axes.yaxis, len(series) > 1)

    return Drawing(title, told, (7.0, 2.9), draw).in_page(name)


def sideways(name: str, title: str, told: str, places: Sequence[str], series: Mapping[str, Sequence[float]]) -> str:
    """Bars from left to right, one line for each of `places`, the first one on top."""

    def draw(figure: Any) -> None:
        axes = _axes(figure)
        high = 0.8 / len(series)
        for number, (label, values) in enumerate(series.items()):
            at = [place + (number - (len(series) - 1) / 2) * high for place in range(len(places))]
            axes.barh(at, values, high, color=COLOURS[number], label=label)
        axes.set_yticks(range(len(places)), places)
        axes.invert_yaxis()
        _finish(figure, axes.xaxis, len(series) > 1)

    return Drawing(title, told, (7.0, 1.0 + 0.34 * len(places)), draw).in_page(name)


def _axes(figure: Any) -> Any:
    figure.set_layout_engine("constrained")
    return figure.add_subplot()


def _finish(figure: Any, values: Any, legend: bool) -> None:
    """Whole numbers along the axis of values, and what the colours mean."""
    from matplotlib.ticker import MaxNLocator

    values.set_major_locator(MaxNLocator(nbins=6, integer=True))
    values.grid(True)
    if legend:
        figure.legend(loc="outside upper right", ncols=4)
