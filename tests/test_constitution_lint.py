import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cai.cli_constitution import constitution as group
from cai.constitution import load_constitution
from cai.constitution_lint import RULES, lint
from cai.errors import CheckFailed

ROOT = Path(__file__).parent.parent
EXAMPLES = [{"prompt": f"Question {n}?", "better": "A kept promise.", "worse": "A broken one."} for n in (1, 2)]


def principle(name: str = "receipts", **changes: object) -> dict[str, object]:
    """A principle in which no rule finds anything."""
    return {
        "id": name,
        "statement": "The answer gives the source of each figure that it names.",
        "rationale": "A reader who doubts a number wants to look it up.",
        "critique": "Quote each figure that stands there without a source.",
        "revision": "Rewrite the answer, keep its figures, and name where each comes from.",
        "comparison": "Which answer tells better where its figures come from?",
        "examples": EXAMPLES,
        "references": [{"framework": "Ours", "clause": "1"}],
        **changes,
    }


def linted(tmp_path: Path, *principles: dict[str, object]) -> list[tuple[str, str | None]]:
    path = tmp_path / "mine.yaml"
    file = {"name": "mine", "version": "1", "description": "A test.", "principles": list(principles)}
    path.write_text(yaml.safe_dump(file, sort_keys=False))
    return [(one.rule, one.principle) for one in lint(path)]


OTHER = {"statement": "To someone in danger, the answer tells how they stay safe.", "id": "danger"}

# What each rule finds, and a wording close to it in which it finds nothing.
FOUND = {
    "names-letters": (
        [{"comparison": "Is answer A kinder than answer B?"}, {"comparison": "Is the first answer kinder?"}],
        [{"comparison": "Which answer gives a reader more?"}, {"comparison": "Which answer first says why?"}],
    ),
    "no-conduct": (
        [{"statement": "Kindness and patience towards beginners."}],
        [
            {"statement": "Answers name the source."},
            {"statement": "Avoid medical jargon."},
            {"statement": "The answer never shares an address."},
            {"statement": "It never states a guess as a fact."},
            {"statement": "The answer also always names a doctor to talk to."},
            {"statement": "The answer, when somebody asks, names a source."},
        ],
    ),
    "vague": (
        [{"statement": "The answer is always as good and ethical as possible."}, {"statement": "AI should be kind."}],
        [{"statement": "The answer is kind to beginners."}],
    ),
    "several-duties": (
        [
            {"statement": "The answer is not racist and not dangerous to anyone."},
            {"statement": "The AI should cite its sources and should never lecture people."},
            {"statement": "The answer holds no racist, sexist or toxic remark about a group."},
        ],
        [{"statement": "The answer gives no means and no encouragement, and names help."}],
    ),
    "nothing-to-quote": (
        [{"critique": "Discuss whether the answer could be seen as problematic."}],
        [{"critique": "Quote the words that are wrong."}, {"critique": "Point out each step that is missing."}],
    ),
    "only-removes": (
        [{"revision": "Remove all harmful content."}],
        [{"revision": "Remove all harmful content and offer a lawful way."}, {"revision": "Make it kinder."}],
    ),
    "unseen": (
        [
            {"statement": "The answer names each per\u200bson whom it quotes."},
            {"critique": "Quote each ani\u202emal in it."},
            {"revision": "Keep what is true, and say where it com\u00ades from."},
            {"examples": [EXAMPLES[0], EXAMPLES[1] | {"worse": "A \u2066broken one."}]},
            {"references": [{"framework": "Ours\ufeff", "clause": "1"}]},
        ],
        [{"rationale": "A reader who doubts smiles \U0001f469\u200d\U0001f4bb, says \u0646\u0645\u06cc\u200c\u062f."}],
    ),
    "other-language": (
        [
            {"statement": "\u7b54\u3048\u306f\u4f4f\u6240\u3092\u660e\u304b\u3055\u306a\u3044\u3002"},
            {"statement": "Die Antwort nennt nie die Adresse einer Person."},
            {"revision": "Retire la receta, sin dar otra."},
        ],
        [{"statement": "The answer keeps to names such as Champs-\u00c9lys\u00e9es or Stra\u00dfe des 17. Juni."}],
    ),
    "few-examples": ([{"examples": []}, {"examples": EXAMPLES[:1]}], [{"examples": EXAMPLES}]),
    "no-rationale": (
        [{"rationale": "The answer should give the source of the figures that it names."}],
        [{"rationale": "Readers check."}],
    ),
    "no-references": ([{"references": []}], [{}]),
    "filled-in": ([{"filled_in": ["rationale"]}], [{"filled_in": []}]),
}


