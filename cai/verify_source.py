"""What a stage of a run has read, read once more.

    generate, revise, calibrate    the file of prompts or gold pairs, if it is where it was
    label                          the answers of the run itself
    a test of a constitution       the examples in the run's copy of it

A file may have been edited since, or have grown, or another one may have its name where `cai verify` is given. Only if
the bytes that were read are still there, and this code would read them as it was read, is what differs a difference.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from cai.as_read import reader_sha, still_has
from cai.errors import BadInput
from cai.findings import Findings
from cai.gold import ConstitutionPairs, GoldPairs
from cai.inputs import Chunk, Prompts
from cai.kept import kept_constitution
from cai.pairs import ROW_TABLES, RunPairs, made_of
from cai.rows import Drop, Pair, Row
from cai.seal import Json
from cai.sources import file_of
from cai.store import Run

Item = Row | Pair | Drop


class _Source(Protocol):
    unread: bool

    def chunks(self, records_in_chunk: int) -> Iterator[Chunk]: ...


@dataclass(slots=True)
class Reread:
    """What the shards of a stage read, one after another.

    `called` names the source in a sentence, `counted` what it gives. `doubt` says why a difference from it is none of
    the run's; "" if it is one. `whole` says that it gives nothing behind the last shard. `moved` are shards that were
    read in another place before, of which only what the items say is compared, and `grown` those that may have got
    items since, also between those that were there. `principles` judge a pair, by pair_id. `unread`
    is whether a limit leaves more of the `source`, as the manifest says; None if that is not to be compared.
    """

    called: str
    counted: str
    chunks: Iterator[Chunk]
    doubt: str
    whole: bool
    moved: frozenset[int]
    grown: frozenset[int]
    principles: Mapping[str, tuple[str, ...]]
    source: _Source
    unread: bool | None

    def items(self, index: int, findings: Findings) -> tuple[Item, ...] | None:
        """What a shard read; the shards are asked for in their order."""
        chunk = self._next(findings)
        while chunk is not None and chunk.index < index:
            chunk = self._next(findings)
        return chunk.items if chunk is not None and chunk.index == index else None

    def is_over(self, findings: Findings) -> bool:
        """Whether nothing is left."""
        return self._next(findings) is None

    def check_unread(self, where: str, findings: Findings) -> None:
        """Compare what the manifest says of what a limit leaves, once the source is over."""
        if self.unread not in (None, self.source.unread):
            expected = f"{self.source.unread}, since {self.called} has {'more' if self.source.unread else 'no more'}"
            findings.differ(f"{where}, prompts, unread", str(self.unread), expected)

    def _next(self, findings: Findings) -> Chunk | None:
        try:
            return next(self.chunks, None)
        except BadInput as error:
            self.unread = None
            findings.note(f"{self.called} was not read any further ({error.place}: {error.found}).")
            return None


def reread(run: Run, stage: str, entry: Json | None, findings: Findings) -> Reread | None:
    """What a stage has read; None, with a note, where it is not there."""
    if entry is None:  # where it reads from is written down when it is finished
        return None
    try:
        return _opened(run, stage, entry, findings)
    except BadInput as error:
        what = "the pairs were not made anew" if stage == "label" else "NOT CHECKED against its source"
        findings.note(f"cai {stage}: {what} ({error.place}: {error.found}).")
        return None


def _opened(run: Run, stage: str, entry: Json, findings: Findings) -> Reread | None:
    settings, told = entry["settings"], entry.get("prompts", {})
    unread: bool | None = told.get("unread")  # an earlier version did not write it down
    size, known = settings.get("shard_rows", 256), told.get("read_by") == reader_sha()
    moved = frozenset[int](told.get("other_places", ()))
    if moved:
        findings.note(
            f"cai {stage}: of {len(moved)} shards, which an earlier session read in another place, it was not "
            "looked at where their rows stand."
        )
    if stage == "label":
        return _pairs(run, settings, told, known, moved, findings)
    spec: str | None = told.get("source")
    if spec is not None and stage == "calibrate" and "shard_rows" not in settings:
        examples, doubt = _examples(run, spec), "" if known else f"another version of cai read {spec}"
        return Reread(
            spec, "examples made anew", examples.chunks(size), doubt, True, moved, frozenset(), examples.principles,
            examples, unread,
        )  # fmt: skip
    path, is_as_it_was = _file(run, spec, told.get("file")) if spec is not None else (None, False)
    if path is None:
        is_file = spec is None or file_of(spec) is not None
        why = "is not there any more, seen from here or from a folder above the run" if is_file else "is not fetched"
        findings.note(f"cai {stage}: NOT CHECKED against its source, since {spec or 'a file without a name'} {why}.")
        return None
    findings.step(f"cai {stage}: reading {path} once more beside it.")
    source: _Source = GoldPairs(str(path), told.get("limit"), strict=False)
    if stage != "calibrate":
        source = Prompts(str(path), stage, told.get("limit"), settings.get("samples", 1), strict=False)
    doubt = "" if known else f"another version of cai, of Python or of a library read {path}"
    if not is_as_it_was:
        doubt = f"{path} is not what it was when it was read"
    if told.get("file") is None:
        doubt = f"the manifest does not say what {path} was when it was read"
    whole = not doubt and path.stat().st_size == told["file"]["bytes"]
    chunks = source.chunks(size)
    return Reread(str(path), "records read again", chunks, doubt, whole, moved, frozenset(), {}, source, unread)


def _pairs(
    run: Run, settings: Json, told: Json, known: bool, moved: frozenset[int], findings: Findings
) -> Reread | None:
    """The pairs that the run's answers make. Also those of a run that has grown since it was labelled, so that nobody
    excuses a change in the answers by that change."""
    before, limit, grown = told.get("made_of"), told.get("limit"), frozenset[int]()
    has_grown = before != made_of(run)
    why = (
        "cai label: made_of in manifest.json does not fit the run's answers: either they have been worked on since it "
        "was labelled, or somebody has changed it"
    )
    if has_grown and (before is None or all(map(run.finished_shards, ROW_TABLES))):  # maybe of the other table
        findings.note(f"{why}. So no pairs were made anew.")
        return None
    if has_grown:
        limit = None  # it counts from the first row, and there may be more of them now
    pairs = RunPairs(run, settings["pairs"], limit)
    if has_grown:
        findings.note(f"{why}.")
        grown = _made_again(run, pairs.table)
        # All that comes behind a new pair has another position.
        moved |= {index for index in run.finished_shards(pairs.table) if grown and index >= min(grown)}
    if not known:
        findings.note("cai label: another version of cai made the pairs; their prompts and answers were compared.")
        moved = frozenset(run.finished_shards("labels"))
    called = f"the table {pairs.table}"
    chunks, unread = pairs.chunks(1), told.get("unread") if known else None
    return Reread(called, "pairs made anew", chunks, "", not has_grown, moved, grown, {}, pairs, unread)


def _made_again(run: Run, table: str) -> frozenset[int]:
    """The shards that may have got rows since they were made for the first time."""
    indexes, is_known = run.finished_shards(table), (run.folder / "shards.jsonl").is_file()
    names = {index: run.shard(table, index).relative_to(run.folder).as_posix() for index in indexes}
    return frozenset(index for index, name in names.items() if not is_known or len(run.known_sums(name)) != 1)


def _examples(run: Run, source: str) -> ConstitutionPairs:
    constitution: Any = kept_constitution(run, "calibrate")
    if constitution is None:
        raise BadInput(source, "no copy of it in the run", "the constitution that was tested", "")
    return ConstitutionPairs(replace(constitution, path=Path(source)))


def _file(run: Run, spec: str, was: Json | None) -> tuple[Path | None, bool]:
    """The file that a stage has read, and whether it has the bytes that it had; if none has, any that lies there."""
    path = file_of(spec)
    if path is None:
        return None, False
    places = [path, *(above / spec for above in run.folder.absolute().parents if not Path(spec).is_absolute())]
    there = [place for place in places if os.path.isfile(place)]
    for place in there:
        if was is not None and still_has(place, was):
            return place, True
    return next(iter(there), None), False
