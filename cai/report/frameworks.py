"""What a run shows for the places in published frameworks that its principles answer to."""

from collections.abc import Sequence
from dataclasses import dataclass

from cai.constitution import Constitution
from cai.report.figures import Figures


@dataclass(frozen=True, slots=True)
class Clause:
    """A place in a framework, the principles that refer to it, and what those did in the run, added up."""

    clause: str
    principles: tuple[str, ...]
    applied: int
    criticised: int
    changed: int
    verdicts: int


def frameworks(constitutions: Sequence[Constitution], figures: Figures) -> dict[str, list[Clause]]:
    """By framework, in the order of the alphabet."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for constitution in constitutions:
        for principle in constitution.principles:
            for reference in principle.references:
                found.setdefault(reference.framework, {}).setdefault(reference.clause, {})[principle.id] = None
    return {
        framework: [_clause(clause, tuple(names), figures) for clause, names in sorted(clauses.items())]
        for framework, clauses in sorted(found.items())
    }


def _clause(clause: str, names: tuple[str, ...], figures: Figures) -> Clause:
    deeds = [figures.of(name) for name in names]
    return Clause(
        clause, names, sum(one.applied for one in deeds), sum(one.criticised for one in deeds),
        sum(one.changed for one in deeds), sum(one.verdicts for one in deeds),
    )  # fmt: skip
