"""Put the automations of automations.yaml on the Prefect server, or bring those that are there up to date.

python -m flows.automations
python -m flows.automations --remove
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import click
import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from cai.cli import run_cli
from cai.errors import BadInput
from flows.shared import reaching_the_server

FILE = Path(__file__).parent.parent / "automations.yaml"


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
    """Create each automation that is not there, and update the others. Raises BadInput if a deployment is missing."""
    said: list[str] = []
    async with get_client() as client:
        for told in _file():
            for action in told["actions"]:
                if "deployment" in action:
                    name = action.pop("deployment")
                    action |= {"source": "selected", "deployment_id": await _deployment(client, name)}
            first, *others = await client.read_automations_by_name(told["name"]) or [None]
            if first is None:
                await client.create_automation(AutomationCore.model_validate(told))
            else:
                await client.update_automation(
                    first.id, AutomationCore.model_validate({**told, "enabled": first.enabled})
                )
            for one in others:
                await client.delete_automation(one.id)
            said.append(f"automation '{told['name']}': {'created' if first is None else 'brought up to date'}")
    return said


async def remove_all() -> list[str]:
    """Take them off the server."""
    said: list[str] = []
    async with get_client() as client:
        for told in _file():
            for one in await client.read_automations_by_name(told["name"]):
                await client.delete_automation(one.id)
                said.append(f"automation '{told['name']}': removed")
    return said


def _file() -> list[dict[str, Any]]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


async def _deployment(client: PrefectClient, name: str) -> str:
    try:
        return str((await client.read_deployment_by_name(name)).id)
    except ObjectNotFound as error:
        remedy = "Deploy first: python -m flows.deploy"
        raise BadInput(str(client.api_url), f"no deployment '{name}'", "the deployments of cai", remedy) from error


if __name__ == "__main__":
    run_cli(automations, sys.argv[1:])
