"""Is this judge good enough? Its verdicts and labels on gold pairs, as figures.

In every figure a probability of exactly 1/2 names neither answer and counts as half a hit; what could not be read is
counted apart and never scored. No figure of a judge moves when the two answers of a pair change sides.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai.gold import a_is_gold
from cai.scores import (
    brier_score,
    cohens_kappa,
    expected_calibration_error,
    hit,
    log_loss,
    rate,
    reliability_bins,
    share,
)
from cai.seal import Json
from cai.temperature import Aggregate, GoldEvidence, cross_fitted, fit_temperature, soft_labels

FEWEST_TO_FIT = 20


@dataclass(frozen=True, slots=True)
class _Gold:
    """What people said of a pair: whether a is the better one. And whether a is the longer one; None if neither is."""

    a_is_better: bool
    a_is_longer: bool | None


def judge_figures(pairs: Iterable[Json], verdicts: Iterable[Json], labels: Iterable[Json]) -> Json:
    """What the labels and verdicts on gold pairs say of the judge, rounded to four decimals.

    - `n`: labels; `decided`: how many name an answer; `undecided`: the others by reason.
    - `accuracy`, `accuracy_readable`: the share of the decisions that are gold's, and of all readable soft labels that
      lie on gold's side, with 95 % intervals (`scores.wilson`).
    - `brier`: the mean of (1 - probability given to gold's answer) squared; 0.25 for a judge that always says 1/2.
    - `calibration`: `ece` and `bins`, see `scores.expected_calibration_error` and `scores.reliability_bins`.
    - `flips`: of the principles that were read in both orders, pair by pair, the share in which one order names a and
      the other b. `first_position`: the share of single verdicts on the side of the answer shown first; 0.5 is fair.
      Both None where no verdict has an order.
    - `longer`: among decided pairs of unlike length, how often the judge and how often gold takes the longer answer
      (in characters).
    - `verdicts`: how many, the share that could not be read, the mean letter mass.
    - `by_principle`: the accuracy of the principle's own verdicts, the mean over the orders of a pair (of pairs in
      which all of them were read, as in `label.label`), its flips and its unread share.

    Intervals are given where the cases are pairs; two verdicts on one pair are not independent.
    """
    gold = {pair["pair_id"]: _Gold(a_is_gold(pair), _longer(len(pair["a"]) - len(pair["b"]))) for pair in pairs}
    told = list(labels)
    decided = [(one["judged"] == "a", gold[one["pair_id"]]) for one in told if one["judged"] != "none"]
    readable = [
        (one["probability_a"], gold[one["pair_id"]].a_is_better) for one in told if one["probability_a"] is not None
    ]
    bins = reliability_bins(readable)
    return _rounded(
        {
            "n": len(told),
            "decided": len(decided),
            "undecided": dict(sorted(Counter(one["reason"] for one in told if one["judged"] == "none").items())),
            "accuracy": rate(sum(says_a == one.a_is_better for says_a, one in decided), len(decided)),
            "accuracy_readable": rate(sum(hit(*one) for one in readable), len(readable)),
            "brier": brier_score(readable),
            "calibration": {"ece": expected_calibration_error(bins), "bins": bins},
            "longer": _longer_figures(decided),
            **_verdict_figures(gold, verdicts),
        }
    )


def _longer(difference: int) -> bool | None:
    return None if difference == 0 else difference > 0


def _longer_figures(decided: Iterable[tuple[bool, _Gold]]) -> Json:
    unlike = [(says_a, one) for says_a, one in decided if one.a_is_longer is not None]
    return {
        "judge": rate(sum(says_a == one.a_is_longer for says_a, one in unlike), len(unlike)),
        "gold": rate(sum(one.a_is_better == one.a_is_longer for _, one in unlike), len(unlike)),
    }


# Verdicts


Orders = dict[str, float | None]  # the probability of a by order, None where it was not read


def _verdict_figures(gold: Mapping[str, _Gold], verdicts: Iterable[Json]) -> Json:
    principles: dict[str, dict[str, Orders]] = {}
    masses: list[float] = []
    for one in verdicts:
        by_pair = principles.setdefault(one["principle_id"], {})
        by_pair.setdefault(one["pair_id"], {})[one["order"]] = one["probability_a"]
        if one["letter_mass"] is not None:
            masses.append(one["letter_mass"])
    groups = [orders for by_pair in principles.values() for orders in by_pair.values()]
    asked = [one for orders in groups for one in orders.items()]
    # The probability of the answer shown first.
    first = [one if order == "ab" else 1 - one for order, one in asked if one is not None and order in ("ab", "ba")]
    return {
        "flips": _flips(groups),
        "first_position": share(sum(hit(one, True) for one in first), len(first)),
        "verdicts": {
            "n": len(asked),
            "unread": share(sum(one is None for _, one in asked), len(asked)),
            "mean_letter_mass": share(math.fsum(masses), len(masses)),
        },
        "by_principle": {name: _principle(principles[name], gold) for name in sorted(principles)},
    }


def _principle(by_pair: Mapping[str, Orders], gold: Mapping[str, _Gold]) -> Json:
    hits: list[float] = []
    for pair_id, orders in by_pair.items():
        read = [one for one in orders.values() if one is not None]
        if len(read) == len(orders):
            hits.append(hit(math.fsum(read) / len(read), gold[pair_id].a_is_better))
    asked = [one for orders in by_pair.values() for one in orders.values()]
    return {
        "accuracy": rate(sum(hits), len(hits)),
        "flips": _flips(by_pair.values()),
        "unread": share(asked.count(None), len(asked)),
    }


def _flips(groups: Iterable[Orders]) -> float | None:
    both = [(ab, ba) for one in groups if (ab := one.get("ab")) is not None and (ba := one.get("ba")) is not None]
    return share(sum((ab - 0.5) * (ba - 0.5) < 0 for ab, ba in both), len(both))


# Temperature


def temperature_figures(gold: Sequence[GoldEvidence], probability: Aggregate) -> Json | None:
    """The fitted temperature and what it is worth, before and after; None with fewer than 20 pairs.

    `log_loss_after` is on the pairs of the fit; the `cross_fitted` figures are what to expect on others.
    """
    if len(gold) < FEWEST_TO_FIT:
        return None
    fit, others = fit_temperature(gold, probability), cross_fitted(gold, probability)
    before = soft_labels(gold, probability, 1.0)
    bins = reliability_bins(others)
    return _rounded(
        {
            "n": len(gold),
            "temperature": fit.temperature,
            "at_edge": fit.at_edge,
            "log_loss_before": fit.log_loss_before,
            "log_loss_after": fit.log_loss_after,
            "log_loss_cross_fitted": log_loss(others),
            "ece_before": expected_calibration_error(reliability_bins(before)),
            "ece_cross_fitted": expected_calibration_error(bins),
            "bins_cross_fitted": bins,
        }
    )


# Agreement with a person


def agreement(rated: Iterable[tuple[str, str]]) -> Json:
    """How two raters of the same pairs agree, each choosing a, b or none: the judge and a person, or two people.

    `same` counts equal choices, `same_side` those among pairs on which both name an answer. Where there is no `kappa`,
    `no_kappa` says why. `table` counts each combination, the first rater's choice first.
    """
    both = list(rated)
    named = [one for one in both if "none" not in one]
    kappa = cohens_kappa(both)
    reason = None if kappa is not None else "both always chose the same" if both else "nothing was rated twice"
    return _rounded(
        {
            "n": len(both),
            "same": rate(sum(first == second for first, second in both), len(both)),
            "same_side": rate(sum(first == second for first, second in named), len(named)),
            "kappa": kappa,
            "no_kappa": reason,
            "table": {f"{first}/{second}": count for (first, second), count in sorted(Counter(both).items())},
        }
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
