"""How a stage is done: its shards are made, and the line of its session and its entry in the manifest are written."""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

from cai import calls, ids
from cai import label as label_module
from cai import revise as revise_module
from cai.actors import Actors
from cai.as_read import reader_sha
from cai.audit import TABLES, cost, count_stage, unread
from cai.calls import Ask
from cai.engines import kind_of
from cai.errors import CaiError, CheckFailed
from cai.history import Alarm, History, tell
from cai.ids import digest, file_digest
from cai.journal import OtherRuns, Tally
from cai.killed import add_killed_sessions
from cai.pairs import NO_PAIR, answers_from
from cai.rows import Pair, Row, shortenable
from cai.runner import Here, Shards, Tables, Team, Watch, Work
from cai.seal import Json
from cai.settings_parts import Comparing
from cai.stage_plan import Plan, Source, Stage, make_plan, refuse_other_work, still_to_do
from cai.store import Run


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished stage: its folder, its manifest entry, what this session of it asked and how long it took, and what
    has shifted since the sessions before."""

    stage: str
    folder: str
    entry: Json
    session: Tally
    seconds: float
    alarms: tuple[Alarm, ...] = ()


async def run_stage(
    stage: Stage, source: Source, work: Work, tables: Tables, watch: Watch,
    amend: Callable[[Run], None] | None = None, anew: bool = False,
) -> Outcome:  # fmt: skip
    """Do what is still to do. `amend` has the last word on the finished tables, and takes the stage out of the manifest
    before it changes them.

    Raises BadInput, CannotWrite, EngineGaveUp, and CheckFailed if no row is kept (that no two answers differ is fine).
    """
    belongs = stage.belongs()
    begun = time.monotonic()
    with Run(Path(stage.out)) as run:
        refuse_other_work(run, stage, belongs, anew)
        plan = await make_plan(run, stage, digest(belongs), source, anew)
        for place in run.damaged_lines():
            watch.say(f"{place} is damaged and passed over; no finished call hangs on it.")
        for path in plan.strays:
            watch.say(f"{path} is in no line of shards.jsonl, so it is no data: its shard is made anew.")
        if (left := unread(stage.name, _read_of(stage, source, plan))) is not None:
            watch.say(left)
        add_killed_sessions(run)
        tally = Tally()
        watch.begin(stage.name, plan.rows, plan.finished_rows)
        try:
            if plan.to_do():
                await _work_through(run, stage, belongs, plan, source, work, tables, tally, watch)
            else:
                run.keep_copies(stage.name, stage.copies)
        finally:
            watch.end()
        if amend is not None:
            amend(run)
        late = _add_missing_session(run, stage)
        if plan.to_do() or late or stage.name not in run.manifest() or not run.is_listed(stage.name):
            run.write_manifest(stage.name, _manifest_entry(run, stage, source, plan, belongs))
        alarms = _compare(run, stage, source, plan, watch, anew)
        outcome = Outcome(stage.name, stage.out, run.manifest()[stage.name], tally, time.monotonic() - begun, alarms)
    counts = outcome.entry["counts"]
    if counts["kept"] == 0 and set(counts["dropped_by_reason"]) == {NO_PAIR}:
        watch.say(f"{stage.out}: no two answers differ, so there are no pairs to judge.")
    elif counts["kept"] == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts["dropped_by_reason"].items())
        raise CheckFailed(
            f"{stage.out}: none of {counts['read']} rows was kept ({reasons}). See its drops with cai show."
        )
    return outcome


def _add_missing_session(run: Run, stage: Stage) -> bool:
    """Write the line of a session that was killed without a call, when its last shard was there.

    Whether there was none. The history names a run after its first one.
    """
    if run.sessions(stage.name):
        return False
    run.add_session({"stage": stage.name, "started": _now(), "seconds": 0.0, **asdict(Tally())})
    return True


def _limit(stage: Stage) -> int | None:
    return getattr(stage.settings, "limit", None)


def _read_of(stage: Stage, source: Source, plan: Plan) -> Json:
    """What the manifest says of the source: where it is, and how much of it was read."""
    return {"source": source.spec, "limit": _limit(stage), "unread": plan.unread}


def _compare(run: Run, stage: Stage, source: Source, plan: Plan, watch: Watch, anew: bool) -> tuple[Alarm, ...]:
    """Write what is new in a finished stage into the history beside the run, and compare it with what is there."""
    settings = stage.settings
    if not isinstance(settings, Comparing) or settings.history == "off":
        return ()
    folder = Path(os.path.abspath(stage.out)).parent / "history" if settings.history == "on" else Path(settings.history)
    origin = answers_from(run) if stage.name == "label" else source.spec
    chunks, bounds = partial(source.chunks, stage.shard_rows), settings.bounds()
    return tell(run, stage.name, chunks, plan.sizes, origin, History(folder), bounds, watch.say, anew)


async def _work_through(
    run: Run, stage: Stage, belongs: Json, plan: Plan, source: Source, work: Work, tables: Tables, tally: Tally,
    watch: Watch,
) -> None:  # fmt: skip
    """Open the engines, write down what the run belongs to, and make the shards that are not there yet."""
    settings = stage.settings
    begun, started = time.monotonic(), _now()
    others = OtherRuns([Path(other) for other in settings.reuse], watch.say) if settings.reuse else None
    for place in others.damaged if others is not None else ():
        watch.say(f"{place} is damaged and passed over.")
    async with _team(stage, watch) if plan.good else Here([], None) as team:
        if stage.name in run.manifest():  # first: it must answer for no other settings than it was finished with
            run.write_manifest(stage.name, None)
        run.belong(stage.name, belongs, stage.copies)
        run.write_manifest(stage.name, None)
        for index in plan.gone:
            run.remove_shard(stage.name, TABLES[stage.name], index)
        if settings.long_prompts == "shorten":
            work = partial(_shortening, work)
        shards = Shards(run, stage.name, tables, digest(belongs), tally, others, watch)
        chunks = still_to_do(source, stage.shard_rows, plan.open_chunks)
        whole = False
        try:
            await team.work_through(shards, chunks, work)
            whole = True
        finally:
            tally.engine_restarts = team.restarts
            seconds = round(time.monotonic() - begun, 3)
            with nullcontext() if whole else suppress(CaiError):  # what ended the work is what a person must hear of
                told = {"stage": stage.name, "started": started, "seconds": seconds, **asdict(tally)}
                run.add_session(told | _asked_with(stage))


def _asked_with(stage: Stage) -> Json:
    """What a session's calls were asked with: the kind of engine in each role, and the versions of the libraries."""
    kinds = {role: kind_of(spec) for role, spec in stage.settings.specs().items()}
    return {"engines": kinds, "versions": _versions(stage)}


