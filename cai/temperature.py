"""The temperature that makes a judge as sure of itself as it is often right, found on gold pairs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cai.gold import a_is_gold
from cai.ids import digest
from cai.label import log_odds
from cai.scores import Soft, log_loss
from cai.seal import Json

COOLEST, HOTTEST = 0.05, 20.0
STEPS = 24
FOLDS = 5

Evidence = Sequence[tuple[float, Sequence[float]]]  # by principle: its weight, and the log-odds of a in each order
Aggregate = Callable[[Evidence, float], float]  # evidence and temperature to the probability that a is the better one


@dataclass(frozen=True, slots=True)
class GoldEvidence:
    """What a judge said of one pair, before any temperature, and what people said."""

    pair_id: str
    evidence: Evidence
    a_is_better: bool


@dataclass(frozen=True, slots=True)
class Fit:
    """A temperature and the mean negative log-likelihood of gold without it (at 1) and with it.

    `at_edge` says that the search ended at a bound: a judge that is always right cannot be too sure, and one that knows
    nothing never unsure enough. Such a temperature is a sign of too few pairs or of a useless judge, not a setting.
    """

    temperature: float
    log_loss_before: float
    log_loss_after: float
    at_edge: bool


def gather(
    pairs: Iterable[Json], verdicts: Iterable[Json], labels: Iterable[Json], weights: Mapping[str, float]
) -> list[GoldEvidence]:
    """The evidence on each pair that has a soft label, from the tables; `weights` are the principles'.

    As in `label.label`, a principle counts for a pair if all its verdicts on it were read.
    """
    soft = {one["pair_id"] for one in labels if one["probability_a"] is not None}
    said: dict[str, dict[str, list[float | None]]] = {}
    for one in verdicts:
        said.setdefault(one["pair_id"], {}).setdefault(one["principle_id"], []).append(one["probability_a"])
    gathered: list[GoldEvidence] = []
    for pair in pairs:
        if pair["pair_id"] in soft:
            evidence = [
                (weights[name], [log_odds(one) for one in group if one is not None])
                for name, group in said[pair["pair_id"]].items()
                if None not in group
            ]
            gathered.append(GoldEvidence(pair["pair_id"], evidence, a_is_gold(pair)))
    return gathered


def fit_temperature(gold: Sequence[GoldEvidence], probability: Aggregate) -> Fit:
    """The temperature that makes gold likeliest, between 0.05 and 20, to three digits. Raises ValueError without pairs.

    All log-odds of a judge are divided by it: above 1 it makes a judge that is too sure of itself less sure, below 1
    the other way round. Guo et al. 2017, section 4.2, scale the final scores, which moves no decision. Here each
    verdict is scaled before they are added up: none changes sides, but the mean of several may. `probability` adds them
    up as the labels do.
    """
    if not gold:
        raise ValueError("no pairs to fit a temperature to")

    def loss(log_temperature: float) -> float:
        return log_loss(soft_labels(gold, probability, math.exp(log_temperature)))

    def by_loss(log_temperature: float) -> tuple[float, float]:
        return loss(log_temperature), abs(log_temperature)  # of equals the one nearest to no change

    # A mean of sigmoids need not have one valley only: a grid finds the deepest, golden section its ground.
    low, step = math.log(COOLEST), math.log(HOTTEST / COOLEST) / STEPS
    best = min((low + step * number for number in range(STEPS + 1)), key=by_loss)
    found = min(best, _golden(loss, max(low, best - step), min(math.log(HOTTEST), best + step)), key=by_loss)
    # Rounded, so that machines whose logarithms differ in the last bit find the same one.
    temperature = float(f"{math.exp(found):.3g}")
    at_edge = not COOLEST * 1.02 < temperature < HOTTEST / 1.02
    return Fit(temperature, loss(0.0), loss(math.log(temperature)), at_edge)


def _golden(loss: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley between `low` and `high` is lowest (Kiefer 1953)."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    left_loss, right_loss = loss(left), loss(right)
    while high - low > 1e-4:
        if left_loss <= right_loss:
            high, right, right_loss = right, left, left_loss
            left = high - ratio * (high - low)
            left_loss = loss(left)
        else:
            low, left, left_loss = left, right, right_loss
            right = low + ratio * (high - low)
            right_loss = loss(right)
    return (low + high) / 2


def soft_labels(gold: Iterable[GoldEvidence], probability: Aggregate, temperature: float) -> list[Soft]:
    """Each pair's probability of a under one temperature, with what people said."""
    return [(probability(one.evidence, temperature), one.a_is_better) for one in gold]


def cross_fitted(gold: Sequence[GoldEvidence], probability: Aggregate) -> list[Soft]:
    """Each pair's soft label under a temperature that was fitted without it: on the other four of five folds.

    To fit and to measure on the same pairs flatters. A pair's fold is a hash of its id. Raises ValueError if all pairs
    fall into one fold.
    """
    fold = {one.pair_id: int(digest(["fold", one.pair_id])[:8], 16) % FOLDS for one in gold}
    fitted = {
        number: fit_temperature([one for one in gold if fold[one.pair_id] != number], probability).temperature
        for number in set(fold.values())
    }
    return [(probability(one.evidence, fitted[fold[one.pair_id]]), one.a_is_better) for one in gold]
