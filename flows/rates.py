"""The rates of a stage as a flat table: what was kept, why rows were dropped, and what each principle did."""

from collections.abc import Iterator

from cai.seal import Json


def rates(counts: Json) -> list[Json]:
    """From the counts of `audit.count_stage`. Each row: what is counted, under which name, how often, of how many."""
    return [_row(*found) for found in _stage(counts)]


def dataset_rates(counts: Json) -> list[Json]:
    """From the counts of an export, one part of the dataset after another."""
    return [_row(*found) for found in _dataset(counts)]


def _stage(counts: Json) -> Iterator[tuple[str, str, int, int]]:
    read, kept = counts["read"], counts["kept"]
    yield "rows", "kept", kept, read
    yield "rows", "dropped", counts["dropped"], read
    for reason, count in counts["dropped_by_reason"].items():
        yield "dropped", reason, count, read
    if "by_principle" in counts:
        yield "rows", "changed", counts["changed"], kept
        for name, one in counts["by_principle"].items():
            yield "criticised", name, one["found_broken"], one["applied"]
            yield "answer changed", name, one["changed"], one["applied"]
    if "verdicts" in counts:
        yield "pairs", "decided", counts["decided"], kept
        for reason, count in counts["undecided_by_reason"].items():
            yield "undecided", reason, count, kept
        for name, one in counts["verdicts"].items():
            yield "with the label", name, one["with_the_label"], one["asked"]
            yield "unread", name, one["unread"], one["asked"]


def _dataset(counts: Json) -> Iterator[tuple[str, str, int, int]]:
    for config, one in counts.items():
        for split, written in one["written"].items():
            yield f"{config} written", split, written, one["read"]
        for reason, count in one["left_out"].items():
            yield f"{config} left out", reason, count, one["read"]


def _row(what: str, name: str, count: int, of: int) -> Json:
    return {"what": what, "name": name, "count": count, "of": of, "share": f"{100 * count / of:.1f} %" if of else ""}
