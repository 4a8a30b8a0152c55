"""One function per stage: from its settings to its finished tables. The command line and the Prefect flows call these.

The order is the same in each: read all that a person may have got wrong, then find out what is still to do, then open
the engines if anything is, and only then write. `stage_plan.py` finds out, `stage_run.py` opens and writes.
"""

import json
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cai.audit import TABLES, count_stage
from cai.calibrate import judge_figures, temperature_figures
from cai.checks import checks_sha
from cai.constitution import Constitution, Principle, load_constitution
from cai.engines import Engine, Spec, open_engine
from cai.errors import BadInput, CaiError, CheckFailed
from cai.export import export, export_version
from cai.files import write_atomically
from cai.gold import ConstitutionPairs, GoldPairs
from cai.ids import digest, file_digest
from cai.inputs import Prompts
from cai.journal import Tally
from cai.label import judge, soft_label, tables
from cai.once import once
from cai.pairs import RunPairs
from cai.reliability import reliability
from cai.review import check_review, labels_entry, read_review, review
from cai.revise import LETTERS, Roles, generate, revise
from cai.runner import Watch, Work
from cai.seal import Json
from cai.settings import (
    CalibrateSettings,
    ConstitutionTestSettings,
    ExportSettings,
    GenerateSettings,
    GoldSettings,
    LabelSettings,
    ReviseSettings,
)
from cai.settings_load import repeat
from cai.settings_parts import JudgeSettings
from cai.signing import read_private_key
from cai.stage_plan import Source, Stage, refuse_other_work
from cai.stage_run import Outcome, run_stage
from cai.store import Run, open_run
from cai.temperature import gather
from cai.templates import JUDGE, Templates, load_templates
from cai.threads import in_thread


async def generate_stage(settings: GenerateSettings, watch: Watch) -> Outcome:
    """Answer the prompts. Raises BadInput, CannotWrite, EngineGaveUp, and CheckFailed if no row is kept."""
    prompts = _prompts("generate", settings)
    templates = load_templates(settings.templates, names=["respond"])
    engines = _open([settings.spec()])
    generator = engines[settings.spec()]
    work = partial(generate, generator=generator, templates=templates, seed=settings.seed, sampling=settings.response())
    texts = {"templates_sha": templates.sha}
    stage = Stage(
        "generate", settings, settings.out, {"generator": generator}, texts, templates.texts, settings.shard_rows
    )
    return await run_stage(stage, prompts, work, lambda rows: {"responses": rows}, watch)


async def revise_stage(settings: ReviseSettings, watch: Watch) -> Outcome:
    """Answer, criticise and revise. Raises BadInput, CannotWrite, EngineGaveUp, and CheckFailed if no row is kept."""
    prompts = _prompts("revise", settings)
    stage, work = _revising(settings)
    return await run_stage(stage, prompts, work, lambda rows: {"trajectories": rows}, watch)


def check_revise(settings: ReviseSettings) -> None:
    """Raise BadInput if the run was revised with other settings: before anything is spent or said of its labels."""
    run = Run(Path(settings.out))
    if "revise" in run.settings():
        stage, _ = _revising(settings)
        refuse_other_work(run, stage, stage.belongs(), anew=False)


def _revising(settings: ReviseSettings) -> tuple[Stage, Work]:
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
    return Stage("revise", settings, settings.out, roles, texts, copies, settings.shard_rows), work


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
    return await run_stage(stage, pairs, work, tables, watch, amend, settings.replace)


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
        refuse_other_work(run, stage, stage.belongs(), settings.replace)


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


def _in_its_folder(stage: Stage, settings: GoldSettings, gold: str) -> Stage:
    """Verdicts on gold go to a folder of their own for each set of settings, texts and pairs, if none is given."""
    if settings.out is not None:
        return stage
    told = settings.model_dump(mode="json", include={*settings.compared(), *_WHO_JUDGES, "limit"})
    pairs = [gold, file_digest(Path(gold)) if Path(gold).is_file() else None]
    name = digest([told, stage.texts["constitution_sha"], stage.texts["templates_sha"], pairs])[:12]
    return replace(stage, out=f"data/runs/calibrate-{name}")


async def _measured(stage: Stage, source: Source, work: Work, constitution: Constitution, watch: Watch) -> Calibration:
    figures: Json = {}

    def measure(run: Run) -> None:
        if next(run.records("labels", ["pair_id"]), None) is None:
            return
        figures.update(judge_figures(run.records("pairs"), run.records("verdicts"), run.records("labels")))
        evidence = gather(run.records("pairs"), run.records("verdicts"), run.records("labels"), constitution.weights())
        figures["temperature"] = temperature_figures(evidence, soft_label)
        write_atomically(run.folder / "calibration.json", (json.dumps(figures, indent=2) + "\n").encode())
        write_atomically(run.folder / "reliability.svg", reliability(figures["calibration"]["bins"]).as_file().encode())

    return Calibration(await run_stage(stage, source, work, tables, watch, measure), figures)


def _judging(
    name: str, settings: JudgeSettings, out: str | None, constitution: Constitution,
    shard_rows: int = 256, principles: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[Stage, Work]:  # fmt: skip
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
    return Stage(name, settings, out or "", {"judge": judging}, texts, copies, shard_rows), work


def _judge_templates(folder: str | None, principles: tuple[Principle, ...], names: tuple[str, ...]) -> Templates:
    return load_templates(folder, principles=principles, names=names)


def _prompts(stage: str, settings: GenerateSettings) -> Prompts:
    prompts = Prompts(settings.prompts, stage, settings.limit, settings.samples, settings.strict)
    prompts.look()
    return prompts


def _open(specs: Iterable[Spec]) -> dict[Spec, Engine]:
    return {spec: open_engine(spec) for spec in dict.fromkeys(specs)}
