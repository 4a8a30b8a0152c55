import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cai.cli_constitution import constitution as group
from cai.constitution import Constitution, load_constitution
from cai.constitution_diff import Change, Principled, constitution_of, diff
from cai.dataset import KIND
from cai.engines import Request
from cai.engines.scripted import ScriptedEngine
from cai.errors import BadInput
from cai.settings import LabelSettings, ReviseSettings
from cai.stages import label_stage, revise_stage
from cai.store import Run
from cai.word_diff import Piece
from tests.conftest import Quiet, played_by, write_jsonl

SHIPPED = load_constitution("harmlessness").text


def changed(tmp_path: Path, *replaced: tuple[str, str]) -> Constitution:
    text = SHIPPED
    for old, new in replaced:
        assert old in text, old
        text = text.replace(old, new, 1)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_constitution(str(path))


def only(old: Constitution, new: Constitution, **with_run: Any) -> Principled:
    found = diff(old, new, **with_run)
    assert found.file == () and len(found.principles) == 1
    return found.principles[0]


@pytest.fixture
def shipped() -> Constitution:
    return load_constitution("harmlessness")


def test_the_same_constitution_has_no_difference(shipped: Constitution):
    found = diff(shipped, shipped)
    assert (found.file, found.principles) == ((), ()) and len(found.unchanged) == len(shipped.principles)


def test_a_reworded_field_is_named_with_the_words_that_changed(shipped: Constitution, tmp_path: Path):
    one = only(shipped, changed(tmp_path, ("can be followed by anyone who", "is read by everybody and whoever")))
    assert (one.id, one.fate) == ("physical-safety", "changed")
    (change,) = one.changes
    assert change.field == "rationale" and change.said == "reworded, 5 word(s) taken out and 5 put in"
    assert Piece("removed", "anyone who") in change.pieces


def test_punctuation_behind_a_word_makes_no_other_word_of_it(shipped: Constitution, tmp_path: Path):
    (change,) = only(shipped, changed(tmp_path, ("injure or kill a", "injure, threaten or kill a"))).changes
    assert change.said == "reworded, 0 word(s) taken out and 1 put in"
    (change,) = only(shipped, changed(tmp_path, ("injure or kill a", "injure, or kill a"))).changes
    assert change.said == "other punctuation"


def test_another_line_break_is_no_change_and_another_capital_is_one(shipped: Constitution, tmp_path: Path):
    assert diff(shipped, changed(tmp_path, ("rationale: >-", "rationale: |-"))).principles == ()
    (change,) = only(shipped, changed(tmp_path, ("Advice on violence", "advice on violence"))).changes
    assert change.field == "rationale"


def test_weight_tags_examples_and_references_that_changed_are_said(shipped: Constitution, tmp_path: Path):
    new = changed(
        tmp_path,
        ("weight: 1.5", "weight: 2"),
        ("[violence, safety]", "[violence, harm]"),
        ('clause: "3.2 Safe"', 'clause: "3.3"'),
        ("prompt: How hard do I have to hit", "prompt: How hard must I hit"),
        ("Nothing, please:", "Nothing:"),
        ("refusal_is_fine: true", "refusal_is_fine: false"),
    )
    said = {change.field.split(" (")[0]: change.said for change in only(shipped, new).changes}
    assert said["weight"] == "reweighted from 1.5 to 2" and said["tags"] == "added: harm; removed: safety"
    assert said["refusal_is_fine"] == "a plain refusal may break it now"
    assert said["references"].startswith("added: NIST AI RMF 1.0 (NIST AI 100-1), 3.3; removed: NIST AI RMF 1.0")
    texts = [change.said for change in only(shipped, new).changes if change.field.startswith("examples")]
    assert texts[0].startswith("added: 'How hard must I hit") and "removed: 'How hard do I have" in texts[0]
    assert texts[1] == "reworded, 1 word(s) taken out and 0 put in", "the better answer of the other example"


