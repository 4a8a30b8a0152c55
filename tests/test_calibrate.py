import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai.calibrate import agreement, judge_figures, temperature_figures
from cai.screen_judge import print_calibration
from cai.seal import Json
from cai.temperature import Evidence, GoldEvidence

Tables = tuple[list[Json], list[Json], list[Json]]


def pair(name: str, chosen: str = "a", a: str = "one", b: str = "three") -> Json:
    sides = ("chosen", "rejected") if chosen == "a" else ("rejected", "chosen")
    return {"pair_id": name, "a": a, "b": b, "a_from": sides[0], "b_from": sides[1]}


def verdict(name: str, order: str, probability: float | None, principle: str = "honesty", mass: Any = 0.9) -> Json:
    return {
        "pair_id": name, "principle_id": principle, "order": order, "probability_a": probability, "letter_mass": mass
    }  # fmt: skip


def label(name: str, probability: float | None, judged: str | None = None, reason: str = "") -> Json:
    decided = judged or ("none" if probability is None else "a" if probability > 0.5 else "b")
    return {"pair_id": name, "probability_a": probability, "judged": decided, "chosen": decided, "reason": reason}


def judged(say: Callable[[str], float], n: int = 20) -> Tables:
    """Tables of a judge that gives an answer this probability, by what people said of it (chosen or rejected)."""
    pairs = [pair(f"p{number}", "a" if number % 3 else "b") for number in range(n)]
    told = {one["pair_id"]: say(one["a_from"]) for one in pairs}
    verdicts = [verdict(name, order, told[name]) for name in told for order in ("ab", "ba")]
    return pairs, verdicts, [label(name, told[name]) for name in told]


def test_a_perfect_and_an_adversarial_judge_get_1_and_0():
    perfect = judge_figures(*judged(lambda side: 1.0 if side == "chosen" else 0.0))
    adversarial = judge_figures(*judged(lambda side: 0.0 if side == "chosen" else 1.0))
    assert [perfect[name]["value"] for name in ("accuracy", "accuracy_readable")] == [1, 1]
    assert [adversarial[name]["value"] for name in ("accuracy", "accuracy_readable")] == [0, 0]
    assert (perfect["brier"], perfect["calibration"]["ece"]) == (0, 0)
    assert (adversarial["brier"], adversarial["calibration"]["ece"]) == (1, 1)
    assert perfect["by_principle"]["honesty"]["accuracy"]["value"] == 1
    assert adversarial["by_principle"]["honesty"]["accuracy"]["value"] == 0
    assert perfect["accuracy"]["low"] == pytest.approx(0.8389, abs=1e-4) and perfect["accuracy"]["high"] == 1


def test_a_judge_that_always_names_the_first_flips_always_and_knows_nothing():
    pairs = [pair(f"p{number}", "ab"[number % 2]) for number in range(10)]
    verdicts = [verdict(one["pair_id"], order, p) for one in pairs for order, p in (("ab", 0.75), ("ba", 0.25))]
    figures = judge_figures(pairs, verdicts, [label(one["pair_id"], 0.5, "none", "order_decides") for one in pairs])
    assert (figures["flips"], figures["first_position"]) == (1, 1)
    assert (figures["n"], figures["decided"], figures["undecided"]) == (10, 0, {"order_decides": 10})
    assert figures["accuracy"] == {"n": 0, "value": None, "low": None, "high": None}
    assert figures["accuracy_readable"]["value"] == figures["by_principle"]["honesty"]["accuracy"]["value"] == 0.5
    assert (figures["brier"], figures["calibration"]["ece"]) == (0.25, 0)
    assert figures["longer"]["judge"]["n"] == 0


def test_an_order_that_names_neither_answer_does_not_flip():
    verdicts = [verdict("p", "ab", 0.75), verdict("p", "ba", 0.5), verdict("q", "ab", 0.5), verdict("q", "ba", 0.5)]
    figures = judge_figures([pair("p"), pair("q")], verdicts, [label("p", 0.625), label("q", 0.5, "none", "tie")])
    assert (figures["flips"], figures["first_position"]) == (0, 0.625)


