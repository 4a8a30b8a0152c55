"""What is wrong with prefect.yaml, or refused of it, as one sentence. A real server refuses in tests/test_serve.py."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from cai.errors import BadInput
from flows import deploy
from flows.shared import reaching_the_server

PRINTED = """\
Deploying all flows with an existing deployment configuration...
╭────────╮
│ Deploying revise                   │
╰────────╯
Deployment 'cai/revise' successfully created
╭────────╮
│ Deploying label                    │
╰────────╯
{}
"""
BOUND = (
    "prefect.exceptions.PrefectHTTPStatusError: Client error '422 Unprocessable Entity' for url 'http://x/1' -"
    " Response: {'exception_message': 'Invalid request received.', 'exception_detail': [{'type': 'greater_than', 'loc':"
    " ['body', 'concurrency_limit'], 'msg': 'Input should be greater than 0', 'input': -1}], 'request_body': {}}"
    " - For more information check: https://x/422\nAn exception occurred."
)
CRON = '1 validation error for CronSchedule\ncron\n  Value error, Invalid cron string: "0 99 * * *" [type=value_error]'
FILE = (
    "Traceback (most recent call last):\n  ...\nFileNotFoundError: [Errno 2] No such file or directory: 'flows/no.py'"
)


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        (BOUND, r"concurrency_limit: Input should be greater than 0\)"),
        (CRON, "1 validation error for CronSchedule cron Value error, Invalid cron string"),
        (
            FILE + "\nAn exception occurred.\n",
            r"FileNotFoundError: \[Errno 2\] No such file or directory: 'flows/no.py'\)",
        ),
    ],
)
def test_of_what_prefect_prints_the_reason_and_the_deployment_are_said(
    monkeypatch: pytest.MonkeyPatch, printed: str, words: str
):
    done = SimpleNamespace(returncode=1, stdout=PRINTED.format(""), stderr=printed)
    if printed is CRON:
        done.stdout, done.stderr = PRINTED.format(CRON), ""
    monkeypatch.setattr(deploy.subprocess, "run", lambda *_, **__: done)
    found = f"^prefect.yaml, deployment cai/label: found what Prefect refuses .{words}"
    with pytest.raises(BadInput, match=found) as said:
        deploy._prefect_deploy("http://x/api", [])
    assert "\n" not in str(said.value) and "Traceback" not in str(said.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("deployments:\n  - name: revise\n    tags: [\n", "mine.yaml:4: found text that is not YAML"),
        ("name: cai\n", "mine.yaml: found no such list, expected a list of objects under 'deployments'"),
        ("deployments:\n  - name: revise\n", "mine.yaml:2, deployment revise: found no work_pool with a name"),
        ("deployments:\n\n  - tags: []\n", "mine.yaml:3: found something else, expected a list of objects under"),
    ],
)
def test_a_bad_prefect_yaml_is_one_sentence_with_its_place_before_the_server_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str
):
    def asked() -> Any:
        raise AssertionError("the server is asked")

    monkeypatch.setattr(deploy, "get_client", asked)
    monkeypatch.setattr(deploy, "FILE", tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(BadInput, match=words) as said:
        asyncio.run(deploy.deploy_all())
    assert "\n" not in str(said.value)


def refusal(code: int, answer: object) -> httpx.HTTPStatusError:
    request = httpx.Request("PATCH", "http://x/api/deployments/1")
    return httpx.HTTPStatusError(f"{code}", request=request, response=httpx.Response(code, json=answer))


class OneServer:
    """Of Prefect's client what a deploy needs: a pool, and deployments, of which cai/revise has the schedules given."""

    api_url = "http://x/api"

    def __init__(self, schedules: list[DeploymentSchedule], after: list[DeploymentSchedule] | None = None) -> None:
        self.schedules, self.after = schedules, schedules if after is None else after
        self.told: list[dict[str, Any]] = []
        self.closed: list[str] = []

    async def __aenter__(self) -> "OneServer":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def read_work_pool(self, name: str) -> None:
        return None

    async def read_deployment_by_name(self, name: str) -> SimpleNamespace:
        schedules = self.after if self.told else self.schedules
        return SimpleNamespace(name=name.removeprefix("cai/"), schedules=schedules if name == "cai/revise" else [])


def schedule(cron: str, slug: str | None = "nightly", active: bool = True) -> DeploymentSchedule:
    return DeploymentSchedule(schedule=CronSchedule(cron=cron, timezone="UTC"), active=active, slug=slug)