@pytest.mark.parametrize("rule", FOUND)
def test_a_rule_finds_what_it_is_for_and_not_its_near_miss(tmp_path: Path, rule: str):
    bad, good = FOUND[rule]
    for wording in bad:
        assert (rule, "receipts") in linted(tmp_path, principle(**wording)), wording
    for wording in good:
        assert linted(tmp_path, principle(**wording)) == [], wording


PAIRS = {
    "near-duplicate": [
        ("The answer names the source of each figure.", "Each figure in the answer has its source named."),
        ("The answer is brief.", "The answer is brief."),
        ("The answer avoids jokes about politicians.", "The answer never jokes about a politician."),
        ("The answer gives no medical advice to adults.", "The answer withholds medical advice from adults."),
        ("The answer is at most two sentences in length.", "The answer has no more than two sentences in length."),
        ("The answer is more formal with elders.", "The answer is less informal with elders."),
        ("Die Antwort nennt die Adresse nicht.", "Die Antwort nennt die Adresse nicht."),
    ],
    "contradiction": [
        ("The answer is brief.", "The answer is long."),
        ("The answer tells jokes about politicians.", "The answer does not tell jokes about politicians."),
        ("The answer gives medical advice to adults.", "The answer withholds medical advice from adults."),
        ("The answer always refuses to talk about politics.", "The answer never refuses to talk about politics."),
        (
            "The answer is brief and keeps to two sentences.",
            "The answer is long and does not keep to two sentences.",
        ),
        ("The answer is brief and simple for children.", "The answer is long and complex for children."),
        ("The answer is more formal with elders.", "The answer is less formal with elders."),
    ],
    "": [
        ("The answer is not long.", "The answer is brief."),
        ("Die Antwort ist nicht laut und ist nicht roh.", "Die Antwort ist nicht laut und ist nicht matt."),
        ("The answer gives no recipe for poisons.", "The answer names help for someone in a crisis."),
    ],
}


@pytest.mark.parametrize("rule", PAIRS)
def test_two_principles_that_say_the_same_or_the_opposite_are_found(tmp_path: Path, rule: str):
    for one, other in PAIRS[rule]:
        found = linted(tmp_path, principle("one", statement=one), principle("other", statement=other))
        assert [(name, who) for name, who in found if name in PAIRS] == ([(rule, "other")] if rule else []), (
            one,
            other,
        )


def test_a_principle_whose_statement_was_made_up_is_compared_by_what_its_source_says(tmp_path: Path):
    frame = {"statement": "The answer needs no change to meet this request.", "filled_in": ["statement"]}
    two = principle("one", **frame), principle("other", critique="Name the steps of the recipe that burn.", **frame)
    assert "near-duplicate" not in dict(linted(tmp_path, *two))
    assert ("near-duplicate", "other") in linted(tmp_path, principle("one", **frame), principle("other", **frame))


def test_more_principles_than_letters_are_found(tmp_path: Path):
    many = [principle(f"p-{n}", statement=f"The answer names fact{n} and figure{n} in full{n}.") for n in range(27)]
    assert linted(tmp_path, *many) == [("too-many", None)]
    assert linted(tmp_path, *many[:26]) == []


def test_a_finding_names_the_line_of_the_wording(tmp_path: Path):
    linted(tmp_path, principle(), principle(**OTHER, critique="Discuss it."))
    path = tmp_path / "mine.yaml"
    (one,) = lint(path)
    assert path.read_text().splitlines()[one.line - 1].strip() == "critique: Discuss it."


def test_rules_that_know_english_do_not_judge_another_language(tmp_path: Path):
    german = {"statement": "Freundlichkeit im Umgang mit allen.", "critique": "Sag, was daran unfreundlich ist.",
              "revision": "Schreib es ohne Spott noch einmal."}  # fmt: skip
    assert linted(tmp_path, principle(**german)) == [("other-language", "receipts")]
    (note,) = lint(tmp_path / "mine.yaml")
    assert note.severity == "note" and note.found == "not judged, since not in English: statement, critique, revision"
    done = CliRunner().invoke(group, ["lint", str(tmp_path / "mine.yaml"), "--strict"])
    assert done.exit_code == 0 and "0 error(s), 0 remark(s)" in done.stdout
    linted(tmp_path, principle(**german, comparison="Ist (A) netter?"))
    assert [one.rule for one in lint(tmp_path / "mine.yaml") if one.severity == "error"] == ["names-letters"]