def test_pointwise_verdicts_have_no_order_to_flip_or_to_lean_to():
    figures = judge_figures([pair("p")], [verdict("p", "none", 0.8)], [label("p", 0.8)])
    assert figures["flips"] is figures["first_position"] is figures["by_principle"]["honesty"]["flips"] is None
    assert figures["by_principle"]["honesty"]["accuracy"]["value"] == 1


def test_what_could_not_be_read_is_counted_and_never_scored():
    pairs = [pair("p"), pair("q"), pair("r")]
    verdicts = [
        verdict("p", "ab", 0.9, mass=1.0),
        verdict("p", "ba", 0.8, mass=None),
        verdict("q", "ab", 0.1, mass=0.5),
        verdict("q", "ba", None, mass=0.0),
        verdict("r", "ab", None, "privacy", mass=None),
        verdict("r", "ba", None, "privacy", mass=None),
    ]
    labels = [
        label("p", 0.85),
        label("q", None, reason="too_few_readable"),
        label("r", None, reason="too_few_readable"),
    ]
    figures = judge_figures(pairs, verdicts, labels)
    assert (figures["decided"], figures["undecided"]) == (1, {"too_few_readable": 2})
    assert (figures["accuracy"]["n"], figures["accuracy_readable"]["n"]) == (1, 1)
    assert figures["verdicts"] == {"n": 6, "unread": 0.5, "mean_letter_mass": 0.5}
    # The half-read pair q counts neither for the principle's accuracy nor for its flips.
    assert figures["by_principle"]["honesty"]["accuracy"]["n"] == 1
    assert (figures["by_principle"]["honesty"]["flips"], figures["by_principle"]["honesty"]["unread"]) == (0, 0.25)
    assert figures["by_principle"]["privacy"]["accuracy"]["value"] is None
    assert figures["first_position"] == pytest.approx(1 / 3, abs=1e-4)


def test_a_principle_is_measured_by_the_mean_of_both_orders():
    pairs = [pair("p"), pair("q")]
    verdicts = [verdict("p", "ab", 0.9), verdict("p", "ba", 0.3), verdict("q", "ab", 0.6), verdict("q", "ba", 0.2)]
    figures = judge_figures(pairs, verdicts, [label("p", 0.6), label("q", 0.4)])
    assert figures["by_principle"]["honesty"] == {
        "accuracy": {"n": 2, "value": 0.5, "low": 0.0945, "high": 0.9055}, "flips": 1, "unread": 0
    }  # fmt: skip


def test_the_longer_answer_is_counted_beside_gold_and_equal_lengths_are_left_out():
    pairs = [
        pair("p", "a", a="long text", b="text"),
        pair("q", "a", a="text", b="long text"),
        pair("r", "a", a="text", b="same"),
        pair("s", "a", a="text", b="long text"),
    ]
    labels = [label("p", 0.9), label("q", 0.1), label("r", 0.9), label("s", 0.5, "none", "tie")]
    longer = judge_figures(pairs, [], labels)["longer"]
    assert (longer["judge"]["n"], longer["judge"]["value"]) == (2, 1)
    assert (longer["gold"]["n"], longer["gold"]["value"]) == (2, 0.5)


def test_no_gold_at_all_gives_no_figures_and_a_pair_that_is_not_gold_is_refused():
    figures = judge_figures([], [], [])
    assert (figures["n"], figures["brier"], figures["calibration"]["ece"], figures["flips"]) == (0, None, None, None)
    assert figures["verdicts"] == {"n": 0, "unread": None, "mean_letter_mass": None}
    with pytest.raises(ValueError, match="no gold pair"):
        judge_figures([pair("p") | {"a_from": "response"}], [], [])


# Sixty-fourths, since one minus them is exact, as it is of all that `cai label` writes.
probability = st.none() | st.integers(0, 64).map(lambda number: number / 64)


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    pairs: list[Json] = []
    verdicts: list[Json] = []
    labels: list[Json] = []
    for number in range(draw(st.integers(0, 8))):
        name = f"p{number}"
        pairs.append(
            pair(name, draw(st.sampled_from("ab")), "x" * draw(st.integers(1, 3)), "y" * draw(st.integers(1, 3)))
        )
        orders = draw(st.sampled_from([("ab", "ba"), ("none",)]))
        for principle in draw(st.sets(st.sampled_from(["honesty", "privacy"]), min_size=1)):
            mass = draw(st.sampled_from([None, 0.5, 1.0]))
            verdicts += [verdict(name, order, draw(probability), principle, mass) for order in orders]
        soft = draw(probability)
        labels.append(label(name, soft, draw(st.sampled_from([None, "none"])), "tie"))
    return pairs, verdicts, labels


