"""automations.yaml and prefect.yaml, read. What they do on a real server is in tests/test_serve.py."""

import ast
import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound

from cai.errors import BadInput
from cai.settings import ExportSettings, LabelSettings
from flows import automations

ROOT = Path(__file__).parent.parent
FILE: list[dict[str, Any]] = yaml.safe_load((ROOT / "automations.yaml").read_text())


class OneServer:
    """Of Prefect's client what the automations need: automations by name, and deployments if there are any."""

    api_url = "http://server/api"

    def __init__(self, deployed: bool = True) -> None:
        self.deployed = deployed
        self.there: dict[str, AutomationCore] = {}
        self.updated: list[str] = []
        self.runs: list[Any] = []
        self.events: list[Any] = []
        self._client = self

    async def __aenter__(self) -> "OneServer":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def read_deployment_by_name(self, name: str) -> Any:
        if not self.deployed:
            raise ObjectNotFound(http_exc=Exception(name))
        return SimpleNamespace(id=f"00000000-0000-4000-8000-{len(name):012}")

    async def read_automations_by_name(self, name: str) -> list[Any]:
        return [
            SimpleNamespace(
                id=key, enabled=one.enabled, model_dump=lambda one=one, key=key: {**one.model_dump(), "id": key}
            )
            for key, one in self.there.items()
            if key.startswith(name)
        ]

    async def create_automation(self, automation: AutomationCore) -> None:
        self.there[f"{automation.name} {len(self.there)}"] = automation

    async def update_automation(self, key: str, automation: AutomationCore) -> None:
        self.there[key] = automation
        self.updated.append(automation.name)

    async def read_flow_runs(self, flow_run_filter: FlowRunFilter) -> list[Any]:
        told = flow_run_filter.model_dump(mode="json")
        assert (told["state"]["type"]["any_"], told["tags"]["all_"]) == (["RUNNING", "PENDING"], ["cai"])
        return self.runs

    async def post(self, path: str, json: Any) -> httpx.Response:
        assert path == "/events"
        self.events += json
        return httpx.Response(204, request=httpx.Request("POST", "http://server/api/events"))

    async def delete_automation(self, key: str) -> None:
        del self.there[key]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> OneServer:
    server = OneServer()
    monkeypatch.setattr(automations, "get_client", lambda: server)
    return server


def test_putting_them_there_twice_leaves_each_once_and_keeps_what_was_paused(server: OneServer):
    assert [line.split(": ")[1] for line in asyncio.run(automations.put_all())] == ["created"] * len(FILE)
    first = next(iter(server.there))
    server.there[first].enabled = False
    server.there["cai label after revise 99"] = server.there[first]  # a second of the same name
    again = asyncio.run(automations.put_all())
    assert [line.split(": ")[1] for line in again] == ["is there"] * len(FILE)
    assert server.updated == [], "a trigger that is put there anew forgets what it waits for"
    assert sorted(one.name for one in server.there.values()) == sorted(told["name"] for told in FILE)
    assert [one.enabled for one in server.there.values()] == [False, *[True] * (len(FILE) - 1)]


def test_what_has_changed_is_brought_up_to_date_and_paused_stays_paused(server: OneServer):
    asyncio.run(automations.put_all())
    for key, one in list(server.there.items()):
        if one.name == "cai runs of dead workers":
            server.there[key] = one.model_copy(update={"description": "before", "enabled": False})
    again = asyncio.run(automations.put_all())
    assert [line.split(": ")[1] for line in again] == ["is there", "is there", "brought up to date"]
    assert server.updated == ["cai runs of dead workers"]
    assert [(one.description == "before", one.enabled) for one in server.there.values()][-1] == (False, False)


def test_a_sign_of_life_is_awaited_of_each_run_that_is_called_running(
    server: OneServer, monkeypatch: pytest.MonkeyPatch
):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(automations.asyncio, "sleep", sleep)
    server.runs = [SimpleNamespace(id="a-run", name="revise x into y", state_type=StateType.RUNNING)]
    assert "runs that are called running: 1; crashed if no sign of life" in asyncio.run(automations.put_all())[-1]
    assert slept == [automations.SECONDS_UNTIL_KNOWN], "the server's other processes are to know of the new automation"
    asyncio.run(automations.put_all())
    assert len(slept) == 1 and len(server.events) == 2
    (told,) = [told for told in FILE if told["trigger"]["posture"] == "Proactive"]
    for event in server.events:
        assert event["event"] in told["trigger"]["after"] and event["event"] not in told["trigger"]["expect"]
        assert event["resource"]["prefect.resource.id"] == "prefect.flow-run.a-run"
        assert event["related"][0]["prefect.resource.id"] == told["trigger"]["match_related"]["prefect.resource.id"]