def test_an_id_that_changed_with_the_same_statement_is_renamed_and_else_added_and_removed(
    shipped: Constitution, tmp_path: Path
):
    one = only(shipped, changed(tmp_path, ("id: care-in-crisis", "id: crisis")))
    assert (one.id, one.fate, one.was, one.changes) == ("crisis", "renamed", "care-in-crisis", ())
    new = changed(tmp_path, ("id: care-in-crisis", "id: crisis"), ("is warm, gives no\n      means", "gives none"))
    fates = {(found.id, found.fate) for found in diff(shipped, new).principles}
    assert fates == {("crisis", "added"), ("care-in-crisis", "removed")}


def test_the_question_the_version_and_the_order_of_the_file_are_compared(shipped: Constitution, tmp_path: Path):
    start, second, third = (SHIPPED.index(f"  - id: {name}") for name in
                            ("physical-safety", "dangerous-materials", "care-in-crisis"))  # fmt: skip
    moved = SHIPPED[:start] + SHIPPED[second:third] + SHIPPED[start:second] + SHIPPED[third:]
    (tmp_path / "moved.yaml").write_text(moved.replace('"1.0"', '"1.1"').replace("hateful or false", "or false"))
    found = diff(shipped, load_constitution(str(tmp_path / "moved.yaml")))
    assert [change.field for change in found.file] == ["version", "question", "order"] and found.principles == ()


def test_a_dataset_has_no_constitution_and_is_told_so(tmp_path: Path):
    (tmp_path / "manifest.json").write_text(json.dumps({"kind": KIND}))
    with pytest.raises(BadInput, match=r"a dataset, which keeps no constitution.*Give the run that it was made of"):
        constitution_of(str(tmp_path))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(BadInput, match="a folder that is no run"):
        constitution_of(str(tmp_path))


# What of a run is asked anew


def answer(request: Request) -> Any:
    """Answers that depend on no wording of the constitution. Of four rows one refuses, and the gate lets two pass."""
    said = request.messages[0].content
    passed, refused = ("question 2" in said or "question 3" in said), "question 3" in said
    return {
        "response": "I'm sorry, but I can't help with that." if refused else f"Take two eggs for {said}.",
        "choice": "A", "gate": 0.1 if passed else 0.9, "critique": "It takes eggs.",
        "revision": f"Take three apples instead for {said}, and enjoy the cake.", "verdict": 0.7, "kept": 0.7,
        "reasoning": "Both are about a cake.",
    }[request.purpose]  # fmt: skip


def make(
    folder: Path, constitution: str, reuse: tuple[str, ...] = (), script: Callable[[Request], Any] = answer,
    **settings: Any,
) -> Run:  # fmt: skip
    write_jsonl(folder.parent / "prompts.jsonl", [{"id": f"r{n}", "prompt": f"question {n}"} for n in range(4)])
    with pytest.MonkeyPatch.context() as patch:
        played_by(patch, ScriptedEngine(script))
        revising = ReviseSettings(
            prompts=str(folder.parent / "prompts.jsonl"), out=str(folder), engine="scripted", rounds=1, reuse=reuse,
            revision_tries=1, principles=settings.get("principles", "fitting"), history="off",
            constitution=constitution, shard_rows=3, gate_threshold=0.5,
        )  # fmt: skip
        asyncio.run(revise_stage(revising, Quiet()))
        labelling = LabelSettings(
            run=str(folder), engine="scripted", judge_principles=settings.get("judge_principles", 4), reuse=reuse,
            judge_mode=settings.get("judge_mode", "logprob"), history="off", constitution=settings.get("judged_by"),
        )  # fmt: skip
        asyncio.run(label_stage(labelling, Quiet()))
    return Run(folder)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make(tmp_path_factory.mktemp("diff") / "run", "harmlessness")


@pytest.fixture
def run(made_once: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(made_once.folder, tmp_path / "run"))


def counted(one: Change | Principled) -> dict[str, Any]:
    assert one.asked is not None
    told = one.asked.as_json()
    return {name: told[name] for name in ("certain", "expected", "gone") if told[name]} | {"rows": told["rows"]}


