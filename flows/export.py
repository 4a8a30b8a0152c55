"""cai/export: training datasets from a run. Run it with `prefect deployment run cai/export`."""

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from cai.cli import print_exported
from cai.settings import ExportSettings
from cai.stages import Dataset, export_stage
from flows.shared import main, parameters_of, settings_of
from flows.watch import FlowWatch, announce_dataset


@task(name="export", task_run_name="export {settings.run}", cache_policy=NO_CACHE, persist_result=False)
async def dataset(settings: ExportSettings) -> Dataset:
    """Write the datasets, and leave their card on the flow run."""
    watch = FlowWatch()
    written = await export_stage(settings, watch)
    await watch.finish_export(written)
    return written


@flow(name="cai", flow_run_name="export {run} into {out}", persist_result=False)
@parameters_of(ExportSettings)
async def export(**parameters: Any) -> Dataset:
    """Write a run's answers and labels as datasets for supervised fine-tuning and preference training, with a card."""
    settings = settings_of(ExportSettings, parameters)
    written = await dataset(settings)
    announce_dataset("export", settings.run, written)
    return written


if __name__ == "__main__":
    main(export, ExportSettings, "export", print_exported)
