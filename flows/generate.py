"""cai/generate: K responses for each prompt. Run it with `prefect deployment run cai/generate`."""

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from cai.cli import print_result
from cai.settings import GenerateSettings
from cai.stage_run import Outcome
from cai.stages import generate_stage
from flows.shared import engine_slot, load_api_key, main, parameters_of, settings_of, watched
from flows.watch import announce_outcome


@task(name="generate", task_run_name="generate {settings.out}", cache_policy=NO_CACHE, persist_result=False)
async def responses(settings: GenerateSettings) -> Outcome:
    return await watched(generate_stage, settings)


@flow(name="cai", flow_run_name="generate {prompts} into {out}", persist_result=False)
@parameters_of(GenerateSettings)
async def generate(engine_limit: str | None = None, **parameters: Any) -> Outcome:
    """Sample responses for each prompt and write them as Parquet."""
    settings = settings_of(GenerateSettings, parameters)
    await load_api_key()
    async with engine_slot(engine_limit):
        outcome = await responses(settings)
    announce_outcome(outcome)
    return outcome


if __name__ == "__main__":
    main(generate, GenerateSettings, "generate", print_result)