BOTH = {"critique": 2, "revision": 2}
COUNTED: dict[str, tuple[tuple[str, str], dict[str, Any]]] = {
    "id": (
        ("id: physical-safety", "id: no-violence"),
        {"certain": {"choice": 4, "verdict": 2}, "expected": BOTH, "gone": {"verdict": 2}, "rows": 4},
    ),
    "tags": (("[violence, safety]", "[violence]"), {"certain": {"choice": 4}, "rows": 4}),
    "statement": (
        ("animal, or cheer them on", "animal, or praise it"),
        {"certain": {"critique": 2, "verdict": 2}, "expected": {"revision": 2}, "rows": 2},
    ),
    "critique": (
        ("make light of it or urge it", "praise it"),
        {"certain": {"critique": 2}, "expected": {"revision": 2}, "rows": 2},
    ),
    "revision": (("do not scold", "never scold"), {"certain": {"revision": 2}, "rows": 2}),
    "comparison": (("Which answer gives less help to someone", "Which helps less someone"), {"rows": 0}),
    "weight": (("weight: 1.5", "weight: 9"), {"certain": {"verdict": 2}, "gone": {"verdict": 2}, "rows": 1}),
    "refusal_is_fine": (
        ("refusal_is_fine: true", "refusal_is_fine: false"), {"certain": {"gate": 1}, "rows": 1},
    ),
    "question": (("hateful or false", "or false"), {"certain": {"gate": 3}, "rows": 3}),
    "rationale": (("Advice on violence", "Advice about violence"), {"rows": 0}),
    "references": (('clause: "3.2 Safe"', 'clause: "3.3"'), {"rows": 0}),
}  # fmt: skip


@pytest.mark.parametrize("field", COUNTED)
def test_a_change_asks_anew_the_calls_that_a_run_with_reuse_asks(
    shipped: Constitution, tmp_path: Path, run: Run, field: str
):
    replaced, told = COUNTED[field]
    new = changed(tmp_path, replaced)
    found = diff(shipped, new, run, Quiet())
    (one,) = found.file or (found.principles if field == "id" else found.principles[0].changes)
    assert counted(one) == told and found.asked == one.asked
    assert found.made_with == {"revise": "a", "label": "a"} and found.not_counted == ()
    # These models say the same to every wording, so all that is expected is asked.
    again = make(tmp_path / "again", str(new.path), (str(run.folder),))
    asked = sum(session["asked_calls"] for session in again.sessions())
    assert asked == sum(sum(told.get(name, {}).values()) for name in ("certain", "expected"))
    # A gate that was never asked may find the answer broken, and then more comes.
    assert found.asked is not None and found.asked.open_rows == (field == "refusal_is_fine")


def test_what_comes_after_a_new_answer_is_no_more_than_possible(shipped: Constitution, tmp_path: Path, run: Run):
    found = diff(shipped, changed(tmp_path, COUNTED["tags"][0]), run, Quiet())
    assert found.asked is not None and found.asked.following == {"gate": 3, **BOTH}
    assert found.counted is not None
    assert found.counted.calls == {"choice": 4, "gate": 3, **BOTH, "verdict": 16}


def varied(request: Request) -> Any:
    """Verdicts that differ from one prompt to the next."""
    if request.purpose in ("verdict", "kept"):
        return 0.2 + int(request.key("")[:4], 16) / 2**17
    return answer(request)


def test_a_weight_moves_a_label_without_asking_where_every_principle_judges(tmp_path: Path, shipped: Constitution):
    run = make(tmp_path / "all", "harmlessness", script=varied, judge_principles="all")
    found = diff(shipped, changed(tmp_path, COUNTED["weight"][0]), run, Quiet())
    assert found.asked is not None
    assert found.asked.as_json() == {**NOTHING, "rows": 2, "labels": 2}


NOTHING: dict[str, Any] = {
    "rows": 0,
    "certain": {},
    "expected": {},
    "following": {},
    "gone": {},
    "open_rows": 0,
    "labels": 0,
}


def test_a_judge_that_reasons_is_asked_anew_with_its_letter_and_only_in_the_mode_that_asks_for_the_comparison(
    tmp_path: Path, shipped: Constitution
):
    new = changed(tmp_path, COUNTED["comparison"][0])
    run = make(tmp_path / "reasoned", "harmlessness", judge_mode="reasoned", judge_principles="all")
    found = diff(shipped, new, run, Quiet())
    assert found.asked is not None and found.counted is not None
    assert found.counted.calls["reasoning"] == found.counted.calls["verdict"] == 2 * 2 * len(shipped.principles)
    assert found.asked.as_json() == {**NOTHING, "rows": 2, "certain": {"reasoning": 4, "verdict": 4}}


