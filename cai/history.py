"""How what a session made compares with the sessions before it.

Each finished session of a stage that made rows leaves their figures in a file of its own, in a folder beside the runs:

    HISTORY/revise-5d3c8a01-9f86d081884c-00000004-00000006.parquet    stage, source, run, its records 4 and 5

Nothing there is ever rewritten, so runs may end at the same time. The name says which records of which run a file
speaks of. A session tells of those that none speaks of yet: one that was killed before it could is made up for by the
next, and nothing is told twice.

A figure has shifted if it is further from the mean of the earlier sessions than its bound, and further than chance
would have it: `SIGMAS` standard errors of the difference. The earlier ones are the last `LOOK_BACK` of the same stage
on the same source. Of few values no difference is beyond chance, since the error is that over all of them together:
see `too_few`.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cai.audit import cost
from cai.errors import BadInput, CaiError, CannotWrite
from cai.figures import Bound, Mean, measure, new_rows
from cai.files import write_atomically, writing
from cai.ids import digest
from cai.inputs import Chunk
from cai.rows import Figure
from cai.schemas import to_table
from cai.seal import Json
from cai.store import Run

SIGMAS = 4.0
LOOK_BACK = 10
# What the sessions took; earlier versions wrote none of it.
COST = ("sessions", "asked_calls", "prompt_tokens", "completion_tokens", "seconds")

_NAME = re.compile(r"[a-z]+-[0-9a-f]{8}-[0-9a-f]{12}-[0-9]{8,}-([0-9]{8,})\.parquet")


@dataclass(frozen=True, slots=True)
class Alarm:
    """A figure that has shifted, and the sentence that says so."""

    run: str
    stage: str
    figure: str
    now: float
    earlier: float
    sentence: str


class History:
    """The figures of the sessions that have ended; `damaged` names files that cannot be read and are passed over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[str] = []

    def names(self, beginning: str = "") -> list[str]:
        """The files of figures whose names begin so.

        Raises CannotWrite if the folder cannot be looked into, BadInput if it is a run.
        """
        if (self.folder / "settings.json").exists():
            raise BadInput(str(self.folder), "a run", "a folder for the figures of runs", "Choose another --history.")
        try:
            return sorted(
                name for name in os.listdir(self.folder) if name.startswith(beginning) and _NAME.fullmatch(name)
            )
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CannotWrite(str(self.folder), error) from error

    def told(self, beginning: str) -> int:
        """How many of its records the files whose names begin with a run's have told of."""
        ends = (_NAME.fullmatch(name) for name in self.names(beginning))
        return max((int(end[1]) for end in ends if end), default=0)

    def sessions(self, beginning: str = "") -> list[list[Json]]:
        """The figures of each session, oldest first; what an earlier version did not write is None."""
        found = [(name, self._read(name)) for name in self.names(beginning)]
        sound = [(rows[0]["finished"], name, rows) for name, rows in found if rows]
        return [rows for _, _, rows in sorted(sound, key=lambda one: one[:2])]

    def _read(self, name: str) -> list[Json]:
        try:
            with pq.ParquetFile(self.folder / name) as file:
                table = file.read()
            rows: list[Json] = table.to_pylist()
            if table.schema.metadata[b"cai"].decode() == _seal(name, rows) and rows:
                return [dict.fromkeys(COST) | row for row in rows]
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
            pass
        self.damaged.append(str(self.folder / name))
        return []

    def add(self, beginning: str, figures: Sequence[Figure]) -> None:
        """Write the figures of a session. Raises CannotWrite."""
        first = figures[0]
        name = f"{beginning}{first.first_row:08d}-{first.first_row + first.rows_read:08d}.parquet"
        seal = _seal(name, [asdict(figure) for figure in figures])
        file = pa.BufferOutputStream()
        pq.write_table(to_table(figures, "history").replace_schema_metadata({"cai": seal}), file, compression="zstd")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / name, file.getvalue().to_pybytes())


def tell(
    run: Run, stage: str, chunks: Callable[[], Iterable[Chunk]], sizes: Mapping[int, int], source: str,
    history: History, bounds: Mapping[str, Bound], say: Callable[[str], None], anew: bool = False,
) -> tuple[Alarm, ...]:  # fmt: skip
    """Compare what a finished stage has made since it was last told of with the sessions before, and write it down.

    `chunks` reads the stage's source again, `sizes` are the records in each of its shards; `anew` says that this
    session has made anew what was there with other settings. A history that cannot be read or written costs the run
    nothing: it is said, and the next session tells of these rows as well. Raises BadInput if a shard of the run is
    damaged.
    """
    alike = f"{stage}-{digest(source)[:8]}-"
    own = f"{alike}{_identity(run, stage)}-"
    try:
        first = history.told(own)
        if first >= sum(sizes.values()):
            return ()
        earlier = history.sessions(alike)[-LOOK_BACK:]
        taken = _taken(run, stage, history, own, anew)
    except CaiError as error:
        say(f"{error} What this session made is compared with nothing, and not in the history.")
        return ()
    for place in history.damaged:
        say(f"{place} is damaged and passed over; the comparison with earlier sessions goes without it.")
    measured = measure(run, stage, new_rows(chunks, sizes, first))
    figures = [
        _compared(one, earlier, bounds)
        for one in _figures(run, stage, source, first, sum(sizes.values()) - first, measured, taken)
    ]
    if not figures:  # of the new rows none makes a pair
        return ()
    alarms = tuple(_alarm(one, earlier) for one in figures if one.shifted)
    for alarm in alarms:
        say(alarm.sentence)
    try:
        history.add(own, figures)
    except CaiError as error:
        say(f"{error} What this session made is not in the history; the next one will tell of it.")
    return alarms


