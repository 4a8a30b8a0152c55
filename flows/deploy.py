"""Everything a Prefect server needs to run cai: the work pools, the deployments, the automations.

    python -m flows.deploy

What `prefect deploy --all` leaves out: a pool that is there already keeps its settings, a schedule that somebody has
switched on stays on, and a parameter that no flow has is refused before a run starts.
"""

import ast
import asyncio
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import httpx
import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from cai.cli import run_cli
from cai.errors import BadInput
from cai.plain_yaml import read_yaml_file
from flows.automations import FILE as AUTOMATIONS
from flows.automations import put_all
from flows.shared import reaching_the_server, read_list, reason_of, said_by

ROOT = Path(__file__).parent.parent
FILE = ROOT / "prefect.yaml"


@click.command()
@click.option("--automations/--no-automations", default=True, help="Those of automations.yaml.  [default: on]")
def deploy(automations: bool) -> None:
    """Put work pools, deployments and automations on the server that PREFECT_API_URL names, or bring them up to date.

    \b
    Example:
      PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.deploy
    """
    with reaching_the_server():
        for sentence in asyncio.run(deploy_all(automations)):
            click.echo(sentence)


async def deploy_all(automations: bool = True) -> list[str]:
    """Raises BadInput for what cannot be read of prefect.yaml and automations.yaml, and for what Prefect refuses."""
    told = read_list(FILE, "deployments")
    names = [one["name"] for _, one in told]
    pools = [_pool_of(place, one) for place, one in told]
    if automations:
        read_list(AUTOMATIONS)  # before anything is written
    async with get_client() as client:
        said = [await _pool(client, name) for name in dict.fromkeys(pools)]
        before = {name: await _read(client, name) for name in names}
        for _, one in told:
            _keep_switched_on(one, before[one["name"]])
        refused: BadInput | None = None
        try:
            await asyncio.to_thread(_prefect_deploy, str(client.api_url), [one for _, one in told])
        except BadInput as error:
            refused = error  # those before it are there, and are to refuse what no flow has
        for name in names:
            if (deployed := await _read(client, name)) is None:
                continue  # Prefect has not come to it
            try:
                await _refuse_unknown(client, deployed)
            except httpx.HTTPStatusError as error:
                refused = refused or _refused(name, said_by(error))
            how = "deployed" if before[name] is None else "brought up to date"
            said.append(f"deployment cai/{name}: {how}{_of_schedules(before[name], deployed)}")
    if refused is not None:
        raise refused
    return said + (await put_all() if automations else [])


def _pool_of(place: str, told: dict[str, Any]) -> str:
    pool = told.get("work_pool")
    if not isinstance(pool, dict) or not isinstance(pool.get("name"), str):
        where = f"{place}, deployment {told['name']}"
        raise BadInput(where, "no work_pool with a name", "work_pool: {name: cai, ...}", "Mend it there.")
    return pool["name"]


async def _pool(client: PrefectClient, name: str) -> str:
    try:
        await client.read_work_pool(name)
        return f"work pool {name}: is there"
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        await client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        return f"work pool {name}: created"


async def _read(client: PrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return await client.read_deployment_by_name(f"cai/{name}")
    except ObjectNotFound:
        return None


def _keep_switched_on(told: dict[str, Any], before: DeploymentResponse | None) -> None:
    """Let `told` switch on each schedule that is on, also at another time than before: Prefect does as it is told.

    Told with it, and not switched on again afterwards: a refusal or a kill in between would leave it off.
    """
    on = [one for one in before.schedules if one.active] if before is not None else []
    schedules = told.get("schedules")
    for one in schedules if isinstance(schedules, list) else []:
        if isinstance(one, dict) and any(_is_of(one, there) for there in on):
            one["active"] = True


def _is_of(told: dict[str, Any], there: DeploymentSchedule) -> bool:
    if there.slug is not None:
        return there.slug == told.get("slug")
    return "cron" in told and told["cron"] == getattr(there.schedule, "cron", None)  # deployed before it had a slug


def _of_schedules(before: DeploymentResponse | None, after: DeploymentResponse) -> str:
    was, on = [sum(schedule.active for schedule in one.schedules) if one else 0 for one in (before, after)]
    if on < was:
        command = f"prefect deployment schedule ls cai/{after.name}, then resume in the place of ls, with its id behind"
        return f", a schedule that was on is off, since it is another one now. To switch it on: {command}"
    return ", its schedule stays on" if was else ""


def _prefect_deploy(api_url: str, deployments: list[dict[str, Any]]) -> None:
    """Give Prefect's command these deployments, in the place of those that stand in the file."""
    values, _ = read_yaml_file(FILE, FILE.name, "a list of deployments", "Mend it there.")
    told = {**os.environ, "PREFECT_API_URL": api_url, "COLUMNS": "4000", "NO_COLOR": "1"}  # nothing is wrapped
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILE.name
        file.write_text(yaml.safe_dump({**values, "deployments": deployments}), encoding="utf-8")
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
        done = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True)
    if done.returncode:
        begun = re.findall(r"Deploying (\S+) +│", done.stdout)
        raise _refused(begun[-1] if begun else None, _reason(done.stdout + done.stderr))


def _reason(printed: str) -> str:
    """Why Prefect's command has ended: what the server has answered, or else the last that it says."""
    for answer in re.findall(r" - Response: (\{.*\}) - For more information", printed):
        with suppress(ValueError, SyntaxError):
            if said := reason_of(ast.literal_eval(answer)):
                return said
    lines = [line.strip() for line in printed.splitlines() if line.strip() and "An exception occurred" not in line]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception|NotFound): ", line)]
    after = lines[max((place for place, line in enumerate(lines) if line.startswith("╰")), default=-1) + 1 :]
    return raised[-1][:500] if raised else " ".join(after[-6:])[:500]


def _refused(name: str | None, reason: str) -> BadInput:
    place = "prefect.yaml" if name is None else f"prefect.yaml, deployment cai/{name}"
    remedy = "Mend it there, then give the same command again."
    return BadInput(place, f"what Prefect refuses ({reason})", "a deployment that it takes", remedy)


async def _refuse_unknown(client: PrefectClient, deployed: DeploymentResponse) -> None:
    """Close the schema: Prefect takes any name for a parameter else, and the run fails once it has a worker."""
    schema: dict[str, Any] = {**(deployed.parameter_openapi_schema or {}), "additionalProperties": False}
    answer = await client._client.patch(f"/deployments/{deployed.id}", json={"parameter_openapi_schema": schema})
    answer.raise_for_status()


if __name__ == "__main__":
    run_cli(deploy, sys.argv[1:])