def test_each_principle_that_was_added_or_removed_changes_every_choice_among_them(
    shipped: Constitution, tmp_path: Path, run: Run
):
    end = SHIPPED.index("  - id: dangerous-materials")
    (tmp_path / "less.yaml").write_text(SHIPPED[: SHIPPED.index("  - id: physical-safety")] + SHIPPED[end:])
    less = load_constitution(str(tmp_path / "less.yaml"))
    removed = only(shipped, less, run=run, watch=Quiet())
    # All choices were A, the one that is gone: what is asked after them, nobody knows.
    assert removed.fate == "removed" and removed.asked is not None
    assert removed.asked.certain["choice"] == 4 and removed.asked.following == {"gate": 3, **BOTH}
    found = diff(less, shipped, run, Quiet())
    assert found.principles[0].fate == "added" and found.made_with == {"revise": "b", "label": "b"}
    assert found.asked == removed.asked
    changed(tmp_path, ("do not scold", "never scold"))
    other = diff(less, load_constitution(str(tmp_path / "mine.yaml")), run, Quiet())
    assert other.not_counted == ("The run was made with neither text.",) and other.asked is None


def test_where_the_judge_used_another_text_than_the_reviser_that_is_said_and_left_out(
    shipped: Constitution, tmp_path: Path
):
    new = changed(tmp_path, COUNTED["statement"][0])
    run = make(tmp_path / "two", "harmlessness", judged_by=str(new.path))
    found = diff(shipped, load_constitution("helpfulness"), run, Quiet())
    assert found.made_with == {"revise": "a", "label": "neither"}
    assert found.counted is not None and "verdict" not in found.counted.calls
    assert found.not_counted == (
        f"cai label used another text, harmlessness 1.0 ({new.sha[:12]}), so its calls were not counted.",
    )
    shown = CliRunner().invoke(group, ["diff", str(run.folder), "helpfulness"]).stdout
    assert f"cai label used another text: {run.folder}/inputs/label/constitution.yaml" in shown


def test_a_runs_folder_means_the_constitution_that_it_keeps(run: Any, tmp_path: Path):
    kept = constitution_of(str(run.folder))
    assert kept.path == run.folder / "inputs" / "revise" / "constitution.yaml" and kept.text == SHIPPED
    kept.path.unlink()
    (run.folder / "inputs" / "label" / "constitution.yaml").unlink()
    with pytest.raises(BadInput, match="a run that keeps no constitution"):
        constitution_of(str(run.folder))


def test_the_command_shows_changed_words_and_what_is_asked_anew_and_gives_json(run: Run, tmp_path: Path):
    changed(tmp_path, ("Advice on violence", "Advice [b]about violence"), COUNTED["tags"][0])
    asked = ["diff", str(run.folder), str(tmp_path / "mine.yaml")]
    shown = CliRunner().invoke(group, asked)
    said = " ".join(shown.stdout.split())
    assert "Advice [-on-]{+[b]about+} violence" in said and "changes no prompt of the run and no label" in said
    assert "cai revise used the text at 'from'" in said
    assert "tags: removed: safety asks anew for certain: 4 choices (in 4 row(s))" in said
    assert "That is a lower bound. 3 gates, 2 critiques, 2 revisions come later in the same rows" in said
    assert "another pair" in said
    told = json.loads(CliRunner().invoke(group, [*asked, "--json"]).stdout)
    (one,) = told["principles"]
    assert (one["id"], one["changes"][1]["asked"]["certain"]) == ("physical-safety", {"choice": 4})
    assert told["a"]["sha"] != told["b"]["sha"] and told["made_with"] == {"revise": "a", "label": "a"}
    alone = CliRunner().invoke(group, [*asked, "--no-run"])
    assert "tags: removed: safety" in alone.stdout and "asks anew" not in alone.stdout
    assert "Both say that they are harmlessness 1.0, and their texts differ: raise the version." in said
    assert told["same_version"]
    nothing = CliRunner().invoke(group, ["diff", "helpfulness", "helpfulness"])
    assert "Nothing changed." in nothing.stdout
