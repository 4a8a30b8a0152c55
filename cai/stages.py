"""One function per stage: from its settings to its finished tables. The command line and the Prefect flows call these.

The order is the same in each: read all that a person may have got wrong, then find out what is still to do, then open
the engines if anything is, and only then write.
"""

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from cai import calls, ids
from cai import label as label_module
from cai import revise as revise_module
from cai.actors import Actors
from cai.audit import TABLES, cost, count_stage
from cai.calibrate import judge_figures, temperature_figures
from cai.calls import Ask
from cai.checks import checks_sha
from cai.constitution import Constitution, Principle, load_constitution
from cai.engines import Engine, Spec, kind_of, open_engine
from cai.errors import BadInput, CaiError, CheckFailed
from cai.export import export, export_version
from cai.files import write_atomically
from cai.gold import ConstitutionPairs, GoldPairs
from cai.history import Alarm, History, tell
from cai.ids import digest, file_digest
from cai.inputs import Chunk, Prompts
from cai.journal import OtherRuns, Tally
from cai.label import judge, soft_label, tables
from cai.once import once
from cai.pairs import NO_PAIR, RunPairs, answers_from
from cai.reliability import reliability
from cai.review import check_review, labels_entry, read_review, review
from cai.revise import LETTERS, Roles, generate, revise
from cai.rows import Drop, Pair, Row, shortenable
from cai.runner import Here, Shards, Tables, Team, Watch, Work
from cai.settings import (
    CalibrateSettings,
    ConstitutionTestSettings,
    ExportSettings,
    GenerateSettings,
    GoldSettings,
    LabelSettings,
    ReviseSettings,
)
from cai.settings_engine import EngineSettings
from cai.settings_load import repeat
from cai.settings_parts import Comparing, JudgeSettings
from cai.signing import read_private_key
from cai.store import Json, Run, open_run
from cai.sums import stray
from cai.temperature import gather
from cai.templates import JUDGE, Templates, load_templates
from cai.threads import in_thread


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


async def generate_stage(settings: GenerateSettings, watch: Watch) -> Outcome:
    """Answer the prompts. Raises BadInput, CannotWrite, EngineGaveUp, and CheckFailed if no row is kept."""
    prompts = _prompts("generate", settings)
    templates = load_templates(settings.templates, names=["respond"])
    engines = _open([settings.spec()])
    generator = engines[settings.spec()]
    work = partial(generate, generator=generator, templates=templates, seed=settings.seed, sampling=settings.response())
    texts = {"templates_sha": templates.sha}
    stage = _Stage(
        "generate", settings, settings.out, {"generator": generator}, texts, templates.texts, settings.shard_rows
    )
    return await _run(stage, prompts, work, lambda rows: {"responses": rows}, watch)


async def revise_stage(settings: ReviseSettings, watch: Watch) -> Outcome:
    """Answer, criticise and revise. Raises BadInput, CannotWrite, EngineGaveUp, and CheckFailed if no row is kept."""
    prompts = _prompts("revise", settings)
    constitution = once(load_constitution, settings.constitution)
    templates = load_templates(
        settings.templates, settings.wording, settings.few_shot == "on", constitution.principles, constitution.question
    )
    if settings.principles == "fitting" and len(constitution.principles) > len(LETTERS):
        raise BadInput(
            "--principles fitting", f"{len(constitution.principles)} principles in {constitution.path}",
            f"at most {len(LETTERS)}, one for each letter", "Take --principles one or all.",
        )  # fmt: skip
    specs = settings.specs()
    engines = _open(specs.values())
    roles = {role: engines[spec] for role, spec in specs.items()}
    work = partial(
        revise, roles=Roles(**roles), constitution=constitution, templates=templates, method=settings.method()
    )
    texts = {"constitution": constitution.name, "constitution_sha": constitution.sha, "templates_sha": templates.sha}
    texts["checks_sha"] = checks_sha()
    copies = {**templates.texts, "constitution.yaml": constitution.text}
    stage = _Stage("revise", settings, settings.out, roles, texts, copies, settings.shard_rows)
    return await _run(stage, prompts, work, lambda rows: {"trajectories": rows}, watch)


