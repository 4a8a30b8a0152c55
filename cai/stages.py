"""One function per stage: from its settings to its finished tables. The command line and the Prefect flows call these.

The order is the same in each: read all that a person may have got wrong, then find out what is still to do, then open
the engines if anything is, and only then write.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cai.audit import TABLES, cost, count_stage
from cai.checks import checks_sha
from cai.constitution import load_constitution
from cai.engines import Engine, Spec, open_engine
from cai.errors import BadInput, CheckFailed
from cai.ids import digest
from cai.inputs import Chunk, Prompts
from cai.journal import OtherRuns, Tally
from cai.revise import LETTERS, Roles, generate, revise
from cai.rows import Drop
from cai.runner import Watch, Work, run_chunks
from cai.settings import GenerateSettings, ReviseSettings
from cai.store import Json, Run
from cai.templates import load_templates


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished stage: its manifest entry, and what this session of it asked and how long it took."""

    entry: Json
    session: Tally
    seconds: float


async def generate_stage(settings: GenerateSettings, watch: Watch) -> Outcome:
    """Answer the prompts. Raises BadInput, EngineGaveUp."""
    prompts = _prompts("generate", settings)
    templates = load_templates(settings.templates, names=["respond"])
    engines = _open([settings.spec()])
    generator = engines[settings.spec()]
    work = partial(generate, generator=generator, templates=templates, seed=settings.seed, sampling=settings.response())
    stage = _Stage("generate", settings, {"generator": generator}, {"templates_sha": templates.sha}, templates.texts)
    return await _run(stage, prompts, work, watch)


async def revise_stage(settings: ReviseSettings, watch: Watch) -> Outcome:
    """Answer, criticise and revise. Raises BadInput, EngineGaveUp."""
    prompts = _prompts("revise", settings)
    constitution = load_constitution(settings.constitution)
    templates = load_templates(
        settings.templates, settings.wording, settings.few_shot == "on", constitution.principles, constitution.question
    )
    if settings.principles == "fitting" and len(constitution.principles) > len(LETTERS):
        raise BadInput(
            "--principles fitting", f"{len(constitution.principles)} principles in {constitution.path}",
            f"at most {len(LETTERS)}, one for each letter", "Take --principles one or all.",
        )  # fmt: skip
    specs = {
        "generator": settings.spec(),
        "critic": settings.spec(settings.critic, settings.critic_endpoint),
        "reviser": settings.spec(settings.reviser, settings.reviser_endpoint),
    }
    engines = _open(specs.values())
    roles = {role: engines[spec] for role, spec in specs.items()}
    work = partial(
        revise, roles=Roles(**roles), constitution=constitution, templates=templates, method=settings.method()
    )
    texts = {"constitution": constitution.name, "constitution_sha": constitution.sha, "templates_sha": templates.sha}
    texts["checks_sha"] = checks_sha()
    copies = {**templates.texts, "constitution.yaml": constitution.text}
    return await _run(_Stage("revise", settings, roles, texts, copies), prompts, work, watch)


@dataclass(frozen=True, slots=True)
class _Stage:
    name: str
    settings: GenerateSettings
    roles: Mapping[str, Engine]
    texts: Mapping[str, str]
    copies: Mapping[str, str]

    def belongs(self) -> Json:
        """What the stage's data depends on, beside the prompts: a folder holds the data of one such set."""
        models = {role: engine.model for role, engine in self.roles.items()}
        return {"settings": self.settings.compared(), "models": models, "texts": dict(self.texts)}


def _prompts(stage: str, settings: GenerateSettings) -> Prompts:
    prompts = Prompts(settings.prompts, stage, settings.limit, settings.samples, settings.strict)
    prompts.look()
    return prompts


def _open(specs: Iterable[Spec]) -> dict[Spec, Engine]:
    return {spec: open_engine(spec) for spec in dict.fromkeys(specs)}


async def _run(stage: _Stage, prompts: Prompts, work: Work, watch: Watch) -> Outcome:
    settings, table = stage.settings, TABLES[stage.name]
    belongs = stage.belongs()
    begun = time.monotonic()
    with Run(Path(settings.out)) as run:
        _refuse_other_settings(run, stage.name, belongs, settings.out)
        plan = await _plan(run, stage.name, table, digest(belongs), prompts, settings.shard_rows)
        tally = Tally()
        watch.begin(stage.name, plan.rows, plan.finished_rows)
        try:
            if plan.open_chunks:
                await _work_through(run, stage, plan, prompts, work, tally, watch)
        finally:
            watch.end()
        if plan.open_chunks or stage.name not in run.manifest():
            run.write_manifest(stage.name, _manifest_entry(run, stage, table, plan, belongs))
        outcome = Outcome(run.manifest()[stage.name], tally, time.monotonic() - begun)
    counts = outcome.entry["counts"]
    if counts["kept"] == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts["dropped_by_reason"].items())
        raise CheckFailed(
            f"{settings.out}: none of {counts['read']} rows was kept ({reasons}). See its drops with cai show."
        )
    return outcome


