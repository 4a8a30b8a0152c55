"""Why figures of a run should be mistrusted, as sentences: for the page, the summary and the terminal."""

from collections.abc import Iterator, Sequence

from cai.constitution import Constitution
from cai.report.figures import Figures
from cai.report.gate import Gate
from cai.seal import Json

LITTLE = 0.5  # of the probability on the words that a model was to choose from; below, it hardly followed the question
_OFTEN, _NEARLY_ALL = 10, 0.9  # so many choices, and such a share of them for one principle, are a remark


def gate_mass(figures: Figures) -> float | None:
    """How much of the critic's probability fell on Yes and No, on average; None if nothing says so."""
    return figures.gate_mass / figures.gate_masses if figures.gate_masses else None


def letter_mass(verdicts: Json) -> float | None:
    """How much of the judge's probability fell on the words to choose from; by the counts of its stage."""
    asked = sum(one["asked"] for one in verdicts.values())
    return sum(one["asked"] * one["mean_letter_mass"] for one in verdicts.values()) / asked if asked else None


def share(mass: float | None) -> str:
    """A mass as a share, that is never nothing where there is something."""
    return "-" if mass is None else "under 0.1 %" if 0 < mass < 0.001 else f"{mass:.1%}".replace("%", " %")


def doubts(counts: Json, figures: Figures, gate: Gate, constitutions: Sequence[Constitution]) -> list[str]:
    """Every doubt about the stages in `counts`."""
    found = list(_gate(figures)) if "revise" in counts else []
    found += [one for stage in ("label", "calibrate") if stage in counts for one in judge_doubts(counts[stage])]
    if "revise" in counts:
        found += _one_for_all(figures, gate, constitutions)
    return found


def _gate(figures: Figures) -> Iterator[str]:
    mass = gate_mass(figures)
    if mass is not None and mass < LITTLE:
        yield (
            f"At the gate, the words Yes and No had {share(mass)} of the critic's probability on average. It hardly "
            "followed the question: mistrust which answers were criticised."
        )


def judge_doubts(counts: Json) -> Iterator[str]:
    """The doubt about the labels of a stage that judged, by its counts."""
    mass = letter_mass(counts["verdicts"]) if "verdicts" in counts else None
    if mass is not None and mass < LITTLE:
        yield (
            f"The words that the judge was to choose from had {share(mass)} of its probability on average. It hardly "
            "followed the question: mistrust these labels, also where all of them are decided."
        )


def _one_for_all(figures: Figures, gate: Gate, constitutions: Sequence[Constitution]) -> Iterator[str]:
    used = {name: deeds.applied for name, deeds in figures.deeds.items() if deeds.applied}
    chosen = sum(used.values())
    # Of those that are drawn, one of a large weight may be meant to come up so often.
    if gate.principles != "fitting" or chosen < _OFTEN:
        return
    name = max(used, key=lambda one: used[one])
    there = next((len(one.principles) for one in constitutions if any(each.id == name for each in one.principles)), 1)
    if there > 1 and used[name] >= _NEARLY_ALL * chosen:
        yield (
            f"The critic named the principle {name} in {used[name]} of {chosen} choices, of {there} principles. It may "
            "name the same one whatever it is asked, so do not take this for what the answers were about."
        )
