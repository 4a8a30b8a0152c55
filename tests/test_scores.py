import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.scores import (
    brier_score,
    cohens_kappa,
    expected_calibration_error,
    hit,
    log_loss,
    reliability_bins,
    wilson,
)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_the_published_values(hits: int, n: int, low: float, high: float):
    assert [round(end, 4) for end in wilson(hits, n)] == [low, high]


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, 2 * n), st.just(n))))
def test_wilsons_interval_holds_the_share_lies_in_0_1_and_mirrors(counts: tuple[int, int]):
    doubled, n = counts
    low, high = wilson(doubled / 2, n)
    assert 0 <= low <= doubled / 2 / n + 1e-12 and doubled / 2 / n - 1e-12 <= high <= 1
    assert wilson(n - doubled / 2, n) == pytest.approx((1 - high, 1 - low))


def test_a_hit_is_the_likelier_answer_and_a_tie_is_half_of_one():
    assert [hit(0.6, True), hit(0.6, False), hit(0.4, True), hit(0.4, False)] == [1, 0, 0, 1]
    assert hit(0.5, True) == hit(0.5, False) == 0.5


def test_brier_score_and_log_loss_of_a_hand_worked_example():
    soft = [(0.9, True), (0.25, False), (0.5, True), (0.875, False)]
    # Distances from gold: 0.1, 0.25, 0.5, 0.875.
    assert brier_score(soft) == pytest.approx((0.01 + 0.0625 + 0.25 + 0.765625) / 4)
    assert log_loss(soft) == pytest.approx(-(math.log(0.9) + math.log(0.75) + math.log(0.5) + math.log(0.125)) / 4)
    assert brier_score([]) is None
    assert log_loss([(1.0, False)]) < 30, "a wrong certainty costs much, but not infinitely much"


def test_the_calibration_error_of_a_hand_worked_example():
    soft = [(0.52, True), (0.46, True), (0.9, True), (0.06, False), (0.92, False), (0.08, False)]
    bins = reliability_bins(soft)
    first, last = bins[0], bins[8]
    # 0.52 (right) and 0.54 (wrong) lie in [0.5, 0.55); 0.9, 0.94, 0.92 (right, right, right) and 0.92 (wrong) in
    # [0.9, 0.95): the border 0.9 belongs to the bin above it.
    assert (first["accuracy"]["n"], first["accuracy"]["value"]) == (2, 0.5)
    assert first["confidence"] == pytest.approx(0.53)
    assert (last["accuracy"]["n"], last["accuracy"]["value"]) == (4, 0.75)
    assert last["confidence"] == pytest.approx(0.92)
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.03 + 4 * 0.17) / 6)


def test_the_bins_divide_the_confidences_that_two_answers_can_have():
    bins = reliability_bins([(0.5, True), (1.0, True), (0.0, True), (0.6, True)])
    assert (bins[0]["from"], bins[-1]["to"], len(bins)) == (0.5, 1.0, 10)
    assert [one["accuracy"]["n"] for one in bins] == [1, 0, 1, 0, 0, 0, 0, 0, 0, 2]
    assert bins[0]["accuracy"]["value"] == bins[-1]["accuracy"]["value"] == 0.5
    assert bins[1]["accuracy"] == {"n": 0, "value": None, "low": None, "high": None}
    assert expected_calibration_error(reliability_bins([])) is None


def test_kappa_of_a_hand_worked_example():
    # Of 50, both say a 20 times and b 15 times: 0.7 agree. By chance 25/50 * 30/50 + 25/50 * 20/50 = 0.5 would.
    rated = [("a", "a")] * 20 + [("a", "b")] * 5 + [("b", "a")] * 10 + [("b", "b")] * 15
    assert cohens_kappa(rated) == pytest.approx(0.4)


def test_kappa_at_its_ends():
    assert cohens_kappa([("a", "a"), ("b", "b"), ("none", "none")]) == 1
    assert cohens_kappa([("a", "b"), ("b", "a")]) == -1
    assert cohens_kappa([("a", "a"), ("a", "b")]) == 0, "who always says the same tells nothing"
    assert cohens_kappa([("a", "a")] * 3) is None
    assert cohens_kappa([]) is None
