import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib

from cai.drawing import COLOURS, GREY, INK, Drawing

SVG = "{http://www.w3.org/2000/svg}"


def _draw(figure: Any) -> None:
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 2], "o", color=COLOURS[0], gid="points")
    axes.grid(True)
    axes.set_title("a $title$ 中文")


DRAWN = Drawing("Title <b>", "told \x1b[31m \ud800", (3.0, 2.0), _draw, {"points": "what they are"})


def test_equal_figures_give_equal_bytes_whatever_the_settings_of_who_draws_them():
    wanted = DRAWN.as_file()
    others = {"axes.facecolor": "red", "axes.linewidth": 9, "font.size": 20, "svg.hashsalt": None, "axes.grid": True}
    with matplotlib.rc_context(others):
        assert DRAWN.as_file() == wanted
        assert matplotlib.rcParams["font.size"] == 20, "and they are left as they were"
    assert "Date" not in wanted and "dc:date" not in wanted


def test_a_drawing_is_xml_with_text_as_text_and_what_it_shows_in_words():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = ET.fromstring(DRAWN.as_file().encode())
    assert root.findtext(f"{SVG}title") == "Title <b>" and root.findtext(f"{SVG}desc") == "told ?[31m ?"
    assert "a $title$ 中文" in [text.text for text in root.iter(f"{SVG}text")]
    (points,) = (one for one in root.iter(f"{SVG}g") if one.get("id") == "drawing-points")
    assert points.findtext(f"{SVG}title") == "what they are"
    names = {one.get("id") for one in root.iter()}
    assert root.attrib["role"] == "img" and set(root.attrib["aria-labelledby"].split()) <= names
    links = [value for one in root.iter() for key, value in one.attrib.items() if key.endswith("href")]
    assert links and {link[1:] for link in links} <= names


def test_in_a_page_the_ink_is_the_pages_and_in_a_file_it_is_legible_on_white_and_on_black():
    in_page, as_file = DRAWN.in_page("one"), DRAWN.as_file()
    assert "currentColor" in in_page and GREY not in in_page and 'width="' not in in_page.split(">")[0]
    assert GREY in as_file and "currentColor" not in as_file and 'width="' in as_file.split(">")[0]
    for svg in (in_page, as_file):
        assert INK not in svg and "style" not in svg and "#ffffff" not in svg
    for colour, least in ((GREY, 4.0), *((one, 3.0) for one in COLOURS)):
        light = _luminance(colour)
        assert 1.05 / (light + 0.05) > least and (light + 0.05) / 0.05 > least, colour


def _luminance(colour: str) -> float:
    """As WCAG 2 has it."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_two_drawings_of_one_page_share_no_id():
    one, other = ({element.get("id") for element in ET.fromstring(DRAWN.in_page(name)).iter()} for name in "ab")
    assert one & other == {None}


def test_what_draws_nothing_does_not_load_the_library():
    code = "import sys, cai.cli, cai.stages, cai.cli_report, cai.report.page; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0