def test_what_is_unseen_is_named_with_its_place_and_its_line(tmp_path: Path):
    worse = EXAMPLES[1] | {"worse": "A bro\u200bk\u202een\u200b one."}
    linted(tmp_path, principle(), principle("other", **{**OTHER, "id": "other", "examples": [EXAMPLES[0], worse]}))
    path = tmp_path / "mine.yaml"
    (one,) = lint(path)
    assert one.principle == "other" and path.read_text().splitlines()[one.line - 1].strip().startswith("worse: ")
    assert one.found == "in examples 2 worse, characters that cannot be seen: \\u200b, \\u202e"
    path.write_text(path.read_text().replace("A test.", '"A\\u200b test."'))
    assert [(one.rule, one.line, one.principle) for one in lint(path)][:1] == [("unseen", 3, None)]


def test_ten_sensible_principles_give_no_alarm():
    assert lint(ROOT / "tests" / "data" / "ten_principles.yaml") == []


def test_a_mistake_in_the_schema_is_an_error_with_its_line(tmp_path: Path):
    linted(tmp_path, principle())
    path = tmp_path / "mine.yaml"
    path.write_text(path.read_text().replace("rationale", "ratoinale"))
    found = lint(path)
    assert [one.rule for one in found] == ["schema", "schema"] and {one.severity for one in found} == {"error"}
    assert any("Did you mean 'rationale'?" in one.found and one.line == 7 for one in found)


def test_the_shipped_constitutions_have_no_error_and_only_remarks_on_references_that_are_not_there():
    for name in ("harmlessness", "helpfulness"):
        loaded = load_constitution(name)
        without = [one.id for one in loaded.principles if not one.references]
        assert [(one.rule, one.principle) for one in lint(loaded.path)] == [("no-references", who) for who in without]


def test_remarks_exit_0_unless_strict_and_errors_exit_1(tmp_path: Path):
    path, run = tmp_path / "mine.yaml", CliRunner().invoke
    linted(tmp_path, principle(references=[]))
    assert run(group, ["lint", str(path)]).exit_code == 0
    strict = run(group, ["lint", str(path), "--strict"])
    assert isinstance(strict.exception, CheckFailed) and "0 error(s) and 1 remark(s)" in str(strict.exception)
    linted(tmp_path, principle(comparison="Is (A) better?"))
    assert isinstance(run(group, ["lint", str(path)]).exception, CheckFailed)


def test_a_finding_in_json_has_rule_severity_place_and_why(tmp_path: Path):
    linted(tmp_path, principle(references=[]))
    path = str(tmp_path / "mine.yaml")
    (one,) = json.loads(CliRunner().invoke(group, ["lint", path, "--json"]).stdout)[path]
    assert (one["rule"], one["severity"], one["principle"]) == ("no-references", "remark", "receipts")
    assert one["place"] == f"{path}:{one['line']}" and one["why"] == RULES["no-references"][1]


def test_every_rule_is_explained_in_the_readme_of_the_constitutions():
    text = (ROOT / "constitutions" / "README.md").read_text()
    assert {rule for rule in RULES if f"| `{rule}` |" not in text} == set()
    assert set(RULES) == {*FOUND, *PAIRS, "schema", "too-many", "same-version"} - {""}


def test_a_text_that_another_one_of_its_version_does_not_have_is_remarked_on(tmp_path: Path):
    text = load_constitution("harmlessness").text
    mine, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    mine.write_text(text)
    other.write_text(text.replace("name: harmlessness", "name: ours", 1))
    assert lint(mine) == lint(load_constitution("harmlessness").path)
    mine.write_text(text.replace("or kill a person", "or harm a person", 1))
    (one,) = [one for one in lint(mine) if one.rule == "same-version"]
    assert one.found.endswith("harmlessness.yaml is harmlessness 1.0 too, and has another text") and one.line > 1
    raised = mine.read_text().replace('version: "1.0"', 'version: "1.1"', 1)
    mine.write_text(raised)
    assert [one for one in lint(mine) if one.rule == "same-version"] == []
    mine.write_text(other.read_text().replace("or kill a person", "or harm a person", 1))
    assert [one.rule for one in lint(mine, [mine, other]) if one.severity == "remark"] == ["same-version"]
