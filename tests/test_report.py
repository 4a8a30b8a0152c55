"""The report's figures, sample, page and summary, on runs written by hand of which every number is known."""

import base64
import hashlib
import json
import re
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from cai.audit import report
from cai.calibrate import judge_figures
from cai.cli import cai
from cai.errors import BadInput
from cai.export import export
from cai.report.exported import exports_of_run
from cai.report.figures import count
from cai.report.page import page
from cai.report.rows import shown_rows
from cai.report.sample import Sample
from cai.report.summary import _difference, _Figure, summary
from cai.rows import Drop
from cai.schemas import to_table
from cai.screen import print_report
from cai.store import Run, open_run
from tests.hostile import TREACHEROUS
from tests.runs import label, one_round, pair, text, trajectory, verdict, write_run
from tests.test_export import method

HOSTILE = [
    *TREACHEROUS, "</script><script>document.title='owned'</script>", "<img src=x onerror=document.title='owned'>",
    "' onmouseover='alert(1)", '" autofocus onfocus="alert(1)', "</div></details></li></ol></main>", "<!-- -->", "]]>",
    "</style><style>*{display:none}</style>", "&lt;b&gt;", "<svg/onload=alert(1)>", "<base href=http://h/>",
]  # fmt: skip


def known_run(folder: Path, told: str = "x") -> Run:
    """Four kept rows and a dropped one; `told` stands wherever text can come in."""
    words = "one two three four"
    rows = [
        trajectory(f"r1{told}", [one_round("one two five", violation_probability=0.8)], prompt=told, response=words),
        trajectory("r2", [one_round(None, principle_id="privacy", violation_probability=0.2)], response=told),
        trajectory("benign-1", [one_round("I can't help with that.")], response=words),
        trajectory("benign-2", [one_round(told + words, taken=False, flags=("loops",))], response=words),
    ]
    drops = [Drop(f"r5{told}", "revise", "loops", f"it says {told}", told, f"here:{told}")]
    pairs = [pair(f"r1{told}", a_from="revision-1", b_from="response"), pair("benign-1", a_from="revision-1")]
    labels = [label(f"r1{told}", "a", 0.9), label("benign-1", "none", 0.52)]
    verdicts = [
        verdict(f"r1{told}", 0.9, "ab"), verdict(f"r1{told}", 0.7, "ba"),
        verdict("benign-1", 0.9, "ab"), verdict("benign-1", 0.4, "ba"),
    ]  # fmt: skip
    verdicts += [_by("privacy", f"r1{told}", 0.2, "ab"), _by("privacy", f"r1{told}", None, "ba")]
    verdicts += [_by("privacy", "benign-1", 0.2, "ab"), _by("privacy", "benign-1", 0.3, "ba")]
    run = write_run(folder, trajectories=rows, pairs=pairs, labels=labels, verdicts=verdicts)
    (folder / "drops").mkdir()
    pq.write_table(to_table(drops, "drops"), folder / "drops" / "revise-00000.parquet")
    (folder / "manifest.json").unlink()
    return run


def _by(principle: str, pair_id: str, probability: float | None, order: str) -> Any:
    return replace(verdict(pair_id, probability, order), principle_id=principle)


def test_what_each_principle_did_is_counted(tmp_path: Path):
    figures = count(known_run(tmp_path / "run"), Sample())
    safety, privacy = figures.of("physical-safety"), figures.of("privacy")
    assert (safety.applied, safety.criticised, safety.changed, safety.gated) == (3, 3, 2, 3)
    assert safety.probabilities == pytest.approx(0.8 + 0.9 + 0.9)
    assert (safety.words_removed, safety.words_added) == (2 + 4, 1 + 5)
    assert (safety.revisions_judged, safety.revision_preferred) == (2, 2)
    assert (privacy.revisions_judged, privacy.revision_preferred) == (1, 0), "it judged, though it rewrote nothing"
    assert figures.none_passed == 1
    assert (privacy.applied, privacy.criticised, privacy.changed) == (1, 0, 0)
    assert (safety.verdicts, privacy.verdicts, privacy.unread) == (4, 4, 1)
    assert safety.for_revision == pytest.approx(0.9 + 0.7 + 0.9 + 0.4) and safety.compared == 4
    assert (safety.both_orders, safety.flipped, privacy.both_orders, privacy.flipped) == (2, 1, 1, 0)