def swapped(given_tables: Tables) -> Tables:
    sides = {"a": "b", "b": "a", "none": "none", "ab": "ba", "ba": "ab"}

    def other(probability_a: float | None) -> float | None:
        return None if probability_a is None else 1 - probability_a

    pairs, verdicts, labels = given_tables
    return (
        [{**one, "a": one["b"], "b": one["a"], "a_from": one["b_from"], "b_from": one["a_from"]} for one in pairs],
        [{**one, "order": sides[one["order"]], "probability_a": other(one["probability_a"])} for one in verdicts],
        [{**one, "judged": sides[one["judged"]], "probability_a": other(one["probability_a"])} for one in labels],
    )


@settings(max_examples=200)
@given(tables())
def test_no_figure_moves_when_the_answers_of_every_pair_change_sides(given_tables: Tables):
    assert judge_figures(*swapped(given_tables)) == judge_figures(*given_tables)


def test_the_figures_are_json_and_are_printed_with_their_names_as_they_are(capsys: pytest.CaptureFixture[str]):
    pairs, verdicts, labels = judged(lambda side: 0.8 if side == "chosen" else 0.3)
    for one in verdicts:
        one["principle_id"] = "a-[bold]principle"
    figures = judge_figures(pairs, verdicts, [*labels[1:], label("p0", 0.5, "none", "tie")])
    assert json.loads(json.dumps(figures)) == figures
    print_calibration(figures, "data/[red]run")
    printed = capsys.readouterr().out
    assert "data/[red]run" in printed and "a-[bold]principle" in printed
    assert "19 (95 %); not decided: tie 1" in printed and "100.0 % (83-100 %)" in printed
    print_calibration(judge_figures([], [], []), "nothing")


def test_the_temperature_is_part_of_the_figures_when_there_are_pairs_enough(capsys: pytest.CaptureFixture[str]):
    def sure(evidence: Evidence, temperature: float) -> float:
        return 0.5 + 0.4 / temperature * (1 if evidence[0][1][0] > 0 else -1) if temperature >= 1 else 0.5

    gold = [GoldEvidence(f"p{number}", [(1.0, [1.0])], number % 10 < 7) for number in range(1000)]
    fit = temperature_figures(gold, sure)
    assert fit is not None and temperature_figures(gold[:19], sure) is None
    # 0.9 is claimed and 0.7 is true: half the distance from 1/2, so a temperature of 2.
    assert fit["temperature"] == pytest.approx(2, abs=0.02)
    assert fit["ece_before"] == 0.2 and fit["ece_cross_fitted"] < 0.06
    assert fit["log_loss_after"] < fit["log_loss_cross_fitted"] < fit["log_loss_before"]
    print_calibration(judge_figures([], [], []) | {"temperature": fit}, "here")
    assert f"{fit['temperature']:g}" in capsys.readouterr().out


def test_agreement_with_a_person():
    rated = [("a", "a"), ("b", "a"), ("none", "a"), ("b", "b"), ("none", "none")]
    found = agreement(rated)
    assert (found["n"], found["same"]["value"], found["same_side"]["n"]) == (5, 0.6, 3)
    assert found["same_side"]["value"] == 0.6667
    # By chance 1/5 * 3/5 + 2/5 * 1/5 + 2/5 * 1/5 = 7/25 would be the same.
    assert found["kappa"] == pytest.approx((15 / 25 - 7 / 25) / (18 / 25), abs=1e-4)
    assert found["table"] == {"a/a": 1, "b/a": 1, "b/b": 1, "none/a": 1, "none/none": 1}


def test_agreement_says_why_there_is_no_kappa():
    assert (agreement([])["kappa"], agreement([])["no_kappa"]) == (None, "nothing was rated twice")
    always = agreement([("a", "a")] * 3)
    assert (always["same"]["value"], always["kappa"], always["no_kappa"]) == (1, None, "both always chose the same")
    assert agreement([("a", "a"), ("b", "b")])["no_kappa"] is None