def _identity(run: Run, stage: str) -> str:
    """What names a run's folder also when it is moved, and another run that is begun in its place differently."""
    return digest([next(iter(run.sessions(stage))), run.settings()[stage]])[:12]


def _taken(run: Run, stage: str, history: History, own: str, anew: bool) -> Json:
    """What the sessions of a stage took since it was last told of, so also those that were stopped before they could.

    Where that cannot be known, what the last of them took.
    """
    sessions = run.sessions(stage)
    before = History(history.folder).sessions(own)  # of another one, which does not name what is damaged again
    last = max(len(sessions) - 1, 0)
    told: int | None = last if anew else 0
    if before:
        told = before[-1][0]["sessions"]  # None where an earlier version wrote it
    if told is None or len(before) < len(history.names(own)):
        told = last
    total = cost(sessions[told:])
    return {"sessions": len(sessions)} | {name: total[name] for name in COST if name != "sessions"}


def _figures(
    run: Run, stage: str, source: str, first: int, records: int, measured: Mapping[str, Mean], taken: Json
) -> Iterator[Figure]:
    finished = datetime.now(UTC).isoformat(timespec="milliseconds")
    belongs = run.settings()[stage]
    models = ", ".join(sorted(set(belongs["models"].values())))
    constitution, templates, checks = (
        belongs["texts"].get(f"{name}_sha", "") for name in ("constitution", "templates", "checks")
    )
    for name, mean in measured.items():
        yield Figure(
            finished, str(run.folder), stage, source, first, records, name, mean.values, mean.mean, mean.deviation,
            None, False, models, constitution, templates, checks, digest(belongs["settings"]), **taken,
        )  # fmt: skip


# How they compare


def _compared(figure: Figure, earlier: Sequence[Sequence[Json]], bounds: Mapping[str, Bound]) -> Figure:
    before = _pooled(figure.figure, earlier)
    if not before.values:
        return figure
    bound, by = bounds[figure.figure], abs(figure.mean - before.mean)
    beyond = by > bound.by * (abs(before.mean) if bound.relative else 1.0)
    return replace(figure, earlier=before.mean, shifted=beyond and by > SIGMAS * _error(figure, before))


def _pooled(name: str, sessions: Sequence[Sequence[Json]]) -> Mean:
    """A figure over several sessions as one."""
    pooled = Mean()
    for row in (row for rows in sessions for row in rows if row["figure"] == name):
        pooled.join(Mean(row["values"], row["mean"], row["deviation"] ** 2 * row["values"]))
    return pooled


def _error(now: Figure, before: Mean) -> float:
    """The standard error of the difference, if both were the same: a rate of 0 among few rows has no deviation of its
    own, and is no proof, so the deviation is that over both together."""
    both = Mean(now.values, now.mean, now.deviation**2 * now.values)
    both.join(before)
    return both.deviation * math.sqrt(1 / now.values + 1 / before.values)


def too_few(values: int, before: int) -> bool:
    """Whether no difference between so many values of a session and of those before could be beyond chance.

    Two groups that agree within themselves lie sqrt(values + before) standard errors apart, and no others further.
    """
    return values + before <= SIGMAS**2


def _alarm(figure: Figure, earlier: Sequence[Sequence[Json]]) -> Alarm:
    assert figure.earlier is not None
    having = [rows[0] for rows in earlier if any(row["figure"] == figure.figure for row in rows)]
    last: Json = having[-1]
    changed = [word for name, word in _MADE_WITH.items() if last[name] != getattr(figure, name)]
    since = (
        f"Since the last of them {_listed(changed)} changed."
        if changed
        else "Nothing that it was made with has changed since."
    )
    times = "the session" if len(having) == 1 else f"the {len(having)} sessions"
    sentence = (
        f"Alarm: in this session of cai {figure.stage} on {figure.run}, {figure.figure} is {figure.mean:.3g}; over "
        f"{times} before it was {figure.earlier:.3g}. {since}"
    )
    return Alarm(figure.run, figure.stage, figure.figure, figure.mean, figure.earlier, sentence)


_MADE_WITH = {
    "models": "the model",
    "constitution_sha": "the constitution",
    "templates_sha": "the templates",
    "checks_sha": "the checks",
    "settings_sha": "the settings",
}


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _seal(name: str, rows: Any) -> str:
    return digest([name, rows])[:16]
