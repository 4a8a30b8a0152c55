"""What of a stage is still to do: its input against the shards in the folder of its run, and what the folder refuses.

Nothing is asked here, and nothing written.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from cai.as_read import file_as_read
from cai.audit import TABLES
from cai.engines import Engine
from cai.errors import BadInput
from cai.ids import digest
from cai.inputs import Chunk
from cai.pairs import NO_PAIR
from cai.pasted import folder_word
from cai.rows import Drop
from cai.seal import Json
from cai.settings_engine import EngineSettings
from cai.store import Run
from cai.sums import stray
from cai.threads import in_thread


class Source(Protocol):
    """Where a stage's rows or pairs come from. Iterating over `chunks` reads it anew each time.

    `made_of` is the digest of the rows that pairs are made of; None where they are read from elsewhere. `unread` says,
    once the chunks have been read to their end, whether a limit has left records behind them.
    """

    spec: str
    made_of: str | None
    unread: bool

    def chunks(self, records_in_chunk: int) -> Iterator[Chunk]: ...


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage as its settings mean it: the folder of its run, the engine in each role, the names and digests of the
    texts that it uses, and those texts themselves, by the name of the copy that the run keeps."""

    name: str
    settings: EngineSettings
    out: str
    roles: Mapping[str, Engine]
    texts: Mapping[str, str]
    copies: Mapping[str, str]
    shard_rows: int

    def belongs(self) -> Json:
        """What the stage's data depends on, beside its rows: a folder holds the data of one such set."""
        models = {role: engine.model for role, engine in self.roles.items()}
        return {"settings": self.settings.compared(), "models": models, "texts": dict(self.texts)}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done of a stage, in chunks (by index, with the digest of each) that are a shard in the end.

    `good` of the rows can be worked on; `sizes` are the rows of each shard; `gone` are shards that are there and
    have no rows any more; `strays` are somebody else's files, in the place of shards that are still to be made.

    `file` is the file of the source as it was read, None where it is none. `other_places` are finished shards whose
    rows are the same, but were read in another place: the source has another name, or other lines between them.
    `unread` says that the source has more than `limit` lets it give.
    """

    rows: int
    good: int
    finished_rows: int
    sizes: Mapping[int, int]
    open_chunks: Mapping[int, str]
    gone: Sequence[int]
    strays: Sequence[Path]
    prompts_sha: str
    file: Json | None
    other_places: Sequence[int]
    unread: bool

    def to_do(self) -> bool:
        return bool(self.open_chunks or self.gone)


async def make_plan(run: Run, stage: Stage, settings_sha: str, source: Source, anew: bool) -> Plan:
    """Read the whole input once and compare it with the shards that are there, before anything is written or asked.

    Other rows than a shard was made of are an error, or with `anew` a reason to make it once more.

    Raises BadInput for them, for a source of which no row can be used or that has fewer than the run, and for a shard
    that is damaged or a file that is not the run's own.
    """
    tables = TABLES[stage.name]
    rows, finished_rows, good, held, short = 0, 0, 0, 0, False
    open_chunks: dict[int, str] = {}
    sizes: dict[int, int] = {}
    other_places: list[int] = []
    shas: list[str] = []
    read_file = partial(in_thread, partial(file_as_read, source.spec if source.made_of is None else None))
    file = await read_file()
    first_drop: Drop | None = None
    for chunk in source.chunks(stage.shard_rows):
        await asyncio.sleep(0)  # so that a signal is heeded also in a long source
        drops = [item for item in chunk.items if isinstance(item, Drop)]
        first_drop = first_drop or next(iter(drops), None)
        rows, good = rows + len(chunk.items), good + len(chunk.items) - len(drops)
        shas.append(chunk.sha)
        sizes[chunk.index] = len(chunk.items)
        mark = run.mark(stage.name, tables, chunk.index)
        held += len(mark.inputs) if mark is not None else 0
        if mark is not None and not anew:
            if len(mark.inputs) > len(chunk.digests):
                short = True
            elif mark.inputs != chunk.digests[: len(mark.inputs)]:
                found = f"other rows than this run was made from (in shard {chunk.index})"
                raise BadInput(source.spec, found, "the same rows, or more behind them", _elsewhere(stage))
        if mark is not None and mark.inputs == chunk.digests and mark.settings_sha == settings_sha:
            finished_rows += len(chunk.items)
            if mark.places != chunk.places:
                other_places.append(chunk.index)
        else:
            open_chunks[chunk.index] = chunk.sha
    unread = source.unread
    if rows == 0:
        raise BadInput(source.spec, "no records", "at least one", "Check the file.")
    if good == 0 and first_drop is not None and first_drop.reason != NO_PAIR:
        place, _, problem = first_drop.detail.partition(": found ")
        found, _, expected = problem.rpartition(", expected ")
        raise BadInput(place, found, expected, f"None of the {rows} records can be used; this is the first.")
    strays = run.strays(stage.name, tables)
    own = {path for index in open_chunks for path in run.paths(stage.name, tables, index)}
    for path in strays:
        if path not in own or stage.name in run.manifest():
            raise stray(path)
    gone = [index for index in run.finished_shards(tables[-1]) if index >= len(shas)]
    if (short or gone) and not anew:
        marks = [run.mark(stage.name, tables, index) for index in gone]
        raise _too_few(stage, source, rows, held + sum(len(mark.inputs) for mark in marks if mark is not None))
    if file != await read_file():  # somebody has written into it meanwhile
        file = None
    return Plan(rows, good, finished_rows, sizes, open_chunks, gone, strays, digest(shas), file, other_places, unread)


def _too_few(stage: Stage, source: Source, rows: int, held: int) -> BadInput:
    first = "Raise --limit" if source.unread else "Put the rows back that the source has lost"
    expected = f"at least the {held} that the run already holds"
    return BadInput(source.spec, f"{rows} rows", expected, f"{first}, or: {_elsewhere(stage)}")


def _elsewhere(stage: Stage) -> str:
    """What to do with a folder that belongs to other rows or settings."""
    if stage.name == "label":
        return "Give --replace to make the labels anew; calls that have not changed are kept."
    if stage.name == "calibrate":
        return f"Choose another --out, or remove {stage.out}."
    return f"Choose another --out, with --reuse {folder_word(stage.out)} to keep the calls that have not changed."


def still_to_do(source: Source, size: int, open_chunks: Mapping[int, str]) -> Iterator[Chunk]:
    """Read the source once more, for the chunks that are open. Raises BadInput if it has changed since the plan."""
    seen = 0
    for chunk in source.chunks(size):
        if chunk.index in open_chunks:
            if chunk.sha != open_chunks[chunk.index]:
                raise BadInput(source.spec, "other rows than a moment ago", "a source that stands still", "Run again.")
            yield chunk
            seen += 1
    if seen < len(open_chunks):
        raise BadInput(source.spec, "fewer rows than a moment ago", "a source that stands still", "Run again.")


def refuse_other_work(run: Run, stage: Stage, belongs: Json, anew: bool) -> None:
    """Raise BadInput if the folder holds what this stage must not be mixed with; `anew` lets it have other settings."""
    _refuse_other_tables(run, stage)
    if not anew:
        _refuse_other_settings(run, stage, belongs)


def _refuse_other_settings(run: Run, stage: Stage, belongs: Json) -> None:
    kept: Any = run.settings().get(stage.name)
    if kept is None or kept == belongs:
        return
    old, new = _flat(kept), _flat(belongs)
    differ = [
        f"{name} ({old.get(name)!r} there, {new.get(name)!r} now)"
        for name in sorted(old | new)
        if old.get(name) != new.get(name)
    ]
    found = f"a cai {stage.name} with other settings: {', '.join(differ)}"
    raise BadInput(stage.out, found, "the same settings", _elsewhere(stage))


def _refuse_other_tables(run: Run, stage: Stage) -> None:
    """Gold is kept apart from what is trained on: it lies in tables of the same names, and is nobody's answer."""
    for other in run.settings():
        if (other == "calibrate") != (stage.name == "calibrate"):
            found = f"the folder of a cai {other}"
            raise BadInput(f"--out {stage.out}", found, "another one", "Choose another --out.")


def _flat(belongs: Json) -> dict[str, Any]:
    return {
        **belongs["settings"],
        **belongs["texts"],
        **{f"{role} model": model for role, model in belongs["models"].items()},
    }
