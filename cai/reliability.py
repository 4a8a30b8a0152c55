"""Is a judge as often right as it is sure? The picture of it, for its own file and for the report's page."""

from collections.abc import Sequence
from typing import Any

from cai.drawing import COLOURS, INK, Drawing
from cai.seal import Json


def reliability(bins: Sequence[Json]) -> Drawing:
    """The bins of `scores.reliability_bins`: accuracy over confidence, with 95 % intervals, and the pairs below.

    On the diagonal a judge is as often right as it is sure; under it, it is too sure of itself.
    """
    full = [one for one in bins if one["accuracy"]["n"]]
    told = "; ".join(
        f"sure {one['confidence']:.2f}, right {one['accuracy']['value']:.2f} of {one['accuracy']['n']}" for one in full
    )

    def draw(figure: Any) -> None:
        figure.set_layout_engine("constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
        figure.suptitle(_TITLE, fontsize=10)
        _accuracy(upper, full)
        _pairs(lower, full)
        lower.set_xlabel("how sure the judge was")

    return Drawing(_TITLE, told or "no pairs", (5.6, 4.8), draw)


_TITLE = "How often is the judge right when it is this sure?"


def _accuracy(axes: Any, full: Sequence[Json]) -> None:
    axes.plot([0.5, 1], [0.5, 1], "--", color=INK, linewidth=0.8, gid="as-right-as-sure")
    for one in full:
        x, accuracy = one["confidence"], one["accuracy"]
        interval, point = axes.plot(
            [x, x], [accuracy["low"], accuracy["high"]], "-", [x], [accuracy["value"]], "o", color=COLOURS[0],
            linewidth=1.5, clip_on=False,
        )  # fmt: skip
        interval.set_gid(f"interval-{x:.4f}")
        point.set_gid(f"point-{x:.4f}")
    axes.set_ylim(0, 1)
    axes.set_ylabel("how often it was right, 95 % interval")
    axes.grid(True, axis="y")


def _pairs(axes: Any, full: Sequence[Json]) -> None:
    middles = [(one["from"] + one["to"]) / 2 for one in full]
    counts = [one["accuracy"]["n"] for one in full]
    drawn = axes.bar(middles, counts, 0.042, color=COLOURS[0], alpha=0.5)
    axes.bar_label(drawn, fontsize=8, color=INK, padding=1)
    axes.set_xlim(0.5, 1)
    axes.set_ylim(0, max(counts, default=1) * 1.4)  # room for the numbers
    axes.set_yticks([])
    axes.set_ylabel("pairs")
