"""cai/revise: answer, criticise, revise. Run it with `prefect deployment run cai/revise`."""

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from cai.cli import print_result
from cai.settings import ReviseSettings
from cai.stage_run import Outcome
from cai.stages import revise_stage
from flows.shared import engine_slot, load_api_key, main, parameters_of, settings_of, watched
from flows.watch import announce_outcome


@task(name="revise", task_run_name="revise {settings.out}", cache_policy=NO_CACHE, persist_result=False)
async def trajectories(settings: ReviseSettings) -> Outcome:
    return await watched(revise_stage, settings)


@flow(name="cai", flow_run_name="revise {prompts} into {out}", persist_result=False)
@parameters_of(ReviseSettings)
async def revise(engine_limit: str | None = None, **parameters: Any) -> Outcome:
    """Answer prompts, criticise and revise the answers against a constitution, and write trajectories as Parquet."""
    settings = settings_of(ReviseSettings, parameters)
    await load_api_key()
    async with engine_slot(engine_limit):
        outcome = await trajectories(settings)
    announce_outcome(outcome)
    return outcome


if __name__ == "__main__":
    main(revise, ReviseSettings, "revise", print_result)
