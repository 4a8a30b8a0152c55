"""How a stage is watched where Prefect runs it: the flow run's log, artifacts and events, while it works."""

import asyncio
import json
import platform
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from os.path import normpath
from pathlib import Path
from typing import Any

import httpx
from prefect.artifacts import (
    acreate_link_artifact,
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger

from cai.audit import count_stage
from cai.errors import CaiError
from cai.files import write_atomically
from cai.journal import Tally
from cai.markdown import plain
from cai.pasted import folder_word
from cai.progress import SECONDS_BETWEEN_LINES
from cai.report.page import page
from cai.report.summary import summary
from cai.seal import Json
from cai.stage_run import Outcome
from cai.stages import Dataset
from cai.store import Run, open_run
from flows.rates import dataset_rates, rates

# Counting a run means reading it: it may take this share of the time.
SHARE_FOR_COUNTING = 0.05
SECONDS_TO_SETTLE = 10.0


class FlowWatch:
    """Progress as the flow run's log, artifacts and events. Nothing that goes wrong with them ends the work."""

    def __init__(self) -> None:
        self._log = get_run_logger()
        self._tally: Tally | None = None
        self._telling: asyncio.Task[None] | None = None
        self._counting: asyncio.Task[None] | None = None
        self._artifacts: dict[str, Any] = {}
        self._count_after = 0.0

    def begin(self, stage: str, rows: int, finished: int) -> None:
        self._stage, self._rows, self._done, self._dropped = stage, rows, finished, 0
        self._before, self._begun = finished, time.monotonic()
        self._said = self._begun
        self._log.info("%s: %d of %d rows are finished; %d to do", stage, finished, rows, rows - finished)
        self._tell()

    def asking(self, tally: Tally) -> None:
        self._tally, self._begun = tally, time.monotonic()

    def row(self, kept: bool) -> None:
        self._done += 1
        self._dropped += not kept
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            self._log.info("%s", self._sentence())
            self._tell()

    def shard(self, path: Path, rows: int, drops: int) -> None:
        self._log.info("%s: %d rows kept, %d dropped; %s", path, rows, drops, self._sentence())
        folder = path.parent.parent
        announce(
            "shard", folder, stage=self._stage, shard=str(path), kept=rows, dropped=drops, done=self._done,
            rows=self._rows,
        )  # fmt: skip
        self._tell()
        if time.monotonic() >= self._count_after and (self._counting is None or self._counting.done()):
            self._counting = asyncio.ensure_future(self._safely(partial(self._count, Run(folder))))

    def end(self) -> None:
        return None

    def say(self, sentence: str) -> None:
        self._log.info(sentence)

    def _sentence(self) -> str:
        """How far it is, and how fast it goes: of this session alone, since its engines are open."""
        seconds = max(time.monotonic() - self._begun, 0.001)
        new = self._done - self._before
        told = f"{self._done} of {self._rows} rows, {self._dropped} dropped, {new / seconds:.2f} rows/s"
        if self._tally is not None:
            calls, tokens = self._tally.asked_calls, self._tally.completion_tokens
            told += (
                f", {calls / seconds:.1f} calls/s, {tokens / seconds:.0f} tokens/s, {self._tally.reused_calls} reused"
            )
        left = self._rows - self._done
        return told + (f", about {left * seconds / new:.0f} s left" if left and new and seconds > 1 else "")

    def _tell(self) -> None:
        """Bring the progress artifact up to date; one request at a time, the next one tells what came meanwhile."""
        if self._telling is None or self._telling.done():
            self._telling = asyncio.ensure_future(self._safely(self._progress))

    async def _progress(self) -> None:
        share, told = min(100.0, 100 * self._done / self._rows), self._sentence()
        key = f"cai-{self._stage}-progress"
        if key not in self._artifacts:
            self._artifacts[key] = await acreate_progress_artifact(progress=share, key=key, description=told)
        else:
            await self._update(key, ArtifactUpdate(data=share, description=told))

    async def _count(self, run: Run) -> None:
        begun = time.monotonic()
        counts = await asyncio.to_thread(count_stage, run, self._stage)
        await self._table(self._stage, counts, f"{run.folder}, so far")
        took = time.monotonic() - begun
        self._count_after = time.monotonic() + max(SECONDS_BETWEEN_LINES, took / SHARE_FOR_COUNTING)

    async def _table(self, stage: str, counts: Json, description: str) -> None:
        key, table = f"cai-{stage}-rates", rates(counts)
        if key not in self._artifacts:
            self._artifacts[key] = await acreate_table_artifact(table=table, key=key, description=description)
        else:
            await self._update(key, ArtifactUpdate(data=json.dumps(table), description=description))

    async def _update(self, key: str, update: ArtifactUpdate) -> None:
        async with get_client() as client:
            await client.update_artifact(self._artifacts[key], update)

    async def _safely(self, telling: Callable[[], Awaitable[object]]) -> None:
        try:
            await telling()
        except (httpx.HTTPError, PrefectException, OSError, CaiError) as error:
            self._log.warning("An artifact could not be written: %s", error)

    async def finish(self, outcome: Outcome) -> None:
        """Leave what became of the stage on the flow run: progress, rates, a summary with examples, and where it is."""
        await self.settle()
        stage, out = outcome.stage, outcome.folder
        await self._safely(partial(self._table, stage, outcome.entry["counts"], out))
        await self._safely(partial(self._summary, stage, out))
        await self._safely(partial(self._report, out))
        await self.name_files(stage, Path(out), outcome.entry["files"])
        session = outcome.session
        self._log.info("%s: %d calls asked, %d reused", out, session.asked_calls, session.reused_calls)
        for alarm in outcome.alarms:
            resource = {"prefect.resource.id": f"cai.run.{alarm.stage}.{alarm.run}", "prefect.resource.name": alarm.run}
            emit_event("cai.alarm", resource=resource, payload=asdict(alarm))
        if outcome.alarms:
            told = "".join(f"- {plain(alarm.sentence)}\n" for alarm in outcome.alarms)
            await self._markdown(f"cai-{stage}-alarms", told, out)

    async def _summary(self, stage: str, out: str) -> None:
        told = await asyncio.to_thread(summary, open_run(out), out, (stage,))
        await self._markdown(f"cai-{stage}-summary", told, out)

    async def _report(self, out: str) -> None:
        """The page of the whole run, beside its folder, so that the folder holds the run and nothing else."""
        path = Path(f"{normpath(out)}-report.html")
        made = await asyncio.to_thread(page, open_run(out), normpath(out))
        await asyncio.to_thread(write_atomically, path, made.encode())
        told = f"{path.resolve()} on {platform.node()}"
        link = path.resolve().as_uri()
        await acreate_link_artifact(link=link, link_text=str(path), key="cai-report", description=told)
        self._log.info("%s is the report of the run, to be opened in a browser", path)

    async def settle(self) -> None:
        """Let what is under way come to its end, and bring the progress artifact to where the work has come to."""
        for under_way in (self._telling, self._counting):
            if under_way is not None and not under_way.done():
                await asyncio.wait([under_way], timeout=SECONDS_TO_SETTLE)
                under_way.cancel()  # it waits for a server that was gone; what it would tell is told again
        if self._telling is not None:
            await self._safely(self._progress)

    async def finish_export(self, written: Dataset) -> None:
        """Leave the dataset's card, its rates and its place on the flow run."""
        folder = Path(written.folder)
        card = (folder / "README.md").read_text(encoding="utf-8")
        await self._markdown("cai-export-card", card, written.folder)
        table = dataset_rates(written.manifest["counts"])
        key, told = "cai-export-rates", written.folder
        await self._safely(partial(acreate_table_artifact, table=table, key=key, description=told))
        await self.name_files("export", folder, written.manifest["files"])

    async def name_files(self, stage: str, folder: Path, files: list[Json]) -> None:
        """Say where the files are. A browser opens no link to another machine's disk, so the paths are told, too."""
        here = folder.resolve()
        lines = [f"`{here}` on `{platform.node()}`", "", "| file | rows | bytes |", "|---|---|---|"]
        lines += [f"| `{file['path']}` | {file.get('rows', '')} | {file.get('bytes', '')} |" for file in files]
        if stage != "export":
            named = folder_word(folder)
            lines += ["", f"    cai report {named}", f"    cai show {named} ROW_ID"]
        text = "\n".join(lines) + "\n"
        await self._markdown(f"cai-{stage}-files", text, str(folder))
        key, link, told = f"cai-{stage}-folder", here.as_uri(), str(folder)
        await self._safely(partial(acreate_link_artifact, link=link, link_text=told, key=key, description=told))

    async def _markdown(self, key: str, text: str, description: str) -> None:
        await self._safely(partial(acreate_markdown_artifact, markdown=text, key=key, description=description))


def announce(what: str, run: str | Path, **payload: object) -> None:
    """Emit the event `cai.WHAT.finished` of a run's folder, if a deployment runs it: automations wait for these."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return
    folder = normpath(run)
    resource = {"prefect.resource.id": f"cai.run.{folder}", "prefect.resource.name": folder}
    emit_event(f"cai.{what}.finished", resource, payload={"run": folder, **payload})


def announce_outcome(outcome: Outcome) -> None:
    """`cai.revise.finished` and the like; `dataset` is where an export of the run belongs."""
    counts, session = outcome.entry["counts"], outcome.session
    announce(
        outcome.stage, outcome.folder, dataset=f"{normpath(outcome.folder)}-dataset", rows=counts["read"],
        kept=counts["kept"], dropped=counts["dropped"], asked_calls=session.asked_calls,
        reused_calls=session.reused_calls, seconds=round(outcome.seconds, 1),
    )  # fmt: skip


def announce_dataset(what: str, run: str, dataset: Dataset) -> None:
    """`cai.export.finished`, `cai.pipeline.finished`: the run, its dataset, and the rows of each part."""
    announce(what, run, dataset=normpath(dataset.folder), counts=dataset.manifest["counts"])
