import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from cai.cli_constitution import constitution as group
from cai.constitution import WORDINGS, load_constitution
from cai.constitution_pages import as_html, as_markdown
from cai.errors import BadInput

HOSTILE = "<script>alert(1)</script> </style> \\u202eesrever **bold** [x](http://a)"


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    text = load_constitution("helpfulness").text
    where = r"^(  +)(statement|rationale|critique|revision|comparison|worse):.*(?:\n\1  .*)*$"
    made = re.sub(
        where, lambda m: f"{m[1]}{m[2]}: {json.dumps(HOSTILE)}".replace("\\\\u", "\\u"), text, flags=re.MULTILINE
    )
    (tmp_path / "mine.yaml").write_text(made)
    return str(tmp_path / "mine.yaml")


class Page(HTMLParser):
    """The tags, the addresses and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open += [tag] if tag != "meta" else []
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""


def test_the_html_page_has_every_wording_and_needs_nothing_else():
    loaded = load_constitution("harmlessness")
    page = Page(as_html(loaded))
    assert page.open == [] and not {"script", "link", "img", "iframe"} & {*page.tags}
    assert page.addresses == [f"#{one.id}" for one in loaded.principles]
    for principle in loaded.principles:
        texts = [getattr(principle, name) for name in WORDINGS]
        texts += [text for one in principle.examples for text in (one.prompt, one.better, one.worse)]
        assert all(" ".join(text.split()) in page.text for text in texts)
    assert loaded.sha in page.text and (loaded.question or "?") in page.text


def test_what_stands_in_a_constitution_is_text_on_the_page_and_never_markup(hostile: str):
    loaded = load_constitution(hostile)
    page = as_html(loaded)
    assert "script" not in Page(page).tags and "<script>" in Page(page).text and "\u202e" not in page
    markdown = as_markdown(loaded)
    assert "<script>" not in markdown and "**bold**" not in markdown and "\u202e" not in markdown
    assert "\\\\u202eesrever" in markdown and "\\u202eesrever" in page, "spelled out, in Markdown with its backslash"
    assert "alert(1)" in html.unescape(markdown)


def test_show_writes_each_form_into_a_file_once(tmp_path: Path):
    run = CliRunner().invoke
    begins = {"terminal": "─", "markdown": "# helpfulness", "html": "<!doctype html>"}
    for form, words in begins.items():
        out = tmp_path / form
        asked = ["show", "helpfulness", "--format", form, "--out", str(out)]
        assert run(group, asked).exit_code == 0
        text = out.read_text()
        assert text.startswith(words) and "no-flattery" in text and "\x1b" not in text
        again = run(group, asked)
        assert isinstance(again.exception, BadInput) and out.read_text() == text
        assert run(group, [*asked, "--force"]).exit_code == 0
    assert run(group, ["show", "helpfulness", "--format", "markdown"]).stdout == (tmp_path / "markdown").read_text()


def test_what_nobody_sees_is_spelled_out_in_every_form(tmp_path: Path):
    text = load_constitution("helpfulness").text
    told = re.sub(
        r"^description: .*(?:\n  .*)*$", lambda _: 'description: "x\\u200by\\u202ez"', text, flags=re.MULTILINE
    )
    (tmp_path / "mine.yaml").write_text(told)
    for form in ("terminal", "markdown", "html"):
        shown = CliRunner().invoke(group, ["show", str(tmp_path / "mine.yaml"), "--format", form]).stdout
        assert "\u200b" not in shown and "\u202e" not in shown
        assert "x\\u200by\\u202ez" in shown.replace("\\\\", "\\"), form


def test_a_label_in_the_terminal_stands_apart_from_its_text():
    shown = CliRunner().invoke(group, ["show", "harmlessness"]).stdout
    assert "e.g. prompt How hard" in shown and "e.g. better A blow" in shown and "e.g. worse  I would" in shown


def test_a_constitution_is_not_overwritten_by_its_own_page(hostile: str):
    before = Path(hostile).read_text()
    done = CliRunner().invoke(group, ["show", hostile, "--format", "html", "--out", hostile])
    assert isinstance(done.exception, BadInput) and Path(hostile).read_text() == before


def test_wordings_that_were_made_up_are_marked_wherever_the_constitution_is_shown(tmp_path: Path):
    (tmp_path / "a.txt").write_text("The AI should cite sources.\n")
    run = CliRunner().invoke
    run(group, ["import", str(tmp_path / "a.txt"), "--out", str(tmp_path / "a.yaml")])
    for form in ("markdown", "html"):
        shown = run(group, ["show", str(tmp_path / "a.yaml"), "--format", form]).stdout
        assert shown.count("made up by cai, not in the source") == 4 and "Imported from" in shown
    shown = " ".join(run(group, ["show", str(tmp_path / "a.yaml")]).stdout.split())
    assert "by cai, not in the source: rationale, critique, revision, comparison" in shown
    told = json.loads(run(group, ["show", str(tmp_path / "a.yaml"), "--json"]).stdout)
    assert told["source"]["form"] == "list" and told["principles"][0]["filled_in"][0] == "rationale"
