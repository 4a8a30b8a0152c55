"""The whole pipeline in one go: is the judge good enough? then revise, label, export."""

from dataclasses import dataclass

from cai.runner import Watch
from cai.settings import PipelineSettings
from cai.stages import Dataset, Outcome, calibrate_stage, check_judge, export_stage, label_stage, revise_stage


@dataclass(frozen=True, slots=True)
class Finished:
    """What each stage came to."""

    revised: Outcome
    labelled: Outcome
    dataset: Dataset


async def pipeline(settings: PipelineSettings, watch: Watch) -> Finished:
    """Every stage, one after another; each goes on where it stopped. Raises what they raise.

    With gold pairs the judge is measured before anything is spent: CheckFailed if it is under the bar.
    """
    gold = settings.calibrating()
    if gold is not None:
        measured = await calibrate_stage(gold, watch)
        check_judge(measured.figures, gold)
    revised = await revise_stage(settings.revising(), watch)
    labelled = await label_stage(settings.labelling(), watch)
    return Finished(revised, labelled, await export_stage(settings.exporting(), watch))