def _versions(stage: Stage) -> dict[str, str]:
    libraries = {"cai": version("cai"), "pyarrow": version("pyarrow")}
    for engine in stage.roles.values():
        libraries |= engine.versions()
    return libraries


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _team(stage: Stage, watch: Watch) -> Team:
    """The engines of a stage: one model in three roles is one engine."""
    settings, specs = stage.settings, stage.settings.specs()
    engines = {engine: specs[role] for role, engine in stage.roles.items()}
    if settings.on == "ray":
        return Actors(engines, settings.actors(), settings.rows_in_flight, bool(settings.reuse), watch)
    return Here(list(engines), settings.rows_in_flight)


async def _shortening(work: Work, item: Row | Pair, ask: Ask) -> object:
    """The work on a row or pair of which the older turns may be left out."""
    return await work(shortenable(item), ask)


def code_sha() -> str:
    """The digest of the code that makes a row of a model's answers: with other code, a row may come out otherwise."""
    return digest([file_digest(Path(str(one.__file__))) for one in (calls, ids, label_module, revise_module)])


def _manifest_entry(run: Run, stage: Stage, source: Source, plan: Plan, belongs: Json) -> Json:
    files = run.files(stage.name, TABLES[stage.name])  # first, since a damaged one must not be counted
    counts = count_stage(run, stage.name)
    if counts["read"] != plan.rows:
        raise AssertionError(f"{plan.rows} rows were read, but {counts['read']} are kept or dropped")
    return {
        **belongs,
        "prompts": {
            **_read_of(stage, source, plan),
            "rows": plan.rows,
            "sha": plan.prompts_sha,
            "made_of": source.made_of,
            "file": plan.file,
            "read_by": reader_sha(),
            "other_places": list(plan.other_places),
        },
        "versions": _versions(stage),
        "code_sha": code_sha(),
        "counts": counts,
        "cost": cost(run.sessions(stage.name)),
        "files": files,
    }