async def _work_through(
    run: Run, stage: _Stage, plan: "_Plan", prompts: Prompts, work: Work, tally: Tally, watch: Watch
) -> None:
    """Open the engines, write down what the run belongs to, and make the shards that are not there yet."""
    settings, table = stage.settings, TABLES[stage.name]
    begun, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    others = OtherRuns([Path(other) for other in settings.reuse]) if settings.reuse else None
    for place in others.damaged if others is not None else ():
        watch.say(f"{place} is damaged and passed over.")
    async with AsyncExitStack() as engines:
        for engine in dict.fromkeys(stage.roles.values()):
            await engines.enter_async_context(engine)
        belongs = stage.belongs()
        run.belong(stage.name, belongs, stage.copies)
        run.write_manifest(stage.name, None)
        in_flight = settings.rows_in_flight or 2 * max(engine.slots for engine in stage.roles.values())
        chunks = _still_to_do(prompts, settings.shard_rows, plan.open_chunks)
        try:
            await run_chunks(run, stage.name, table, chunks, work, digest(belongs), in_flight, tally, others, watch)
        finally:
            seconds = round(time.monotonic() - begun, 3)
            run.add_session({"stage": stage.name, "started": started, "seconds": seconds, **asdict(tally)})


@dataclass(frozen=True, slots=True)
class _Plan:
    rows: int
    finished_rows: int
    open_chunks: Mapping[int, str]
    prompts_sha: str


async def _plan(run: Run, stage: str, table: str, settings_sha: str, prompts: Prompts, shard_rows: int) -> _Plan:
    """Read the whole input once and compare it with the shards that are there, before anything is written or asked."""
    rows, finished_rows, good = 0, 0, 0
    open_chunks: dict[int, str] = {}
    shas: list[str] = []
    first_drop: Drop | None = None
    for chunk in prompts.chunks(shard_rows):
        await asyncio.sleep(0)  # so that a signal is heeded also in a long source
        drops = [item for item in chunk.items if isinstance(item, Drop)]
        first_drop = first_drop or next(iter(drops), None)
        rows, good = rows + len(chunk.items), good + len(chunk.items) - len(drops)
        shas.append(chunk.sha)
        mark = run.mark(stage, table, chunk.index)
        if mark is not None and len(mark.inputs) > len(chunk.digests):
            raise _too_few(prompts.spec, rows)
        if mark is not None and mark.inputs != chunk.digests[: len(mark.inputs)]:
            raise BadInput(
                prompts.spec, f"other rows than this run was made from (in shard {chunk.index})",
                "the same rows, or more behind them",
                f"Choose another --out, with --reuse {run.folder} to keep the finished calls.",
            )  # fmt: skip
        if mark is not None and mark.inputs == chunk.digests and mark.settings_sha == settings_sha:
            finished_rows += len(chunk.items)
        else:
            open_chunks[chunk.index] = chunk.sha
    if rows == 0:
        raise BadInput(prompts.spec, "no records", "at least one prompt", "Check the file.")
    if good == 0 and first_drop is not None:
        place, _, problem = first_drop.detail.partition(": found ")
        found, _, expected = problem.rpartition(", expected ")
        raise BadInput(place, found, expected, f"None of the {rows} records can be used; this is the first.")
    if any(index >= len(shas) for index in run.finished_shards(table)):
        raise _too_few(prompts.spec, rows)
    return _Plan(rows, finished_rows, open_chunks, digest(shas))


def _too_few(spec: str, rows: int) -> BadInput:
    return BadInput(
        spec, f"{rows} rows", "at least as many as the run already holds", "Choose another --out, or raise --limit."
    )


def _still_to_do(prompts: Prompts, shard_rows: int, open_chunks: Mapping[int, str]) -> Iterator[Chunk]:
    seen = 0
    for chunk in prompts.chunks(shard_rows):
        if chunk.index in open_chunks:
            if chunk.sha != open_chunks[chunk.index]:
                raise BadInput(prompts.spec, "other rows than a moment ago", "a source that stands still", "Run again.")
            yield chunk
            seen += 1
    if seen < len(open_chunks):
        raise BadInput(prompts.spec, "fewer rows than a moment ago", "a source that stands still", "Run again.")


def _refuse_other_settings(run: Run, stage: str, belongs: Json, out: str) -> None:
    kept: Any = run.settings().get(stage)
    if kept is None or kept == belongs:
        return
    old, new = _flat(kept), _flat(belongs)
    differ = [
        f"{name} ({old.get(name)!r} there, {new.get(name)!r} now)"
        for name in sorted(old | new)
        if old.get(name) != new.get(name)
    ]
    raise BadInput(
        f"--out {out}", f"a run with other settings: {', '.join(differ)}", "the same settings",
        f"Choose another --out, with --reuse {out} to keep the calls that have not changed.",
    )  # fmt: skip


def _flat(belongs: Json) -> dict[str, Any]:
    return {
        **belongs["settings"],
        **belongs["texts"],
        **{f"{role} model": model for role, model in belongs["models"].items()},
    }


def _manifest_entry(run: Run, stage: _Stage, table: str, plan: _Plan, belongs: Json) -> Json:
    counts = count_stage(run, stage.name)
    if counts["read"] != plan.rows:
        raise AssertionError(f"{plan.rows} rows were read, but {counts['read']} are kept or dropped")
    libraries = {"cai": version("cai"), "pyarrow": version("pyarrow")}
    for engine in stage.roles.values():
        libraries |= engine.versions()
    return {
        **belongs,
        "prompts": {
            "source": stage.settings.prompts,
            "limit": stage.settings.limit,
            "rows": plan.rows,
            "sha": plan.prompts_sha,
        },
        "versions": libraries,
        "counts": counts,
        "cost": cost(run.sessions(stage.name)),
        "files": run.files(stage.name, table),
    }
