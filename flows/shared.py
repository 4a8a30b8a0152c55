"""What every flow needs: parameters from its settings model, and a watch that speaks Prefect."""

import asyncio
import inspect
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import click
from prefect.artifacts import acreate_markdown_artifact, acreate_progress_artifact, aupdate_progress_artifact
from prefect.blocks.system import Secret
from prefect.logging import get_run_logger

from cai.audit import markdown
from cai.cli import run_cli
from cai.options import chosen, with_settings
from cai.progress import SECONDS_BETWEEN_LINES
from cai.settings import EngineSettings, Settings
from cai.stages import Outcome
from cai.store import open_run

API_KEY_BLOCK = "cai-api-key"

T = TypeVar("T")


def parameters_of(kind: type[Settings]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a flow function one flat parameter for each field of a settings model, with type, bounds and description.

    Prefect reads signature and docstring, so the deployment's schema, the command line and the YAML file are one thing.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if field.is_required() else field.default,
                    annotation=Annotated[field.annotation, field],
                )
                for name, field in kind.model_fields.items()
            ]
        )
        described = "\n".join(f"    {name}: {field.description}" for name, field in kind.model_fields.items())
        function.__doc__ = f"{inspect.getdoc(function)}\n\nArgs:\n{described}\n"
        return function

    return decorate


class FlowWatch:
    """Progress as the flow run's log and artifacts: updated once per shard, since each update is a request."""

    def __init__(self) -> None:
        self._log = get_run_logger()
        self._pending: list[asyncio.Task[Any]] = []
        self._artifact: asyncio.Task[Any] | None = None

    def begin(self, stage: str, rows: int, finished: int) -> None:
        self._stage, self._rows, self._done = stage, rows, finished
        self._before, self._begun = finished, time.monotonic()
        self._said = self._begun
        self._log.info("%s: %d of %d rows are finished; %d to do", stage, finished, rows, rows - finished)
        share = 100 * finished / rows
        create = acreate_progress_artifact(progress=share, key=f"cai-{stage}-progress", description=f"{rows} rows")
        self._artifact = asyncio.ensure_future(create)

    def row(self, kept: bool) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            rate = (self._done - self._before) / (now - self._begun)
            left = (self._rows - self._done) / rate
            self._log.info("%d of %d rows, %.2f rows/s, about %.0f s left", self._done, self._rows, rate, left)

    def shard(self, path: Path, rows: int, drops: int) -> None:
        self._log.info("%s: %d rows kept, %d dropped; %d of %d rows done", path, rows, drops, self._done, self._rows)
        self._pending.append(asyncio.ensure_future(self._update(100 * self._done / self._rows)))

    def end(self) -> None:
        return None

    def say(self, sentence: str) -> None:
        self._log.info(sentence)

    async def _update(self, share: float) -> None:
        if self._artifact is not None and (artifact := await self._artifact) is not None:
            await aupdate_progress_artifact(artifact_id=artifact, progress=min(share, 100.0))

    async def finish(self, outcome: Outcome) -> None:
        """Wait for the updates under way, then leave a summary with three examples on the flow run."""
        for pending in [self._artifact, *self._pending]:
            if pending is not None:
                await pending
        out = outcome.folder
        text = markdown(open_run(out), self._stage)
        await acreate_markdown_artifact(markdown=text, key=f"cai-{self._stage}-summary", description=out)
        session = outcome.session
        self._log.info("%s: %d calls asked, %d reused", out, session.asked_calls, session.reused_calls)


async def watched(stage: Callable[[Any, FlowWatch], Awaitable[Outcome]], settings: EngineSettings) -> Outcome:
    """A whole stage as the body of one task: rows and shards are inside, and resuming lives in the run folder."""
    watch = FlowWatch()
    outcome = await stage(settings, watch)
    await watch.finish(outcome)
    return outcome


async def load_api_key() -> None:
    """Take the servers' key from the Secret block `cai-api-key`, if there is one and the environment has none."""
    if any(os.environ.get(name, "").strip() for name in ("CAI_API_KEY", "OPENAI_API_KEY")):
        return
    try:
        block: Any = await Secret.aload(API_KEY_BLOCK)  # type: ignore[misc]
    except ValueError:
        return
    os.environ["CAI_API_KEY"] = block.get()


def main(flow: Callable[..., Awaitable[T]], kind: type[Settings], stage: str, show: Callable[[T, bool], None]) -> None:
    """Run a flow directly, with the options of its command; Prefect starts a server of its own if none is set.

    `show` prints the result, as JSON if it is told so.
    """

    @click.command(help=f"Run the flow cai/{stage} here. See also: cai {stage} --help")
    @with_settings(kind)
    def command(as_json: bool, **options: Any) -> None:
        settings = chosen(kind, options)
        show(asyncio.run(flow(**settings.model_dump())), as_json)  # type: ignore[arg-type]

    run_cli(command, sys.argv[1:])
