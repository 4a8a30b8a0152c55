"""Put the automations of automations.yaml on the Prefect server, or bring those that are there up to date.

python -m flows.automations
python -m flows.automations --remove
"""

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound
from pydantic import ValidationError

from cai.cli import run_cli
from cai.errors import BadInput
from flows.shared import reaching_the_server, read_list

FILE = Path(__file__).parent.parent / "automations.yaml"
AWAITED = "cai.flow-run.awaited"
SECONDS_UNTIL_KNOWN = 3.0  # until the server's other processes have heard of an automation that has changed


@click.command()
@click.option("--remove", is_flag=True, help="Take them off the server again.")
def automations(remove: bool) -> None:
    """Label what was revised, export what was labelled, and clear the runs of dead workers.

    The server is the one that PREFECT_API_URL names. Automations that somebody has paused stay paused.

    \b
    Example:
      python -m flows.automations
      python -m flows.automations --remove
    """
    with reaching_the_server():
        for sentence in asyncio.run(remove_all() if remove else put_all()):
            click.echo(sentence)


async def put_all() -> list[str]:
    """Create each automation that is not there, and update those that are there otherwise than the file says.

    One that is there as the file says is not touched: with every update the server gives its trigger a new id, and
    what the old one was waiting for never comes. Raises BadInput for a file that cannot be used, or if a deployment is
    missing.
    """
    said: list[str] = []
    changed = False
    async with get_client() as client:
        for told in [await _wanted(client, place, told) for place, told in read_list(FILE)]:
            first, *others = await client.read_automations_by_name(told.name) or [None]
            if first is None:
                await client.create_automation(told)
                how = "created"
            elif _is_as_told(first, told):
                how = "is there"
            else:
                await client.update_automation(first.id, told.model_copy(update={"enabled": first.enabled}))
                how = "brought up to date"
            for one in others:
                await client.delete_automation(one.id)
            changed |= how != "is there"
            said.append(f"automation '{told.name}': {how}")
        return said + await _await_signs_of_life(client, changed)


def _is_as_told(there: Automation, told: AutomationCore) -> bool:
    """Whether the server has what the file says, but for what is the server's own: ids, and whether it is paused."""
    return AutomationCore.model_validate({**there.model_dump(), "enabled": told.enabled}) == told


async def _await_signs_of_life(client: PrefectClient, changed: bool) -> list[str]:
    """Let the automation wait for the next heartbeat of each run that is called running, or pending.

    It does so by itself from heartbeat to heartbeat. But an automation that is new or has changed waits for none of the
    runs whose worker died before, and of a run whose worker died as it took it up there was none. Where it waits
    already, the event changes nothing, not even until when.
    """
    states = {"type": {"any_": ["RUNNING", "PENDING"]}}
    begun = FlowRunFilter.model_validate({"state": states, "tags": {"all_": ["cai"]}})
    runs = await client.read_flow_runs(flow_run_filter=begun)
    if not runs:
        return []
    if changed:
        await asyncio.sleep(SECONDS_UNTIL_KNOWN)
    now = datetime.now(UTC).isoformat()
    events = [
        {
            "id": str(uuid4()),
            "occurred": now,
            "event": AWAITED,
            "resource": {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name},
            "related": [{"prefect.resource.id": "prefect.tag.cai", "prefect.resource.role": "tag"}],
            "payload": {},
        }
        for run in runs
    ]
    (await client._client.post("/events", json=events)).raise_for_status()
    pending = [run for run in runs if run.state_type == StateType.PENDING]
    return [
        f"runs that are called {kind}: {number}; crashed if no sign of life of them comes for five minutes"
        for kind, number in (("running", len(runs) - len(pending)), ("pending", len(pending)))
        if number
    ] + [
        f"  {run.name} is pending: if no worker is starting it, the others of its deployment begin at once after"
        f" prefect flow-run delete {run.id}"
        for run in pending
    ]


async def remove_all() -> list[str]:
    """Take them off the server."""
    said: list[str] = []
    async with get_client() as client:
        for _, told in read_list(FILE):
            for one in await client.read_automations_by_name(told["name"]):
                await client.delete_automation(one.id)
                said.append(f"automation '{told['name']}': removed")
    return said


async def _wanted(client: PrefectClient, place: str, told: dict[str, Any]) -> AutomationCore:
    place = f"{place}, automation '{told['name']}'"
    actions = told.get("actions")
    for action in actions if isinstance(actions, list) else []:
        if isinstance(action, dict) and "deployment" in action:
            action["deployment_id"] = await _deployment(client, str(action.pop("deployment")))
            action["source"] = "selected"
    try:
        return AutomationCore.model_validate(told)
    except ValidationError as error:
        raise BadInput(place, _wrong(error), "an automation of Prefect's", "Mend it there.") from None


def _wrong(error: ValidationError) -> str:
    """What is wrong with an automation. Of an action pydantic says why it is none of each of the kinds that there are:
    only the kind that it says it is counts."""
    places = [(one["loc"], one["msg"]) for one in error.errors()]
    others = {loc[:3] for loc, _ in places if loc[0] == "actions" and loc[-1] == "type"}
    left = [(loc[:2] + loc[3:] if loc[0] == "actions" else loc, why) for loc, why in places if loc[:3] not in others]
    said = [f"{'.'.join(str(part) for part in loc)}: {why}" for loc, why in left]
    return "; ".join(said[:3]) or "an action of a type that Prefect does not know"


async def _deployment(client: PrefectClient, name: str) -> str:
    try:
        return str((await client.read_deployment_by_name(name)).id)
    except ObjectNotFound as error:
        remedy = "Deploy first: python -m flows.deploy"
        raise BadInput(str(client.api_url), f"no deployment '{name}'", "the deployments of cai", remedy) from error


if __name__ == "__main__":
    run_cli(automations, sys.argv[1:])