def test_a_run_that_is_pending_is_awaited_too_and_named_with_what_lets_the_others_begin(server: OneServer):
    asyncio.run(automations.put_all())
    server.runs = [SimpleNamespace(id="the-id", name="generous-rook", state_type=StateType.PENDING)]
    *_, counted, named = asyncio.run(automations.put_all())
    assert counted.startswith("runs that are called pending: 1; crashed if no sign of life")
    assert "generous-rook" in named and named.endswith("prefect flow-run delete the-id")
    assert [one["resource"]["prefect.resource.id"] for one in server.events] == ["prefect.flow-run.the-id"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- name: x\n  actions: [\n", r"mine.yaml:3: found text that is not YAML"),
        ("name: x\n", r"mine.yaml: found no such list, expected a list of objects, each with a name"),
        ("- name: x\n- 3\n", r"mine.yaml:2: found something else"),
        ("- name: x\n  actions: []\n", r"mine.yaml:1, automation 'x': found trigger: Field required, expected"),
        ("\n- name: x\n  trigger: {type: event}\n", r"mine.yaml:2, automation 'x': found actions: Field required"),
        (
            "- name: x\n  trigger: {type: event}\n  actions: [{type: no}]\n",
            r"'x': found an action of a type that Prefect d",
        ),
        (
            "- name: x\n  trigger: {type: event}\n  actions: [{type: change-flow-run-state}]\n",
            r"'x': found actions.0.state: Field required, expected an automation",
        ),
    ],
)
def test_a_bad_file_is_one_sentence_with_its_place_and_nothing_is_written(
    server: OneServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
):
    monkeypatch.setattr(automations, "FILE", tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(BadInput, match=words) as said:
        asyncio.run(automations.put_all())
    assert server.there == {} and "\n" not in str(said.value)


def test_they_are_removed_and_nothing_else_is(server: OneServer):
    asyncio.run(automations.put_all())
    server.there["somebody's own"] = next(iter(server.there.values()))
    assert len(asyncio.run(automations.remove_all())) == len(FILE)
    assert list(server.there) == ["somebody's own"]
    assert asyncio.run(automations.remove_all()) == []


def test_without_the_deployments_they_say_what_to_do(server: OneServer):
    server.deployed = False
    with pytest.raises(BadInput, match=r"no deployment 'cai/label'.* Deploy first: python -m flows.deploy"):
        asyncio.run(automations.put_all())
    assert server.there == {}


def test_the_chain_hands_on_parameters_that_the_flows_have_and_events_that_they_emit():
    runs = {told["actions"][0]["deployment"]: told for told in FILE if "deployment" in told["actions"][0]}
    assert {name: told["trigger"]["expect"] for name, told in runs.items()} == {
        "cai/label": ["cai.revise.finished"],
        "cai/export": ["cai.label.finished"],
    }
    for name, kind in {"cai/label": LabelSettings, "cai/export": ExportSettings}.items():
        given = runs[name]["actions"][0]["parameters"]
        required = {setting for setting, field in kind.model_fields.items() if field.is_required()}
        assert set(given) == required
    emitted = {
        keyword.arg
        for node in ast.walk(ast.parse((ROOT / "flows/watch.py").read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "announce_outcome"
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
    } | {"run"}
    named = {word.split(" }}")[0] for word in json.dumps(FILE).split("event.payload.")[1:]}
    assert named <= emitted


def test_only_a_run_of_cai_is_taken_for_dead_and_not_for_a_server_that_was_gone_for_minutes():
    settings = (ROOT / "pyproject.toml").read_text()
    (told,) = [told for told in FILE if told["trigger"]["posture"] == "Proactive"]
    assert "flows.heartbeat_frequency = 30" in settings and told["trigger"]["within"] == 10 * 30
    assert told["trigger"]["match_related"] == {"prefect.resource.id": "prefect.tag.cai"}
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        assert "cai" in deployment["tags"]
