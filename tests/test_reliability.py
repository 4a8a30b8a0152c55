import xml.etree.ElementTree as ET
from typing import Any

import pytest

from cai.reliability import reliability
from cai.scores import Soft, reliability_bins
from cai.seal import Json

SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
SOFT: list[Soft] = [(0.93, True)] * 4 + [(0.08, True)] + [(0.61, True), (0.39, True)]


class Drawn:
    """Where the drawing has its points and intervals, by confidence: the diagonal tells what a place means."""

    def __init__(self, bins: list[Json]) -> None:
        self.root = ET.fromstring(reliability(bins).as_file())
        self.texts = [text.text for text in self.root.iter(f"{SVG}text")]
        self.groups = {str(one.get("id")): one for one in self.root.iter(f"{SVG}g")}
        (self.corner, self.end) = self._path("drawing-as-right-as-sure")
        self.points = {
            name[-6:]: self._means((float(use.attrib["x"]), float(use.attrib["y"])))
            for name, group in self.groups.items()
            if name.startswith("drawing-point-")
            for use in group.iter(f"{SVG}use")
        }
        self.intervals = {
            name[-6:]: [self._means(one) for one in self._path(name)]
            for name in self.groups
            if name.startswith("drawing-interval-")
        }

    def _path(self, name: str) -> list[tuple[float, float]]:
        (path,) = self.groups[name].iter(f"{SVG}path")
        words = path.attrib["d"].replace("M", " ").replace("L", " ").split()
        return list(zip(map(float, words[::2]), map(float, words[1::2]), strict=True))

    def _means(self, place: tuple[float, float]) -> Any:
        """Confidence and accuracy at a place."""
        x, y = (
            0.5 + 0.5 * (at - low) / (high - low) for at, low, high in zip(place, self.corner, self.end, strict=True)
        )
        return pytest.approx((x, y), abs=1e-3)


def test_the_drawing_has_a_point_an_interval_and_a_count_for_each_full_bin():
    bins = reliability_bins(SOFT)
    drawn = Drawn(bins)
    assert drawn.points == {"0.6100": (0.61, 0.5), "0.9280": (0.928, 0.8)}
    full = [one for one in bins if one["accuracy"]["n"]]
    for one in full:
        x, accuracy = one["confidence"], one["accuracy"]
        assert [(x, accuracy["low"]), (x, accuracy["high"])] == drawn.intervals[f"{x:.4f}"]
    assert drawn.texts.count("2") == drawn.texts.count("5") == 1
    assert "how often it was right, 95 % interval" in drawn.texts
    assert drawn.root.findtext(f"{SVG}desc") == "sure 0.61, right 0.50 of 2; sure 0.93, right 0.80 of 5"


@pytest.mark.parametrize("soft", [[], SOFT, [(1.0, True)] * 3, [(1.0, False), (0.5, True)]])
def test_the_axes_of_confidence_and_accuracy_end_where_a_share_does(soft: list[Soft]):
    drawn = Drawn(reliability_bins(soft))
    ticks = [float(text) for text in drawn.texts if text and "." in text]
    assert (min(ticks), max(ticks), ticks.count(1.0)) == (0.0, 1.0, 2)
    # The diagonal ends in the upper right corner of the axes: their frame goes no further.
    frame = next(drawn.groups["drawing-patch_2"].iter(f"{SVG}path")).attrib["d"].split()
    across, up = {float(one) for one in frame[1::3]}, {float(one) for one in frame[2::3]}
    assert (max(across), min(up)) == pytest.approx(drawn.end, abs=0.01)


def test_no_pairs_make_a_drawing_without_points():
    drawn = Drawn(reliability_bins([]))
    assert drawn.points == drawn.intervals == {} and drawn.root.findtext(f"{SVG}desc") == "no pairs"