async def label_stage(settings: LabelSettings, watch: Watch) -> Outcome:
    """Judge pairs of a run's answers, into the run's own folder.

    People's answers (`apply_review`) come before the judge's; what is to be reviewed is in review.jsonl afterwards.
    Raises BadInput, CannotWrite, EngineGaveUp, and CheckFailed if there are pairs and none of them is kept.
    """
    run = open_run(settings.run)
    if settings.apply_review is not None:
        return _apply_review(run, settings.apply_review, settings.review_share, watch)
    pairs = RunPairs(run, settings.pairs, settings.limit)
    stage, work = _judging("label", settings, settings.run, _labelling_by(run, settings))
    amend = partial(review, answers={}, share=settings.review_share, seed=settings.seed, say=watch.say)
    return await _run(stage, pairs, work, tables, watch, amend, settings.replace)


def _labelling_by(run: Run, settings: LabelSettings) -> Constitution:
    """The constitution that is named, or else the one that the run was revised with."""
    return once(load_constitution, settings.constitution or str(run.constitution("revise") or "harmlessness"))


def _apply_review(run: Run, file: str, share: float, watch: Watch) -> Outcome:
    """Enter people's answers into the labels that are there, whatever they were made with. No model is asked."""
    begun = time.monotonic()
    answers = read_review(file)
    with run:
        check_review(run, answers)
        entry = labels_entry(run)
        assert entry is not None
        review(run, answers, share, entry["settings"]["seed"], watch.say)
        # A label has changed, now or before a kill, or only what is in the files of the review.
        if "label" not in run.manifest() or not run.is_listed("label"):
            entry |= {"counts": count_stage(run, "label"), "files": run.files("label", TABLES["label"])}
            run.write_manifest("label", entry)
    return Outcome("label", str(run.folder), entry, Tally(), time.monotonic() - begun)


async def check_label(settings: LabelSettings) -> None:
    """Raise BadInput if the judge is not there, or the run has labels of other settings: before anything is spent.

    A judge on a server is asked whether it is there; of another only the files are looked at, since loading takes long.
    """
    run = Run(Path(settings.run))
    stage, _ = _judging("label", settings, settings.run, _labelling_by(run, settings))
    async with AsyncExitStack() as engines:
        if settings.spec().endpoints and "label" not in run.manifest():
            await engines.enter_async_context(stage.roles["judge"])
        _refuse_other_work(run, stage, stage.belongs(), settings.replace)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A judge that was measured: the stage that asked it, and the figures of `calibrate.judge_figures`."""

    outcome: Outcome
    figures: Json


async def calibrate_stage(settings: CalibrateSettings, watch: Watch) -> Calibration:
    """Judge gold pairs, and measure the judge.

    Raises BadInput, CannotWrite, EngineGaveUp, and CheckFailed if no pair is kept.
    """
    gold = GoldPairs(settings.gold, settings.limit, settings.strict)
    gold.look()
    constitution = once(load_constitution, settings.constitution)
    stage, work = _judging("calibrate", settings, settings.out, constitution, settings.shard_rows)
    stage = _in_its_folder(stage, settings, settings.gold)
    return await _measured(stage, gold, work, constitution, watch)


async def constitution_stage(settings: ConstitutionTestSettings, watch: Watch) -> Calibration:
    """Judge a constitution's own examples, each by its principle.

    Raises BadInput, CannotWrite, EngineGaveUp, and CheckFailed if no example is kept.
    """
    constitution = load_constitution(settings.constitution)
    examples = ConstitutionPairs(constitution)
    stage, work = _judging("calibrate", settings, settings.out, constitution, principles=examples.principles)
    stage = _in_its_folder(stage, settings, settings.constitution)
    return await _measured(stage, examples, work, constitution, watch)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Exported datasets: their folder, and what its manifest.json holds."""

    folder: str
    manifest: Json


async def export_stage(settings: ExportSettings, watch: Watch) -> Dataset:
    """Write a run's answers and labels as datasets, or as a new version of them, signed if the settings say so.

    Raises BadInput, CannotWrite.
    """
    run, method = open_run(settings.run), settings.export_method(settings.seed)
    key = read_private_key(f"--sign {settings.sign}", settings.sign) if settings.sign is not None else None
    command = repeat("cai export", settings)
    stopped = threading.Event()

    def go_on() -> None:
        if stopped.is_set():
            raise CaiError("stopped")

    def make() -> Dataset:
        out = Path(settings.out)
        if settings.versions:
            folder, manifest = export_version(run, out, method, command, watch.say, go_on, key)
            return Dataset(str(folder), manifest)
        return Dataset(settings.out, export(run, out, method, command, watch.say, go_on, key))

    # A thread cannot be broken off: it looks between its steps whether it shall go on, and leaves no folder if not.
    return await in_thread(make, stop=stopped.set)


