"""The whole pipeline in one go: is the judge good enough? then revise, label, export."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cai.actors import kept_actors
from cai.candidates import helpful_answers
from cai.engines import kept_loaded
from cai.export import check_place, check_version_place
from cai.hygiene import read_evaluation
from cai.once import read_once
from cai.runner import Watch
from cai.settings import CalibrateSettings, ExportSettings, LabelSettings, PipelineSettings, ReviseSettings
from cai.signing import read_private_key
from cai.stage_run import Outcome
from cai.stages import (
    Dataset,
    calibrate_stage,
    check_judge,
    check_label,
    check_revise,
    export_stage,
    label_stage,
    revise_stage,
)


@dataclass(frozen=True, slots=True)
class Finished:
    """What each stage came to."""

    revised: Outcome
    labelled: Outcome
    dataset: Dataset


async def check(revising: ReviseSettings, labelling: LabelSettings, exporting: ExportSettings) -> None:
    """Read what the stages will need, before the first one spends anything. Raises BadInput."""
    check_revise(revising)  # first: what mends labels of other settings mends no answers of other settings
    await check_label(labelling)
    if exporting.versions:
        check_version_place(Path(exporting.run), Path(exporting.out), exporting.export_method(exporting.seed))
    else:
        check_place(Path(exporting.run), Path(exporting.out))
    if exporting.sign is not None:
        read_private_key(f"--sign {exporting.sign}", exporting.sign)
    for file in exporting.decontaminate:
        read_evaluation(file)
    if exporting.helpful is not None:
        helpful_answers(exporting.helpful)


async def in_order(
    settings: PipelineSettings,
    measure: Callable[[CalibrateSettings], Awaitable[object]],
    revise: Callable[[ReviseSettings], Awaitable[Outcome]],
    label: Callable[[LabelSettings], Awaitable[Outcome]],
    export: Callable[[ExportSettings], Awaitable[Dataset]],
) -> Finished:
    """The stages that are given, one after another; each goes on where it stopped. Raises what they raise.

    All of them use the constitution and the templates as they were at the beginning, whoever edits them meanwhile. With
    gold pairs the judge is measured before anything is spent: `measure` raises CheckFailed if it is under the bar.
    """
    gold, revising = settings.calibrating(), settings.revising()
    labelling, exporting = settings.labelling(), settings.exporting()
    # A judge that also answers, criticises or revises is loaded once for all of it; another one needs the memory.
    both = labelling.spec() if labelling.spec() in revising.specs().values() else None
    with read_once():
        await check(revising, labelling, exporting)
        async with kept_loaded(both), kept_actors():
            if gold is not None:
                await measure(gold)
            revised = await revise(revising)
            labelled = await label(labelling)
    return Finished(revised, labelled, await export(exporting))


async def pipeline(settings: PipelineSettings, watch: Watch) -> Finished:
    """Every stage in this process, see `in_order`."""

    async def good_enough(gold: CalibrateSettings) -> None:
        measured = await calibrate_stage(gold, watch)
        check_judge(measured.figures, gold)

    return await in_order(
        settings,
        good_enough,
        partial(revise_stage, watch=watch),
        partial(label_stage, watch=watch),
        partial(export_stage, watch=watch),
    )
