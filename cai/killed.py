"""The line of a session that was killed before it could write it itself, so that the cost of a run is all of its calls.

Every finished call is in the journal, with its tokens and its time. Those that no session's line accounts for were
asked by the last command that worked on the stage, if that was killed: the next one finds them and writes the line.
"""

import heapq
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime

from cai.journal import JUDGING, Entry, Tally, completion_of, read_entries
from cai.seal import Json
from cai.store import Run

_GROUPS = (("generate", "revise"), ("label", "calibrate"))  # by what their calls are for: they share the journal
_EVER = datetime.min.replace(tzinfo=UTC)


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
    # An earlier version did not mark the calls of other runs, but those were asked before this one began.
    begun = min((datetime.fromisoformat(line["started"]) for line in lines), default=_EVER)
    entries = [one for one in _entries(run) if (one.get("purpose") in JUDGING) == (group == _GROUPS[1])]
    entries = [one for one in entries if _asked_at(one) >= begun]
    tally = Tally()
    for entry in entries:
        tally.count(completion_of(entry))
    missing = {name: max(all_ - sum(line.get(name, 0) for line in lines), 0) for name, all_ in asdict(tally).items()}
    # Of calls of the same second nobody knows which session asked them; their sums are right all the same.
    latest = heapq.nlargest(missing["asked_calls"], entries, key=_asked_at)
    if not latest:
        return None
    started = min(map(_asked_at, latest))
    seconds = max((_asked_at(one) - started).total_seconds() + one["seconds"] for one in latest)
    told = {"stage": stage, "started": started.isoformat(timespec="seconds"), "seconds": round(seconds, 3)}
    return {**told, **asdict(Tally()), **missing, "killed": True}


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