def check_judge(figures: Json, settings: GoldSettings) -> None:
    """Raise CheckFailed if the judge is under the bar that the settings name."""
    accuracy, flips = figures["accuracy"]["value"], figures["flips"]
    decided = figures["decided"] / figures["n"] if figures["n"] else 0.0
    if settings.min_accuracy is not None and decided < settings.min_decided:
        raise CheckFailed(f"the judge decides {decided:.2f} of the pairs, under --min-decided {settings.min_decided}")
    if settings.min_accuracy is not None and (accuracy is None or accuracy < settings.min_accuracy):
        raise CheckFailed(f"the judge's accuracy is {accuracy}, under --min-accuracy {settings.min_accuracy}")
    if settings.max_flip is not None and flips is not None and flips > settings.max_flip:
        raise CheckFailed(f"{flips} of the judge's verdicts flip with the order, over --max-flip {settings.max_flip}")


_WHO_JUDGES = ("engine", "model", "endpoint", "adapter", "engine_option")


def _in_its_folder(stage: "_Stage", settings: GoldSettings, gold: str) -> "_Stage":
    """Verdicts on gold go to a folder of their own for each set of settings, texts and pairs, if none is given."""
    if settings.out is not None:
        return stage
    told = settings.model_dump(mode="json", include={*settings.compared(), *_WHO_JUDGES, "limit"})
    pairs = [gold, file_digest(Path(gold)) if Path(gold).is_file() else None]
    name = digest([told, stage.texts["constitution_sha"], stage.texts["templates_sha"], pairs])[:12]
    return replace(stage, out=f"data/runs/calibrate-{name}")


async def _measured(
    stage: "_Stage", source: "Source", work: Work, constitution: Constitution, watch: Watch
) -> Calibration:
    figures: Json = {}

    def measure(run: Run) -> None:
        if next(run.records("labels", ["pair_id"]), None) is None:
            return
        figures.update(judge_figures(run.records("pairs"), run.records("verdicts"), run.records("labels")))
        evidence = gather(run.records("pairs"), run.records("verdicts"), run.records("labels"), constitution.weights())
        figures["temperature"] = temperature_figures(evidence, soft_label)
        write_atomically(run.folder / "calibration.json", (json.dumps(figures, indent=2) + "\n").encode())
        write_atomically(run.folder / "reliability.svg", reliability(figures["calibration"]["bins"]).as_file().encode())

    return Calibration(await _run(stage, source, work, tables, watch, measure), figures)


