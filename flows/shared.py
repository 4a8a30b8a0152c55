"""What every flow needs: parameters from its settings model, a watch, a slot of an engine, the servers' key."""

import asyncio
import inspect
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import click
import httpx
import yaml
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings
from pydantic.fields import FieldInfo

from cai.cli import run_cli
from cai.errors import BadInput, CaiError, brief
from cai.options import chosen, with_settings
from cai.pasted import word
from cai.plain_yaml import read_yaml_file
from cai.settings import Settings
from cai.settings_engine import EngineSettings
from cai.settings_load import load_settings
from cai.stage_run import Outcome
from flows.watch import FlowWatch

API_KEY_BLOCK = "cai-api-key"
ENGINE_LIMIT = FieldInfo(
    annotation=str | None,  # type: ignore[arg-type]
    default=None,
    description="A global concurrency limit of Prefect: the run holds one slot of it while it asks models.",
)

T = TypeVar("T")
S = TypeVar("S", bound=Settings)

# What libraries log from these levels on goes to the flow run's log, too (logging.extra_loggers in pyproject.toml).
for _name, _level in {"cai": "INFO", "httpx": "WARNING", "openai": "WARNING", "vllm": "WARNING"}.items():
    logging.getLogger(_name).setLevel(_level)


def only_the_sentence(record: logging.LogRecord) -> bool:
    """Leave the traceback of a CaiError out of a log, since its message says all of it; other errors keep theirs.

    As with --debug on the command line, PREFECT_LOGGING_LEVEL=DEBUG shows it all the same.
    """
    told = record.exc_info is not None and isinstance(record.exc_info[1], CaiError)
    if told and not logging.getLogger(record.name).isEnabledFor(logging.DEBUG):
        record.exc_info = record.exc_text = None
    return True


# Where Prefect logs what a task, a flow and the process of a flow run have ended with.
for _name in ("prefect.task_runs", "prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(only_the_sentence)


def parameters_of(kind: type[Settings]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a flow function one flat parameter for each field of a settings model, with type, bounds and description.

    Prefect reads signature and docstring, so the deployment's schema, the command line and the YAML file are one thing.
    A flow that asks a model also has the parameter `engine_limit`, which is Prefect's affair alone.
    """
    fields = {**kind.model_fields, **({"engine_limit": ENGINE_LIMIT} if issubclass(kind, EngineSettings) else {})}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if field.is_required() else field.default,
                    annotation=Annotated[field.annotation, field],
                )
                for name, field in fields.items()
            ]
        )
        described = "\n".join(f"    {name}: {field.description}" for name, field in fields.items())
        function.__doc__ = f"{inspect.getdoc(function)}\n\nArgs:\n{described}\n"
        return function

    return decorate


async def watched(stage: Callable[[Any, FlowWatch], Awaitable[Outcome]], settings: EngineSettings) -> Outcome:
    """A whole stage as the body of one task: rows and shards are inside, and resuming lives in the run folder."""
    watch = FlowWatch()
    try:
        outcome = await stage(settings, watch)
    except CaiError:
        await watch.settle()
        watch.say("What is finished is kept; a retry of this flow run goes on from there, once that is mended.")
        raise
    await watch.finish(outcome)
    return outcome


def settings_of(kind: type[S], parameters: dict[str, Any]) -> S:
    """The settings that a flow's parameters mean. Raises BadInput, in one sentence, where they do not go together."""
    return load_settings(kind, None, parameters)


@asynccontextmanager
async def engine_slot(limit: str | None) -> AsyncIterator[None]:
    """Hold one slot of a global concurrency limit of Prefect, so that no two runs share an engine that takes one.

    If this process is killed, the server takes the slot back five minutes later. Raises BadInput if there is no such
    limit.
    """
    if limit is None:
        yield
        return
    log = get_run_logger()
    async with get_client() as client:
        try:
            await client.read_global_concurrency_limit_by_name(limit)
        except ObjectNotFound as error:
            place, remedy = f"engine_limit {limit}", f"Create it: prefect gcl create {word(limit)} --limit 1"
            raise BadInput(place, "no such limit on the server", "a global concurrency limit", remedy) from error
    log.info("Waiting for a slot of the global concurrency limit '%s'.", limit)
    # A slot that was lost with the server's memory must not end hours of work.
    async with concurrency(limit, strict=True, raise_on_lease_renewal_failure=False):
        log.info("A slot of '%s' is ours.", limit)
        yield


async def load_api_key() -> None:
    """Take the servers' key from the Secret block `cai-api-key`, if there is one and the environment has none."""
    if any(os.environ.get(name, "").strip() for name in ("CAI_API_KEY", "OPENAI_API_KEY")):
        return
    try:
        block: Any = await Secret.aload(API_KEY_BLOCK)  # type: ignore[misc]
    except ValueError:
        return
    os.environ["CAI_API_KEY"] = block.get()


@contextmanager
def reaching_the_server() -> Iterator[None]:
    """Say in one sentence that no server answers. Raises BadInput."""
    url = get_current_settings().api.url
    if not url:  # also where it is set and empty: Prefect would start a server of its own on the database of .prefect
        remedy = "Start one with make serve, then: export PREFECT_API_URL=http://127.0.0.1:4200/api"
        raise BadInput("PREFECT_API_URL", "nothing", "the address of a Prefect server", remedy)
    try:
        yield
    except httpx.TransportError as error:
        remedy = "See to the server, or give another PREFECT_API_URL."
        raise BadInput(url, f"no answer ({brief(error)})", "a Prefect server", remedy) from error
    except httpx.HTTPStatusError as error:
        found, remedy = said_by(error), "See to its version and its log."
        if error.response.status_code in (401, 403):
            remedy = "See to PREFECT_API_AUTH_STRING."
        raise BadInput(url, found, "a Prefect server that agrees", remedy) from error


def said_by(error: httpx.HTTPStatusError) -> str:
    """The reason that a server gives for what it refuses, on one line."""
    try:
        return reason_of(error.response.json()) or brief(error)
    except ValueError:
        return brief(error)


def reason_of(answer: Any) -> str:
    """The reason in a Prefect server's answer of the kinds 409 and 422; empty if there is none in it."""
    told = answer if isinstance(answer, dict) else {}
    wrong = told.get("exception_detail")
    if isinstance(wrong, list):
        said = "; ".join(f"{'.'.join(str(part) for part in one['loc'][1:])}: {one['msg']}" for one in wrong)
    else:
        said = str(told.get("detail") or told.get("exception_message") or "")
    return " ".join(said.split()).rstrip(".")[:500]


def read_list(path: Path, key: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a list that a YAML file holds, or holds under `key`: each with its place, `FILE:LINE`.

    Raises BadInput for a file that cannot be read, is no YAML, or holds something else; each object has a `name`.
    """
    expected = f"a list of objects{f' under {key!r}' if key else ''}, each with a name"
    values, node = read_yaml_file(path, path.name, expected, "Mend it there.")
    if key is not None:
        values = values.get(key) if isinstance(values, dict) else None
        found = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for name, value in found if name.value == key), None)
    if not isinstance(values, list) or not isinstance(node, yaml.SequenceNode):
        raise BadInput(path.name, "no such list", expected, "Mend it there.")
    places = [f"{path.name}:{item.start_mark.line + 1}" for item in node.value]
    for place, value in zip(places, values, strict=True):
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise BadInput(place, "something else", expected, "Mend it there.")
    return list(zip(places, values, strict=True))


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
