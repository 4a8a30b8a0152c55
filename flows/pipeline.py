"""cai/pipeline: revise, label, export in one flow run. Run it with `prefect deployment run cai/pipeline`."""

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from cai.cli import print_finished
from cai.pipeline import Finished, in_order
from cai.settings import CalibrateSettings, PipelineSettings
from cai.stages import Outcome, calibrate_stage, check_judge
from flows.export import dataset
from flows.label import labels
from flows.revise import trajectories
from flows.shared import FlowWatch, load_api_key, main, parameters_of


@task(name="calibrate", task_run_name="calibrate {settings.gold}", cache_policy=NO_CACHE, persist_result=False)
async def good_enough(settings: CalibrateSettings) -> Outcome:
    """Measure the judge; fails if it is under the bar."""
    watch = FlowWatch()
    measured = await calibrate_stage(settings, watch)
    await watch.finish(measured.outcome)
    check_judge(measured.figures, settings)
    return measured.outcome


@flow(name="cai", flow_run_name="pipeline {out}", persist_result=False)
@parameters_of(PipelineSettings)
async def pipeline(**parameters: Any) -> Finished:
    """Answer prompts, revise the answers, judge pairs of them, and write training datasets with a card."""
    await load_api_key()
    return await in_order(PipelineSettings(**parameters), good_enough, trajectories, labels, dataset)


if __name__ == "__main__":
    main(pipeline, PipelineSettings, "pipeline", print_finished)
