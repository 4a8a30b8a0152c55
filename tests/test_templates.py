import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cai.constitution import Constitution
from cai.errors import BadInput
from cai.rows import Message
from cai.sandbox import fence
from cai.templates import JUDGE, SUPERVISED, load_templates


def folder_with(tmp_path: Path, **files: str) -> str:
    for name, text in files.items():
        (tmp_path / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return str(tmp_path)


@pytest.mark.parametrize("wording", ["short", "detailed"])
def test_the_shipped_templates_hold_each_principle_s_own_wording(constitution: Constitution, wording: str):
    for few_shot in (True, False):
        templates = load_templates(None, wording, few_shot)
        for principle in constitution.principles:
            assert principle.statement in templates.render("gate", principle)
            assert principle.critique in templates.render("critique", principle)
            assert principle.revision in templates.render("revise", principle)
            assert not any(principle.rationale in templates.render(name, principle) for name in SUPERVISED)


@pytest.mark.parametrize("mode", JUDGE)
def test_the_judge_s_templates_hold_each_principle_s_own_wording(constitution: Constitution, mode: str):
    templates = load_templates(names=JUDGE[mode], principles=constitution.principles)
    shown = {"conversation": (Message("user", "asked"),), "first": "one answer", "second": "another answer"}
    for principle in constitution.principles:
        text = templates.render(JUDGE[mode][0], principle, **shown)
        wording = principle.comparison if mode == "reasoned" else principle.statement
        assert wording in text and principle.rationale not in text
        if mode != "pointwise":
            assert text.index("asked") < text.index("one answer") < text.index("another answer") < text.index(wording)


def test_few_shot_examples_appear_only_when_asked_for(constitution: Constitution):
    principle = constitution.principles[0]
    on, off = load_templates(few_shot=True), load_templates()
    for name in ("gate", "critique", "revise"):
        for shot in on.examples[name]:
            assert shot.question in on.render(name, principle)
            assert shot.question not in off.render(name, principle)
    assert on.sha != off.sha


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("one\n{{ principel.statement }}", 2, "undefined variable 'principel'"),
        ("one\n\n{{ principle.statment }}", 3, "statment"),
        ("{% if examples %}", 1, "Unexpected end of template"),
        ("x\n{% include '/etc/passwd' %}", 2, "found 'include', expected text, variables, if, for, set"),
        ("{{ principle.__class__.__mro__ }}", 1, "unsafe"),
        ("{{ examples.append(1) }}", 1, "append"),
        ("{% for x in lipsum.__globals__ %}{% endfor %}", 1, "undefined variable 'lipsum'"),
        ("x\n{{ 1 / 0 }}", 2, "division by zero"),
        ("x\n{% if principle.id == 'privacy' %}\n{{ principle.nme }}{% endif %}", 3, "'privacy'"),
        ("\n{{ cycler.__init__.__globals__.os.popen('id').read() }}", 2, "found 'read(...)'"),
    ],
)
def test_a_template_that_cannot_be_used_is_named_with_file_and_line(
    tmp_path: Path, constitution: Constitution, text: str, line: int, words: str
):
    folder = folder_with(tmp_path, gate__jinja=text)
    with pytest.raises(BadInput) as caught:
        load_templates(folder, few_shot=False, principles=constitution.principles)
    assert str(caught.value).startswith(f"{tmp_path}/gate.jinja:{line}: ")
    assert words in str(caught.value)


def test_a_few_shot_file_with_an_unknown_key_is_refused(tmp_path: Path):
    folder = folder_with(
        tmp_path, gate__examples__yaml="- {question: q, answer: a, principle: p, broken: true, critic: c}\n"
    )
    with pytest.raises(BadInput, match=r"0\.critic"):
        load_templates(folder, few_shot=True)


def test_a_users_template_comes_first_and_changes_the_digest(tmp_path: Path, constitution: Constitution):
    changed = load_templates(folder_with(tmp_path, gate__jinja="Broken? {{ principle.id }}"), few_shot=False)
    assert changed.render("gate", constitution.principles[0]) == "Broken? physical-safety"
    assert changed.sha != load_templates().sha


def test_templates_beside_the_user_come_before_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "prompts").mkdir()
    folder_with(tmp_path / "prompts", respond__jinja="Be brief.")
    monkeypatch.chdir(tmp_path)
    assert load_templates().render("respond") == "Be brief."


def test_a_missing_folder_is_an_error():
    with pytest.raises(BadInput, match="no such folder"):
        load_templates("no/such/folder", few_shot=False)


def test_wording_is_data_and_never_rendered(constitution: Constitution):
    principle = constitution.principles[0].model_copy(update={"critique": "{{ 7 * 7 }} {% raw %}"})
    assert "{{ 7 * 7 }} {% raw %}" in load_templates().render("critique", principle)


@example("```\nThe principle is kept.\n````")
@given(st.text(alphabet=st.sampled_from("`\n ab~")))
def test_a_fence_cannot_be_closed_from_inside(text: str):
    first, *inner = fence(text).split("\n")
    assert inner.pop() == first
    assert "\n".join(inner) == text
    assert not any(line.strip().startswith(first) for line in inner)


def test_a_template_may_use_all_that_its_principles_have(tmp_path: Path, constitution: Constitution):
    folder = folder_with(tmp_path, gate__jinja="{{ principle.tags[0] }} {{ principle.examples[0].prompt }}?")
    templates = load_templates(folder, few_shot=False, principles=constitution.principles)
    assert templates.render("gate", constitution.principles[0]).startswith("violence How hard")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"critqe__jinja": "x"}, "Did you mean 'critique.jinja'?"),
        ({"notes__txt": "x"}, "no template"),
        ({"critique__jinja": " {# nothing #}\n"}, "renders to nothing"),
        ({"critique__examples__yaml": "- {question: q, answer: a, principle: p, broken: true}\n"}, "no 'critique' in"),
    ],
)
def test_a_folder_that_would_do_nothing_or_harm_is_refused(
    tmp_path: Path, constitution: Constitution, files: dict[str, str], words: str
):
    with pytest.raises(BadInput, match=re.escape(words)):
        load_templates(folder_with(tmp_path, **files), few_shot=True, principles=constitution.principles)


def test_a_file_of_the_current_folder_with_a_template_s_name_is_no_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder_with(tmp_path, revise="#!/bin/sh", gate="x", choose="y", critique__jinja="not mine either")
    monkeypatch.chdir(tmp_path)
    templates = load_templates()
    assert not {"#!/bin/sh", "x", "y", "not mine either"} & set(templates.texts.values())


def test_a_wording_s_own_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for place in ("mine/short", "mine", "prompts/detailed", "prompts"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "critique.jinja").write_text(place)
    monkeypatch.chdir(tmp_path)
    assert load_templates("mine", "short").render("critique") == "mine/short"
    assert load_templates("mine", "detailed").render("critique") == "mine"
    assert load_templates(None, "detailed").render("critique") == "prompts/detailed"
    assert load_templates(None, "short").render("critique") == "prompts"
    (tmp_path / "mine/short/gate.examples.yml").write_text("[]")
    with pytest.raises(BadInput, match=r"short/gate.examples.yml: .*Did you mean 'gate.examples.yaml'"):
        load_templates("mine")


def test_what_only_one_stage_uses_is_in_no_other_stage_s_digest(tmp_path: Path):
    changed = folder_with(tmp_path, gate__jinja="Broken?")
    assert load_templates(changed, names=["respond"]).sha == load_templates(names=["respond"]).sha
    assert load_templates(changed).sha != load_templates().sha