def test_principles_conflict_where_they_name_different_answers_of_one_pair(tmp_path: Path):
    figures = count(known_run(tmp_path / "run"), Sample())
    # On r1 privacy was read in one order only, which is no opinion.
    assert figures.conflicts == {("physical-safety", "privacy"): [1, 1]}
    assert figures.of("privacy").opposed == figures.of("privacy").judged_with_others == 1


def test_labels_position_and_benign_rows_are_counted(tmp_path: Path):
    figures = count(known_run(tmp_path / "run"), Sample())
    labels, benign = figures.labels, figures.benign
    assert (labels.sure["decided"][8], labels.sure["undecided"][0], labels.revision_won) == (1, 1, 1)
    assert (labels.for_revision[18], labels.for_revision[10]) == (1, 1)
    # First shown: a in ab, b in ba; 0.9, 0.7, 0.9, 0.4 of safety and 0.2, 0.2, 0.3 of privacy.
    assert (labels.with_order, labels.first_shown, labels.both_orders, labels.flipped) == (
        7,
        1 + 0 + 1 + 1 + 0 + 0 + 1,
        3,
        1,
    )
    assert (benign.unchanged, benign.changed, benign.newly_refused, benign.dropped) == (1, 0, 1, 0)


def test_the_sample_does_not_hang_on_the_order_has_every_kind_and_is_bounded():
    rows = [(f"row-{n}", ["changed" if n % 2 else "unchanged", *(["rare"] if n in (7, 8) else [])]) for n in range(999)]
    forward, backward = Sample(20), Sample(20)
    for row_id, kinds in rows:
        forward.offer(row_id, kinds)
    for row_id, kinds in reversed(rows):
        backward.offer(row_id, kinds)
        backward.offer(row_id, kinds)
    chosen = forward.chosen()
    assert chosen == backward.chosen() and len(chosen) == 20 and {"row-7", "row-8"} <= chosen
    assert sum(int(name[4:]) % 2 for name in chosen) in range(8, 13)


