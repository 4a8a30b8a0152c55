import math
import random
from typing import Any

import pytest

from cai.ids import digest
from cai.scores import expected_calibration_error, log_loss, reliability_bins
from cai.temperature import Evidence, Fit, GoldEvidence, cross_fitted, fit_temperature, gather


def sigmoid(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds))


def mean(evidence: Evidence, temperature: float) -> float:
    """The weighted mean over principles and orders."""
    means = [(weight, sum(sigmoid(one / temperature) for one in odds) / len(odds)) for weight, odds in evidence]
    return sum(weight * one for weight, one in means) / sum(weight for weight, _ in means)


def simulated(n: int, too_sure: float, seed: int = 0) -> list[GoldEvidence]:
    """A judge whose log-odds are `too_sure` times what they should be; gold follows what they should be."""
    chance = random.Random(seed)
    found: list[GoldEvidence] = []
    for number in range(n):
        log_odds = chance.gauss(0, 2)
        a_is_better = chance.random() < sigmoid(log_odds)
        found.append(GoldEvidence(f"p{number}", [(1.0, [too_sure * log_odds])], a_is_better))
    return found


def swapped(gold: list[GoldEvidence]) -> list[GoldEvidence]:
    def other(evidence: Evidence) -> Evidence:
        return [(weight, [-log_odds for log_odds in odds]) for weight, odds in evidence]

    return [GoldEvidence(one.pair_id, other(one.evidence), not one.a_is_better) for one in gold]


@pytest.mark.parametrize("too_sure", [0.25, 1.0, 3.0])
def test_a_known_over_confidence_is_recovered(too_sure: float):
    fit = fit_temperature(simulated(3000, too_sure), mean)
    assert fit.temperature == pytest.approx(too_sure, rel=0.1)
    assert not fit.at_edge
    assert fit.log_loss_after <= fit.log_loss_before
    assert fit_temperature(swapped(simulated(3000, too_sure)), mean) == fit


def test_several_principles_and_orders_are_added_up_by_what_is_passed_in():
    chance = random.Random(1)
    gold: list[GoldEvidence] = []
    for number in range(1500):
        odds = [(weight, [chance.gauss(0, 2), chance.gauss(0, 2)]) for weight in (1.0, 3.0)]
        too_sure = [(weight, [2.5 * one for one in orders]) for weight, orders in odds]
        gold.append(GoldEvidence(f"p{number}", too_sure, chance.random() < mean(odds, 1)))
    assert fit_temperature(gold, mean).temperature == pytest.approx(2.5, rel=0.2)


def test_the_fit_is_the_lowest_point_of_a_fine_grid():
    gold = simulated(200, 2.0)
    fit = fit_temperature(gold, mean)
    temperatures = [0.05 * 400 ** (step / 2000) for step in range(2001)]
    losses = [log_loss([(mean(one.evidence, t), one.a_is_better) for one in gold]) for t in temperatures]
    assert fit.log_loss_after == pytest.approx(min(losses), abs=1e-6)
    assert fit.temperature == float(f"{fit.temperature:.3g}")


def test_of_two_valleys_the_deeper_one_is_found():
    def two(_: Evidence, temperature: float) -> float:
        deep, shallow = (math.exp(-4 * math.log(temperature / centre) ** 2) for centre in (0.2, 15))
        return 0.5 + 0.4 * deep + 0.2 * shallow

    assert fit_temperature([GoldEvidence("p", [], True)], two).temperature == pytest.approx(0.2, rel=0.01)


def test_judges_for_whom_no_temperature_is_right_end_at_the_bounds():
    odds: list[Evidence] = [[(1.0, [1.0])], [(1.0, [-1.0])]]
    always_right = [GoldEvidence(f"p{n}", odds[n % 2], n % 2 == 0) for n in range(20)]
    always_wrong = [GoldEvidence(f"p{n}", odds[n % 2], n % 2 == 1) for n in range(20)]
    assert fit_temperature(always_right, mean).temperature == 0.05
    assert fit_temperature(always_wrong, mean).temperature == 20
    assert fit_temperature(always_right, mean).at_edge and fit_temperature(always_wrong, mean).at_edge


def test_a_judge_without_an_opinion_is_left_alone():
    silent = [GoldEvidence(f"p{n}", [(1.0, [0.0])], n % 2 == 0) for n in range(20)]
    assert fit_temperature(silent, mean) == Fit(1.0, math.log(2), math.log(2), False)
    with pytest.raises(ValueError, match="no pairs"):
        fit_temperature([], mean)


def test_a_cross_fitted_label_never_saw_its_own_pair():
    gold = simulated(40, 1.0)
    fold = [int(digest(["fold", one.pair_id])[:8], 16) % 5 for one in gold]
    before = cross_fitted(gold, mean)
    for place in (0, 7, 23):
        wrong = GoldEvidence(gold[place].pair_id, [(1.0, [300.0])], False)
        after = cross_fitted([*gold[:place], wrong, *gold[place + 1 :]], mean)
        same = {number for number in range(40) if after[number] == before[number]}
        # Its own fold's temperature knows nothing of it; every other fold's does.
        assert same | {place} == {number for number in range(40) if fold[number] == fold[place]}


def test_the_cross_fitted_error_is_lower_than_before_for_a_judge_that_is_too_sure():
    gold = simulated(1000, 4.0)
    before = expected_calibration_error(reliability_bins((mean(one.evidence, 1), one.a_is_better) for one in gold))
    after = expected_calibration_error(reliability_bins(cross_fitted(gold, mean)))
    assert before is not None and after is not None
    assert before > 0.12 and after < 0.04


def test_evidence_is_gathered_from_the_tables():
    def pair(name: str) -> dict[str, Any]:
        return {"pair_id": name, "a_from": "rejected", "b_from": "chosen"}

    def verdict(name: str, principle: str, order: str, probability: float | None) -> dict[str, Any]:
        return {"pair_id": name, "principle_id": principle, "order": order, "probability_a": probability}

    verdicts = [
        *(verdict("p", "x", order, probability) for order, probability in (("ab", 0.75), ("ba", 0.25))),
        *(verdict("p", "half-read", order, probability) for order, probability in (("ab", 0.9), ("ba", None))),
        verdict("p", "certain", "none", 1.0),
        verdict("unread", "x", "ab", None),
    ]
    labels = [{"pair_id": "p", "probability_a": 0.5}, {"pair_id": "unread", "probability_a": None}]
    weights = {"x": 2.0, "half-read": 1.0, "certain": 1.0}
    (one,) = gather([pair("p"), pair("unread")], verdicts, labels, weights)
    assert (one.pair_id, one.a_is_better) == ("p", False)
    (weight, odds), (_, (certain,)) = one.evidence
    assert weight == 2.0 and odds == pytest.approx([math.log(3), -math.log(3)])
    assert 25 < certain < math.inf
