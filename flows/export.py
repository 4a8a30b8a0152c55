"""cai/export: training datasets from a run. Run it with `prefect deployment run cai/export`."""

from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE

from cai.cli import print_exported
from cai.settings import ExportSettings
from cai.stages import Dataset, export_stage
from flows.shared import FlowWatch, main, parameters_of


@task(name="export", task_run_name="export {settings.run}", cache_policy=NO_CACHE, persist_result=False)
async def dataset(settings: ExportSettings) -> Dataset:
    """Write the datasets, and leave their card on the flow run."""
    written = await export_stage(settings, FlowWatch())
    card = (Path(written.folder) / "README.md").read_text(encoding="utf-8")
    await acreate_markdown_artifact(markdown=card, key="cai-export-card", description=written.folder)
    return written


@flow(name="cai", flow_run_name="export {run}", persist_result=False)
@parameters_of(ExportSettings)
async def export(**parameters: Any) -> Dataset:
    """Write a run's answers and labels as datasets for supervised fine-tuning and preference training, with a card."""
    return await dataset(ExportSettings(**parameters))


if __name__ == "__main__":
    main(export, ExportSettings, "export", print_exported)