def deployed(
    monkeypatch: pytest.MonkeyPatch, server: OneServer, refused: BadInput | None = None, unknown: str | None = None
) -> list[str]:
    """What a deploy on this server says, where Prefect's command ends with `refused`, and `unknown` has a parameter
    that its flow has not."""

    def prefect_deploy(_: str, told: list[dict[str, Any]]) -> None:
        server.told = told
        if refused is not None:
            raise refused

    async def refuse(_: object, one: Any) -> None:
        if one.name == unknown:
            detail = "Failure reason: Additional properties are not allowed\n('limitt' was unexpected)"
            raise refusal(409, {"detail": f"Error updating deployment: {detail}"})
        server.closed.append(one.name)

    monkeypatch.setattr(deploy, "get_client", lambda: server)
    monkeypatch.setattr(deploy, "_prefect_deploy", prefect_deploy)
    monkeypatch.setattr(deploy, "_refuse_unknown", refuse)
    return asyncio.run(deploy.deploy_all(automations=False))


def test_a_parameter_that_no_flow_has_is_named_with_its_deployment(monkeypatch: pytest.MonkeyPatch):
    server = OneServer([])
    with pytest.raises(BadInput, match=r"deployment cai/revise: found .* not allowed \('limitt' was unexpected\)\)"):
        deployed(monkeypatch, server, unknown="revise")
    assert server.closed == ["generate", "label", "export", "pipeline"], "the others refuse what no flow has"


def test_a_refused_deploy_leaves_each_deployment_refusing_what_no_flow_has(monkeypatch: pytest.MonkeyPatch):
    server = OneServer([])
    with pytest.raises(BadInput, match="the reason"):
        deployed(monkeypatch, server, refused=BadInput("prefect.yaml", "the reason", "another", "Mend it."))
    assert server.closed == ["revise", "generate", "label", "export", "pipeline"]


@pytest.mark.parametrize(
    ("there", "active"),
    [
        ([schedule("0 3 * * *")], True),
        ([schedule("0 9 * * *")], True),  # the file has another time now
        ([schedule("0 3 * * *", active=False)], False),
        ([schedule("0 3 * * *", slug="weekly")], False),
        ([schedule("0 3 * * *", slug=None)], True),  # deployed before schedules had slugs
        ([schedule("0 9 * * *", slug=None)], False),
        ([], False),
    ],
)
def test_prefect_is_told_to_leave_a_schedule_on_that_is_on(
    monkeypatch: pytest.MonkeyPatch, there: list[DeploymentSchedule], active: bool
):
    server = OneServer(there)
    said = deployed(monkeypatch, server)
    revise, *others = server.told
    assert [one["active"] for one in revise["schedules"]] == [active]
    assert [one["active"] for other in others for one in other["schedules"]] == [False] * 4
    on = any(one.active for one in there)
    assert f"deployment cai/revise: brought up to date{', its schedule stays on' if on else ''}" in said


def test_a_schedule_that_was_on_and_is_no_longer_the_same_is_said_to_be_off(monkeypatch: pytest.MonkeyPatch):
    before, after = schedule("0 9 * * *", slug=None), schedule("0 3 * * *", active=False)
    said = [line for line in deployed(monkeypatch, OneServer([before], [after])) if "cai/revise" in line]
    assert "a schedule that was on is off" in said[0] and "prefect deployment schedule ls cai/revise" in said[0]


def test_what_prefect_reads_is_the_file_with_the_schedules_as_they_were_told(monkeypatch: pytest.MonkeyPatch):
    told = yaml.safe_load(deploy.FILE.read_text())
    told["deployments"][0]["schedules"][0]["active"] = True
    read: list[Any] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        read.append(yaml.safe_load(Path(command[-1]).read_text()))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(deploy.subprocess, "run", run)
    deploy._prefect_deploy("http://x/api", told["deployments"])
    assert read == [told]


@pytest.mark.parametrize(("code", "hint"), [(401, True), (403, True), (409, False), (422, False), (503, False)])
def test_the_password_is_spoken_of_only_where_it_is_what_the_server_misses(code: int, hint: bool):
    with (
        temporary_settings({PREFECT_API_URL: "http://x/api"}),
        pytest.raises(BadInput, match=r"found the reason, expected a Prefect server that agrees") as said,
        reaching_the_server(),
    ):
        raise refusal(code, {"detail": "the\n reason"})
    assert ("PREFECT_API_AUTH_STRING" in str(said.value)) == hint


def test_an_address_that_is_set_and_empty_is_none_and_no_server_is_started():
    for settings in ({"updates": {PREFECT_API_URL: ""}}, {"restore_defaults": {PREFECT_API_URL}}):
        with (
            temporary_settings(**settings),
            pytest.raises(BadInput, match="PREFECT_API_URL: found nothing, expected the address of a Prefect server"),
            reaching_the_server(),
        ):
            pytest.fail("it has begun")
