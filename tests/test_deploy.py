"""What is wrong with prefect.yaml, or refused of it, as one sentence. A real server refuses in tests/test_serve.py."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
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
        deploy._prefect_deploy("http://x/api")
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


def refused(code: int, answer: object) -> httpx.HTTPStatusError:
    request = httpx.Request("PATCH", "http://x/api/deployments/1")
    return httpx.HTTPStatusError(f"{code}", request=request, response=httpx.Response(code, json=answer))


def test_a_parameter_that_no_flow_has_is_named_with_its_deployment(monkeypatch: pytest.MonkeyPatch):
    class OneServer:
        api_url = "http://x/api"

        async def __aenter__(self) -> "OneServer":
            return self

        async def __aexit__(self, *_: object) -> None:
            return None

        async def read_work_pool(self, name: str) -> None:
            return None

        async def read_deployment_by_name(self, name: str) -> str:
            return name

    async def refuse(client: object, deployed: str) -> None:
        detail = "Validation failed. Failure reason: Additional properties are not allowed\n('limitt' was unexpected)"
        raise refused(409, {"detail": f"Error updating deployment: {detail}"})

    monkeypatch.setattr(deploy, "get_client", OneServer)
    monkeypatch.setattr(deploy, "_prefect_deploy", lambda url: None)
    monkeypatch.setattr(deploy, "_refuse_unknown", refuse)
    with pytest.raises(BadInput, match=r"deployment cai/revise: found .* not allowed \('limitt' was unexpected\)\)"):
        asyncio.run(deploy.deploy_all())


@pytest.mark.parametrize(("code", "hint"), [(401, True), (403, True), (409, False), (422, False), (503, False)])
def test_the_password_is_spoken_of_only_where_it_is_what_the_server_misses(code: int, hint: bool):
    with (
        temporary_settings({PREFECT_API_URL: "http://x/api"}),
        pytest.raises(BadInput, match=r"found the reason, expected a Prefect server that agrees") as said,
        reaching_the_server(),
    ):
        raise refused(code, {"detail": "the\n reason"})
    assert ("PREFECT_API_AUTH_STRING" in str(said.value)) == hint
