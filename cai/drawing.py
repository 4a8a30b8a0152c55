"""A picture of figures as SVG: inside a page, where the ink is the page's own, or as a file that stands on any ground.

Drawn by matplotlib, which is only loaded when something is drawn: it takes a second. Equal figures give equal bytes:
ids come from a fixed salt, there is no date, and the settings of whoever draws do not count. Text is text. What
matplotlib writes as `style` attributes becomes plain attributes, since a page's policy may allow no styles but its own
sheet.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

INK = "#010203"  # what is drawn in it becomes the ink of the page or of the file
GREY = "#767a82"  # the ink of a file: legible on white and on black, since nobody knows where it will be shown
# Legible on white and on black, and told apart by those who do not tell red from green (Okabe and Ito 2008).
COLOURS = ("#3f83d8", "#d55e00", "#8a8f98", "#009e73")

_SVG = "http://www.w3.org/2000/svg"
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "cai", "svg.fonttype": "none", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "text.parse_math": False, "grid.color": INK, "grid.alpha": 0.25, "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn on a matplotlib figure, and what is said of it.

    `told` is read out in place of the picture. `hints` are shown to a pointer, by the gid of what it points at.
    """

    title: str
    told: str
    inches: tuple[float, float]
    draw: Callable[[Any], None]
    hints: Mapping[str, str] = field(default_factory=dict[str, str])

    def in_page(self, name: str) -> str:
        """For a page, as wide as it allows; `name` keeps its ids apart from those of other drawings there."""
        root = self._root(name, "currentColor")
        for key in ("width", "height"):
            root.attrib.pop(key, None)
        return ElementTree.tostring(root, encoding="unicode")

    def as_file(self) -> str:
        """For a file of its own."""
        root = self._root("drawing", GREY)
        root.attrib["font-family"] = "system-ui, sans-serif"
        return ElementTree.tostring(root, encoding="unicode") + "\n"

    def _root(self, name: str, ink: str) -> ElementTree.Element:
        root = ElementTree.fromstring(_drawn(self.draw, self.inches))
        for parent in list(root.iter()):
            for child in list(parent):
                if child.tag.removeprefix(f"{{{_SVG}}}") in ("metadata", "style"):
                    parent.remove(child)
            hint = self.hints.get(parent.get("id", ""))
            if hint is not None:
                parent.insert(0, _element("title", hint))
        for element in root.iter():
            _plain_attributes(element, name, ink)
        root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-told", "stroke-linejoin": "round"}
        root.insert(0, _element("title", self.title, id=f"{name}-title"))
        root.insert(1, _element("desc", self.told, id=f"{name}-told"))
        ElementTree.register_namespace("", _SVG)
        ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
        return root


def printed(text: str) -> str:
    """Text as a picture can hold it: no control characters, no second line."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _drawn(draw: Callable[[Any], None], inches: tuple[float, float]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Text is measured in the font that comes with matplotlib; a reader's own one may have letters that it lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure: Any = Figure(figsize=inches)
        draw(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return file.getvalue()


def _element(tag: str, text: str, **attributes: str) -> ElementTree.Element:
    one = ElementTree.Element(f"{{{_SVG}}}{tag}", attributes)
    one.text = printed(text)
    return one


def _plain_attributes(element: ElementTree.Element, name: str, ink: str) -> None:
    for one in element.attrib.pop("style", "").split(";"):
        key, _, value = one.partition(":")
        if key.strip() == "font":
            size = re.search(r"[\d.]+px", value)
            element.attrib["font-size"] = size[0] if size else "9px"
        elif key.strip() not in ("", "font-family"):
            element.attrib[key.strip()] = value.strip()
    for key, value in element.attrib.items():
        if key == "id":
            value = f"{name}-{value}"
        elif key in ("clip-path", "{http://www.w3.org/1999/xlink}href"):
            value = value.replace("#", f"#{name}-")
        element.attrib[key] = value.replace(INK, ink)
