"""The line of a session that was killed before it could write it itself, so that the cost of a run is all of its calls.

Every finished call is in the journal, with its tokens and its time. Those that no session's line accounts for were
asked by the last command that worked on the stage, if that was killed: the next one finds them and writes the line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from cai.journal import JUDGING, Entry, Tally, completion_of, read_entries
from cai.seal import Json
from cai.store import Run

_GROUPS = (("generate", "revise"), ("label", "calibrate"))  # by what their calls are for: they share the journal
_EVER, _NEVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def add_killed_sessions(run: Run) -> None:
    """Write a line for each unfinished stage that was killed with calls in no line. Raises what `add_session` does.

    Its seconds are those from its first call to the end of its last: how long it took to begin is not known.
    """
    finished = run.manifest()
    for stage in run.settings():
        if stage not in finished and (line := _killed(run, stage)) is not None:
            run.add_session(line)


def _killed(run: Run, stage: str) -> Json | None:
    """The line of the last command on a stage: what the journal has, less what all lines have. None if that is none."""
    group = next(one for one in _GROUPS if stage in one)
    lines = [line for line in run.sessions() if line.get("stage") in group]
    begun, ended = _begun_and_ended(lines)
    tally, times = Tally(), (_NEVER, _EVER)
    for entry in _entries(run):
        at = _asked_at(entry)
        # An earlier version did not mark the calls of other runs, but those were asked before this one began.
        if at >= begun and (entry.get("purpose") in JUDGING) == (group == _GROUPS[1]):
            tally.count(completion_of(entry))
            if at >= ended:
                times = min(times[0], at), max(times[1], at + timedelta(seconds=entry["seconds"]))
    missing = {name: max(all_ - sum(line.get(name, 0) for line in lines), 0) for name, all_ in asdict(tally).items()}
    if not missing["asked_calls"]:
        return None
    started, seconds = (times[0], (times[1] - times[0]).total_seconds()) if times[0] < times[1] else (ended, 0.0)
    told = {"stage": stage, "started": started.isoformat(timespec="seconds"), "seconds": round(seconds, 3)}
    return {**told, **asdict(Tally()), **missing, "killed": True}


def _begun_and_ended(lines: Sequence[Json]) -> tuple[datetime, datetime]:
    """When the first of these sessions began and the last one ended, in whole seconds as the journal has them: of the
    calls of that last second nobody knows whose they are, so a killed session may seem to begin a second early."""
    begun = [datetime.fromisoformat(line["started"]) for line in lines]
    ended = [start + timedelta(seconds=line["seconds"]) for start, line in zip(begun, lines, strict=True)]
    return min(begun, default=_EVER), max(ended, default=_EVER).replace(microsecond=0)


def _entries(run: Run) -> Iterator[Entry]:
    """What the run itself has asked, as far as the journal says when: earlier versions did not write it down."""
    for segment in sorted((run.folder / "journal").glob("part-*.jsonl")):
        yield from (one for one in read_entries(segment) if _has_time(one) and not one.get("taken_over"))


def _has_time(entry: Entry) -> bool:
    try:
        return _asked_at(entry).tzinfo is not None and isinstance(entry["seconds"], float | int)
    except (KeyError, TypeError, ValueError):
        return False


def _asked_at(entry: Entry) -> datetime:
    return datetime.fromisoformat(entry["asked_at"])