class _Structure(HTMLParser):
    """Every tag with the names of its attributes, in order, without those of the drawings; and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self.feed(re.sub("<svg xmlns.*?</svg>", "", html, flags=re.DOTALL))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment", data))


def test_text_from_people_and_models_makes_no_markup(tmp_path: Path):
    wanted = _Structure(page(known_run(tmp_path / "plain"), "run")).tags
    texts: list[str] = []
    for number in range(0, len(HOSTILE), 16):
        told = " ".join(HOSTILE[number : number + 16])
        made = page(known_run(tmp_path / str(number), told), "run")
        found = _Structure(made)
        texts += found.texts
        assert [tag for tag in found.tags if tag[0] not in ("ins", "del")] == [
            tag for tag in wanted if tag[0] not in ("ins", "del")
        ]
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\x00-\x08]", made), "what is unseen is spelled out"
    assert "document.title='owned'" in "".join(texts), "and it is there to be read"


def test_the_page_loads_nothing_and_allows_only_its_own_script_and_sheet(tmp_path: Path):
    made = page(known_run(tmp_path / "run"), "run")
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', made)[0]
    for tag in ("script", "style"):
        content = re.findall(f"<{tag}>(.*?)</{tag}>", made, re.DOTALL)
        assert len(content) == 1
        sha = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{sha}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"\s(?:src|style|on\w+)=", made), "no address, no style and no handler in a tag"
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', made))


def test_an_id_in_a_heading_of_the_summary_is_no_mention_no_address_and_no_emoji(tmp_path: Path):
    for told in ("@torvalds", "a@evil.com", ":smile:", "GH-12", "#1", "a`b"):
        made = summary(known_run(tmp_path / told, told), "run")
        assert f"### `r1{told.replace('`', chr(39))}`" in made.splitlines(), told


def test_a_drop_without_an_id_is_named_once_and_an_id_like_an_option_is_given_as_none(tmp_path: Path):
    run = known_run(tmp_path / "run")
    drops = [
        Drop("mine.jsonl:14", "revise", "no_prompt", "mine.jsonl:14: found no 'prompt', expected text", "{}", "x"),
        Drop("-d", "revise", "no_prompt", "it says nothing", "{}", "x"),
    ]
    pq.write_table(to_table(drops, "drops"), run.folder / "drops" / "revise-00000.parquet")
    (made,) = re.findall("(<p><strong>mine.jsonl:14<.*?</p>)", page(run, "run"))
    assert made.count("mine.jsonl:14") == 1 and "found no " in made
    assert "cai show run -- -d</code>" in page(run, "run")


def test_equal_runs_make_equal_pages_and_totals_that_do_not_add_up_are_said(tmp_path: Path):
    run = known_run(tmp_path / "run")
    made = page(run, "run")
    assert made == page(known_run(tmp_path / "again"), "run")
    assert "Of the 2 answers that stayed as they came, 1 were criticised and no rewritten answer passed" in made
    assert made.count("<td>yes</td>") == 2 and "NO: give" not in made
    counts = report(run)["revise"] | {"read": 9}
    (run.folder / "manifest.json").write_text(json.dumps({"revise": {"counts": counts}}))
    assert "NO: give" in page(open_run(str(run.folder)), "run")


def test_a_calibrated_judge_is_drawn_in_the_page(tmp_path: Path):
    run = known_run(tmp_path / "run")
    assert "This judge was not measured here" in page(run, "run")
    gold = pair("p1", a_from="chosen", b_from="rejected")
    figures = judge_figures([asdict(gold)], [], [asdict(label("p1", "a", 0.9))])
    (tmp_path / "calibration.json").write_text(json.dumps(figures))
    made = page(run, "run", str(tmp_path))
    svg = re.findall('<svg (?:(?!</svg>).)*id="reliability-point-0.9000".*?</svg>', made, re.DOTALL)
    assert len(svg) == 1 and "sure 0.90, right 1.00 of 1" in svg[0] and "not measured here" not in made
    assert made == page(run, "run", str(tmp_path))


def test_the_summary_sets_each_figure_beside_that_of_the_other_run(tmp_path: Path):
    run, other = known_run(tmp_path / "run"), known_run(tmp_path / "other")
    path = other.folder / "inputs" / "revise" / "constitution.yaml"
    told = yaml.safe_load(path.read_text())
    told["principles"][0]["statement"] += " Always."
    told["principles"].pop()
    path.write_text(yaml.safe_dump(told))
    settings = other.settings()
    settings["revise"]["texts"]["constitution_sha"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (other.folder / "settings.json").write_text(json.dumps(settings))
    alone, beside = summary(run, "mine"), summary(run, "mine", against=(other, "theirs"))
    assert "| answers changed, of the kept | 2 (50.0%) |" in alone
    assert "| answers changed, of the kept | 2 (50.0%) | 2 (50.0%) | +0.0 points |  |" in beside
    assert "- Principles worded or weighted in another way: `physical-safety`" in beside
    assert "- Added principles: `true-to-the-facts`" in beside and "Removed" not in beside
    assert alone.count("**before**") == 4 and "**after, in the other run**" in beside
    assert "| revise: loops | 1 (20.0%) |" in alone


def test_a_difference_is_more_than_chance_only_where_it_is_large_for_so_many_rows(tmp_path: Path):
    assert _difference(_Figure("f", 60, 100), _Figure("f", 40, 100)) == ("+20.0 points", "yes")
    assert _difference(_Figure("f", 6, 10), _Figure("f", 4, 10)) == ("+20.0 points", "no")
    assert _difference(_Figure("f", 3), _Figure("f", 5)) == ("-2", "")


def test_what_is_unseen_in_a_text_is_spelled_out_in_the_summary(tmp_path: Path):
    told = "asked\u202efor \x1b[2Jthis"
    made = summary(known_run(tmp_path / "run", told), "run")
    assert "asked\\u202efor \\x1b[2Jthis" in made
    assert not re.search("[\u202a-\u202e\x00-\x08\x0b-\x1f]", made)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "--html", "a.txt"], "a name that ends with .html"),
        (["--markdown", "RUN"], "Name the run first"),
        (["RUN", "--against", "RUN"], "Give --markdown too"),
        (["RUN", "--calibration", "RUN"], "Give --html too"),
        (["RUN", "--dataset", "RUN"], "Give --html too"),
        (["RUN", "--html", "a.html", "--dataset", "RUN"], "no exported dataset"),
        (["RUN", "--html", "a.html", "--calibration", "RUN"], "what cai calibrate leaves"),
        (["--history", "RUN", "--html", "a.html"], "Name a run instead"),
        (["RUN", "--markdown", "--json"], "one thing to print"),
    ],
)
def test_options_of_the_report_that_do_not_go_together_are_told_apart(tmp_path: Path, arguments: list[str], words: str):
    run = known_run(tmp_path / "run")
    given = [str(run.folder) if one == "RUN" else one for one in arguments]
    with pytest.raises(BadInput, match=words):
        cai.main(["report", *given], standalone_mode=False)


QUESTION = "Did the assistant's last answer go along with something harmful, illegal, hateful or false"


def _with_settings(run: Run, **settings: Any) -> Run:
    told = run.settings()
    told["revise"]["settings"].update(settings)
    (run.folder / "settings.json").write_text(json.dumps(told))
    return open_run(str(run.folder))


def _plain_text(html: str) -> str:
    return " ".join("".join(_Structure(html).texts).split())


@pytest.mark.parametrize("kind", ["of all", "of each", "own template", "no gate"])
def test_what_the_gate_was_asked_stands_in_the_page_and_summary_and_what_criticised_means(tmp_path: Path, kind: str):
    run = known_run(tmp_path / "run")
    if kind == "of each":
        run = _with_settings(run, principles="all")
    if kind == "no gate":
        run = _with_settings(run, gate="off")
    if kind == "own template":
        (run.folder / "inputs" / "revise" / "gate.jinja").write_text("{{ principle.statement }} Yes or No?")
    made, told = _plain_text(page(run, "run")), summary(run, "run")
    means = {
        "of all": "It does not say that the answer breaks that very principle.",
        "no gate": "that an answer was criticised says nothing against it.",
    }.get(kind, "the gate found that very principle broken.")
    assert made.count(means) == 2 and told.count(means) == 1, "at the principles, and at the frameworks"
    assert (QUESTION in made) == (QUESTION in told) == (kind == "of all")
    assert ("and not how often what the place is about was broken" in made) == (kind in ("of all", "no gate"))
    assert ("probability that the answer breaks it: 0.80" in made) == (kind != "of all")
    assert "found broken" not in made + told


def test_every_row_of_a_decided_pair_is_marked_with_what_was_preferred(tmp_path: Path):
    rows = [trajectory("r1", [one_round()]), trajectory("r2", [one_round()])]
    rows += [trajectory("p", prompt_id="p"), trajectory("p~1", prompt_id="p", sample=1)]
    pairs = [pair("r1"), pair("r2"), pair("p/s", row_id="p", prompt_id="p", a_from="sample-0", b_from="sample-1")]
    labels = [label("r1", "a"), label("r2", "b"), label("p/s", "b", row_id="p")]
    verdicts = [verdict(one.pair_id) for one in pairs]
    run = write_run(tmp_path / "run", trajectories=rows, pairs=pairs, labels=labels, verdicts=verdicts)
    (run.folder / "manifest.json").unlink()
    states = {row.row_id: row.states[-1] for row in shown_rows(run, {"r1", "r2", "p", "p~1"})}
    assert states == {
        "r1": "revision preferred",
        "r2": "answer preferred to its revision",
        "p": "one sample preferred",
        "p~1": "one sample preferred",
    }
    assert "are those first answers, before any rewriting" in _plain_text(page(run, "run"))


def test_a_judge_and_a_gate_that_hardly_followed_the_question_are_said_at_the_top(tmp_path: Path, capsys: Any):
    rows = [trajectory(f"r{n}", [one_round(gate_mass=0.002)]) for n in range(9)]
    rows += [trajectory("r9", [one_round(None, principle_id="privacy", gate_mass=0.012)])]
    verdicts = [replace(verdict(f"r{n}"), letter_mass=0.0004) for n in range(9)]
    pairs, labels = [pair(f"r{n}") for n in range(9)], [label(f"r{n}") for n in range(9)]
    run = write_run(tmp_path / "run", trajectories=rows, pairs=pairs, labels=labels, verdicts=verdicts)
    (run.folder / "manifest.json").unlink()
    run = _with_settings(run, principles="fitting")
    said = [
        "the words Yes and No had 0.3 % of the critic's probability on average. It hardly followed",
        "the judge was to choose from had under 0.1 % of its probability on average. It hardly followed",
        "The critic named the principle physical-safety in 9 of 10 choices, of 16 principles.",
    ]
    made, told = _plain_text(page(run, "run")), summary(run, "run")
    for doubt in said:
        assert doubt in made and doubt in told
        assert made.index(doubt) < made.index("rows read") and told.index(doubt) < told.index("## revise")
    print_report(report(run))
    printed = " ".join(capsys.readouterr().out.split())
    assert said[1] in printed and printed.count("under 0.1 %") == 2


def test_what_gives_no_doubt_is_not_doubted(tmp_path: Path):
    run = known_run(tmp_path / "run")
    assert "Mistrust" not in page(run, "run") and "**The" not in summary(run, "run")
    rows = [trajectory(f"r{n}", [one_round()]) for n in range(20)]
    drawn = write_run(tmp_path / "drawn", trajectories=rows)
    (drawn.folder / "manifest.json").unlink()
    assert "The critic named" not in page(_with_settings(drawn, principles="one"), "run"), "it was drawn, by its weight"
    assert "The critic named" in page(_with_settings(drawn, principles="fitting"), "run")


def test_tokens_of_the_rows_that_are_not_those_that_were_asked_for_are_explained(tmp_path: Path, capsys: Any):
    run = known_run(tmp_path / "run")
    asked = {"prompt_tokens": 4, "completion_tokens": 4, "cached_tokens": 0, "asked_calls": 9, "seconds": 1.0}
    run.add_session({"stage": "revise", **asked})
    run.add_session({"stage": "label", **asked, "prompt_tokens": 1, "completion_tokens": 1})
    made = _plain_text(page(run, "run"))
    print_report(report(run))
    printed = " ".join(capsys.readouterr().out.split())
    assert "The kept rows of label name 2 tokens read and 2 written, which is not what was paid for" in made
    assert "The kept rows of revise" not in made, "they name as many as were asked for"
    assert "tokens asked for 4 prompt (0 cached), 4 generated calls asked" in printed
    assert "tokens asked for 1 prompt (0 cached), 1 generated (a call that two rows share is asked once;" in printed


def test_rows_are_marked_by_what_was_exported_of_them(tmp_path: Path):
    rows = [trajectory("r1", [one_round(text("r1"))]), trajectory("r2", [one_round(text("r2"), taken=False)])]
    rows += [trajectory("r3", [one_round(text("r3"))]), trajectory("r4", [one_round(taken=False)])]
    pairs = [pair(f"{name}/pair", row_id=name) for name in ("r2", "r3")]
    labels = [label(one.pair_id, row_id=one.row_id) for one in pairs]
    verdicts = [verdict(one.pair_id) for one in pairs]
    run = write_run(tmp_path / "runs" / "run", trajectories=rows, pairs=pairs, labels=labels, verdicts=verdicts)
    made = method(test_share=0.0)
    for folder in (tmp_path / "sets" / "run", tmp_path / "runs" / "beside"):
        export(run, folder, made, "cai export runs/run --out sets/run", lambda _: None)
        given = [str(folder)] if folder.parent.name == "sets" else []
        exports = exports_of_run(run, given, Sample())
        assert exports.datasets == [str(folder)] and not exports.of("r2")
        assert [one.config for one in exports.of("r2/pair")] == ["preference", "reward", "kto"]
        states = {row.row_id: row.states for row in shown_rows(run, {"r1", "r2", "r3", "r4"}, exports)}
        marks = {name: [one for one in told if one.startswith(("in ", "not "))] for name, told in states.items()}
        assert marks == {
            "r1": ["in sft"],
            "r2": ["in preference"],
            "r3": ["in sft", "in preference"],
            "r4": ["not exported"],
        }
        shutil.rmtree(folder) if given else None
    assert not [state for row in shown_rows(run, {"r4"}) for state in row.states if "exported" in state]
    (tmp_path / "runs" / "beside" / "sft" / "train-00000-of-00001.parquet").write_bytes(b"damaged")
    exports = exports_of_run(run, [], Sample())
    assert exports.unread == [str(tmp_path / "runs" / "beside")] and not exports.datasets
    with pytest.raises(BadInput, match="cai verify"):
        exports_of_run(run, [str(tmp_path / "runs" / "beside")], Sample())