def _judging(
    name: str, settings: JudgeSettings, out: str | None, constitution: Constitution,
    shard_rows: int = 256, principles: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple["_Stage", Work]:  # fmt: skip
    """A stage in which pairs are judged, and its work."""
    templates = once(_judge_templates, settings.templates, constitution.principles, JUDGE[settings.judge_mode])
    spec = settings.spec()
    judging = _open([spec])[spec]
    texts = {"constitution": constitution.name, "constitution_sha": constitution.sha, "templates_sha": templates.sha}
    copies = {**templates.texts, "constitution.yaml": constitution.text}
    work = partial(
        judge, judge=judging, constitution=constitution, templates=templates, method=settings.judging(),
        principles=principles,
    )  # fmt: skip
    return _Stage(name, settings, out or "", {"judge": judging}, texts, copies, shard_rows), work


def _judge_templates(folder: str | None, principles: tuple[Principle, ...], names: tuple[str, ...]) -> Templates:
    return load_templates(folder, principles=principles, names=names)


class Source(Protocol):
    """Where a stage's rows or pairs come from. Iterating over `chunks` reads it anew each time.

    `made_of` is the digest of the rows that pairs are made of; None where they are read from elsewhere.
    """

    spec: str
    made_of: str | None

    def chunks(self, records_in_chunk: int) -> Iterator[Chunk]: ...


@dataclass(frozen=True, slots=True)
class _Stage:
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


def _prompts(stage: str, settings: GenerateSettings) -> Prompts:
    prompts = Prompts(settings.prompts, stage, settings.limit, settings.samples, settings.strict)
    prompts.look()
    return prompts


def _open(specs: Iterable[Spec]) -> dict[Spec, Engine]:
    return {spec: open_engine(spec) for spec in dict.fromkeys(specs)}


async def _run(
    stage: _Stage, source: Source, work: Work, tables: Tables, watch: Watch,
    amend: Callable[[Run], None] | None = None, anew: bool = False,
) -> Outcome:  # fmt: skip
    """Do what is still to do. `amend` has the last word on the finished tables, and takes the stage out of the manifest
    before it changes them."""
    belongs = stage.belongs()
    begun = time.monotonic()
    with Run(Path(stage.out)) as run:
        _refuse_other_work(run, stage, belongs, anew)
        plan = await _plan(run, stage, digest(belongs), source, anew)
        for place in run.damaged_lines():
            watch.say(f"{place} is damaged and passed over; no finished call hangs on it.")
        for path in plan.strays:
            watch.say(f"{path} is in no line of shards.jsonl, so it is no data: its shard is made anew.")
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
        alarms = _compare(run, stage, source, plan, watch)
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


def _add_missing_session(run: Run, stage: _Stage) -> bool:
    """Write the line of a session that was killed when its last shard was there, before it could do so itself.

    Whether there was none. The history names a run after its first one.
    """
    if run.sessions(stage.name):
        return False
    run.add_session({"stage": stage.name, "started": _now(), "seconds": 0.0, **asdict(Tally())})
    return True


def _compare(run: Run, stage: _Stage, source: Source, plan: "_Plan", watch: Watch) -> tuple[Alarm, ...]:
    """Write what is new in a finished stage into the history beside the run, and compare it with what is there."""
    settings = stage.settings
    if not isinstance(settings, Comparing) or settings.history == "off":
        return ()
    folder = Path(os.path.abspath(stage.out)).parent / "history" if settings.history == "on" else Path(settings.history)
    origin = answers_from(run) if stage.name == "label" else source.spec
    chunks, bounds = partial(source.chunks, stage.shard_rows), settings.bounds()
    return tell(run, stage.name, chunks, plan.sizes, origin, History(folder), bounds, watch.say)


async def _work_through(
    run: Run, stage: _Stage, belongs: Json, plan: "_Plan", source: Source, work: Work, tables: Tables, tally: Tally,
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
        chunks = _still_to_do(source, stage.shard_rows, plan.open_chunks)
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


def _asked_with(stage: _Stage) -> Json:
    """What a session's calls were asked with: the kind of engine in each role, and the versions of the libraries."""
    kinds = {role: kind_of(spec) for role, spec in stage.settings.specs().items()}
    return {"engines": kinds, "versions": _versions(stage)}


def _versions(stage: _Stage) -> dict[str, str]:
    libraries = {"cai": version("cai"), "pyarrow": version("pyarrow")}
    for engine in stage.roles.values():
        libraries |= engine.versions()
    return libraries


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _team(stage: _Stage, watch: Watch) -> Team:
    """The engines of a stage: one model in three roles is one engine."""
    settings, specs = stage.settings, stage.settings.specs()
    engines = {engine: specs[role] for role, engine in stage.roles.items()}
    if settings.on == "ray":
        return Actors(engines, settings.actors(), settings.rows_in_flight, bool(settings.reuse), watch)
    return Here(list(engines), settings.rows_in_flight)


async def _shortening(work: Work, item: Row | Pair, ask: Ask) -> object:
    """The work on a row or pair of which the older turns may be left out."""
    return await work(shortenable(item), ask)


@dataclass(frozen=True, slots=True)
class _Plan:
    """`good` of the rows can be worked on; `sizes` are the rows of each shard; `gone` are shards that are there and
    have no rows any more; `strays` are somebody else's files, in the place of shards that are still to be made."""

    rows: int
    good: int
    finished_rows: int
    sizes: Mapping[int, int]
    open_chunks: Mapping[int, str]
    gone: Sequence[int]
    strays: Sequence[Path]
    prompts_sha: str

    def to_do(self) -> bool:
        return bool(self.open_chunks or self.gone)


async def _plan(run: Run, stage: _Stage, settings_sha: str, source: Source, anew: bool) -> _Plan:
    """Read the whole input once and compare it with the shards that are there, before anything is written or asked.

    Other rows than a shard was made of are an error, or with `anew` a reason to make it once more.
    """
    tables = TABLES[stage.name]
    rows, finished_rows, good = 0, 0, 0
    open_chunks: dict[int, str] = {}
    sizes: dict[int, int] = {}
    shas: list[str] = []
    first_drop: Drop | None = None
    for chunk in source.chunks(stage.shard_rows):
        await asyncio.sleep(0)  # so that a signal is heeded also in a long source
        drops = [item for item in chunk.items if isinstance(item, Drop)]
        first_drop = first_drop or next(iter(drops), None)
        rows, good = rows + len(chunk.items), good + len(chunk.items) - len(drops)
        shas.append(chunk.sha)
        sizes[chunk.index] = len(chunk.items)
        mark = run.mark(stage.name, tables, chunk.index)
        if mark is not None and not anew:
            if len(mark.inputs) > len(chunk.digests):
                raise _too_few(stage, source.spec, rows)
            if mark.inputs != chunk.digests[: len(mark.inputs)]:
                found = f"other rows than this run was made from (in shard {chunk.index})"
                raise BadInput(source.spec, found, "the same rows, or more behind them", _elsewhere(stage))
        if mark is not None and mark.inputs == chunk.digests and mark.settings_sha == settings_sha:
            finished_rows += len(chunk.items)
        else:
            open_chunks[chunk.index] = chunk.sha
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
    if gone and not anew:
        raise _too_few(stage, source.spec, rows)
    return _Plan(rows, good, finished_rows, sizes, open_chunks, gone, strays, digest(shas))


def _too_few(stage: _Stage, spec: str, rows: int) -> BadInput:
    remedy = f"Raise --limit, or: {_elsewhere(stage)}"
    return BadInput(spec, f"{rows} rows", "at least as many as the run already holds", remedy)


def _elsewhere(stage: _Stage) -> str:
    """What to do with a folder that belongs to other rows or settings."""
    if stage.name == "label":
        return "Give --replace to make the labels anew; calls that have not changed are kept."
    if stage.name == "calibrate":
        return f"Choose another --out, or remove {stage.out}."
    return f"Choose another --out, with --reuse {stage.out} to keep the calls that have not changed."


def _still_to_do(source: Source, size: int, open_chunks: Mapping[int, str]) -> Iterator[Chunk]:
    seen = 0
    for chunk in source.chunks(size):
        if chunk.index in open_chunks:
            if chunk.sha != open_chunks[chunk.index]:
                raise BadInput(source.spec, "other rows than a moment ago", "a source that stands still", "Run again.")
            yield chunk
            seen += 1
    if seen < len(open_chunks):
        raise BadInput(source.spec, "fewer rows than a moment ago", "a source that stands still", "Run again.")


def _refuse_other_work(run: Run, stage: _Stage, belongs: Json, anew: bool) -> None:
    """Raise BadInput if the folder holds what this stage must not be mixed with; `anew` lets it have other settings."""
    _refuse_other_tables(run, stage)
    if not anew:
        _refuse_other_settings(run, stage, belongs)


def _refuse_other_settings(run: Run, stage: _Stage, belongs: Json) -> None:
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


def _refuse_other_tables(run: Run, stage: _Stage) -> None:
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


def code_sha() -> str:
    """The digest of the code that makes a row of a model's answers: with other code, a row may come out otherwise."""
    return digest([file_digest(Path(str(one.__file__))) for one in (calls, ids, label_module, revise_module)])


def _manifest_entry(run: Run, stage: _Stage, source: Source, plan: _Plan, belongs: Json) -> Json:
    files = run.files(stage.name, TABLES[stage.name])  # first, since a damaged one must not be counted
    counts = count_stage(run, stage.name)
    if counts["read"] != plan.rows:
        raise AssertionError(f"{plan.rows} rows were read, but {counts['read']} are kept or dropped")
    return {
        **belongs,
        "prompts": {
            "source": source.spec,
            "limit": getattr(stage.settings, "limit", None),
            "rows": plan.rows,
            "sha": plan.prompts_sha,
            "made_of": source.made_of,
        },
        "versions": _versions(stage),
        "code_sha": code_sha(),
        "counts": counts,
        "cost": cost(run.sessions(stage.name)),
        "files": files,
    }
