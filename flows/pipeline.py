"""cai/pipeline: revise, label, export in one flow run. Run it with `prefect deployment run cai/pipeline`."""

from contextlib import AsyncExitStack
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from cai.cli import print_finished
from cai.pipeline import Finished, in_order
from cai.settings import CalibrateSettings, ExportSettings, PipelineSettings
from cai.stage_run import Outcome
from cai.stages import Dataset, calibrate_stage, check_judge
from flows.export import dataset
from flows.label import labels
from flows.revise import trajectories
from flows.shared import engine_slot, load_api_key, main, parameters_of, settings_of
from flows.watch import FlowWatch, announce_dataset


@task(name="calibrate", task_run_name="calibrate {settings.gold}", cache_policy=NO_CACHE, persist_result=False)
async def good_enough(settings: CalibrateSettings) -> Outcome:
    """Measure the judge; fails if it is under the bar."""
    watch = FlowWatch()
    measured = await calibrate_stage(settings, watch)
    await watch.finish(measured.outcome)
    check_judge(measured.figures, settings)
    return measured.outcome


@flow(name="cai", flow_run_name="pipeline {prompts} into {out}", persist_result=False)
@parameters_of(PipelineSettings)
async def pipeline(engine_limit: str | None = None, **parameters: Any) -> Finished:
    """Answer prompts, revise the answers, judge pairs of them, and write training datasets with a card."""
    settings = settings_of(PipelineSettings, parameters)
    await load_api_key()
    async with AsyncExitStack() as slot:
        await slot.enter_async_context(engine_slot(engine_limit))

        async def without_engine(exporting: ExportSettings) -> Dataset:
            await slot.aclose()  # the next run may have the engine
            return await dataset(exporting)

        finished = await in_order(settings, good_enough, trajectories, labels, without_engine)
    announce_dataset("pipeline", settings.out, finished.dataset)
    return finished


if __name__ == "__main__":
    main(pipeline, PipelineSettings, "pipeline", print_finished)
