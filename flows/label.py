"""cai/label: judge pairs of a run's answers. Run it with `prefect deployment run cai/label`."""

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from cai.cli import print_result
from cai.settings import LabelSettings
from cai.stage_run import Outcome
from cai.stages import label_stage
from flows.shared import engine_slot, load_api_key, main, parameters_of, settings_of, watched
from flows.watch import announce_outcome


@task(name="label", task_run_name="label {settings.run}", cache_policy=NO_CACHE, persist_result=False)
async def labels(settings: LabelSettings) -> Outcome:
    return await watched(label_stage, settings)


@flow(name="cai", flow_run_name="label {run}", persist_result=False)
@parameters_of(LabelSettings)
async def label(engine_limit: str | None = None, **parameters: Any) -> Outcome:
    """Judge pairs of a run's answers against a constitution, and write pairs, verdicts and labels as Parquet."""
    settings = settings_of(LabelSettings, parameters)
    await load_api_key()
    async with engine_slot(engine_limit):
        outcome = await labels(settings)
    announce_outcome(outcome)
    return outcome


if __name__ == "__main__":
    main(label, LabelSettings, "label", print_result)
