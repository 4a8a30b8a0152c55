"""cai/generate: K responses for each prompt. Run it with `prefect deployment run cai/generate`."""

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from cai.cli import print_result
from cai.settings import GenerateSettings
from cai.stages import Outcome, generate_stage
from flows.shared import load_api_key, main, parameters_of, watched


@task(name="generate", task_run_name="generate {settings.out}", cache_policy=NO_CACHE, persist_result=False)
async def responses(settings: GenerateSettings) -> Outcome:
    return await watched(generate_stage, settings)


@flow(name="cai", flow_run_name="generate {out}", persist_result=False)
@parameters_of(GenerateSettings)
async def generate(**parameters: Any) -> Outcome:
    """Sample responses for each prompt and write them as Parquet."""
    await load_api_key()
    return await responses(GenerateSettings(**parameters))


if __name__ == "__main__":
    main(generate, GenerateSettings, "generate", print_result)
