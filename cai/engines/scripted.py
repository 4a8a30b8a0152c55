"""An engine without a model: the answer is a function of the request. For tests and for measuring our own overhead."""

import asyncio
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from cai.engines import Completion, Request, Spec
from cai.errors import BadInput
from cai.plain_yaml import read_yaml

Script = Callable[[Request], str | float | Completion]


class ScriptedEngine:
    """Answers each request by calling `script`.

    For a forced choice the script returns the probability of the first word, otherwise the text; or a whole
    Completion, or it raises. `ledger`, if given, gets one line for each call that it is asked: purpose, row id and
    key; `answered` one for each that it has answered.
    """

    def __init__(
        self,
        script: Script,
        model: str = "scripted",
        slots: int = 64,
        latency_seconds: float = 0.0,
        ledger: Path | None = None,
        answered: Path | None = None,
    ) -> None:
        self.model, self.slots = model, slots
        self.restarts = 0
        self._script, self._latency_seconds = script, latency_seconds
        self._ledger, self._answered = ledger, answered

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def versions(self) -> Mapping[str, str]:
        return {}

    async def complete(self, request: Request) -> Completion:
        self._note(self._ledger, request)
        if self._latency_seconds:
            await asyncio.sleep(self._latency_seconds)
        answer = self._script(request)
        self._note(self._answered, request)
        if isinstance(answer, Completion):
            return answer
        prompt_tokens = sum(len(message.content.split()) for message in request.messages)
        if isinstance(answer, str):
            return Completion(answer, "stop", prompt_tokens, 0, len(answer.split()))
        assert request.choices is not None, "a probability answers a forced choice only"
        others = (1 - answer) / (len(request.choices) - 1)
        logprobs = tuple(math.log(max(p, 1e-9)) for p in (answer, *[others] * (len(request.choices) - 1)))
        text = request.choices[logprobs.index(max(logprobs))]
        return Completion(text, "stop", prompt_tokens, 0, 1, (), logprobs)

    def _note(self, path: Path | None, request: Request) -> None:
        if path is not None:
            with path.open("a") as file:
                file.write(f"{request.purpose} {request.row_id} {request.key(self.model)}\n")


def derived_script(request: Request) -> str | float:
    """Different for every request, the same for equal ones: a probability for two words, one of several words, or else
    a short sentence."""
    key = request.key("scripted")
    number = int(key[:8], 16)
    if request.choices is None:
        return f"Scripted {request.purpose} {key[:8]}, which ends with {key[-8:]}."
    return number / 2**32 if len(request.choices) == 2 else request.choices[number % len(request.choices)]


def open_script(spec: Spec) -> ScriptedEngine:
    """The derived script. `--model` may name a YAML file with latency_seconds, ledger and answered (two paths)."""
    options: dict[str, Any] = {}
    slots = spec.slots or 64
    if spec.model is None:
        return ScriptedEngine(derived_script, slots=slots)
    try:
        options = read_yaml(Path(spec.model).read_text(encoding="utf-8"))[0]
        latency = float(options.get("latency_seconds", 0))
        ledger, answered = (Path(name) if (name := options.get(key)) else None for key in ("ledger", "answered"))
    except (OSError, yaml.YAMLError, AttributeError, ValueError, TypeError, RecursionError) as error:
        found, expected = f"no script ({error})", "a YAML file with latency_seconds, ledger, answered"
        raise BadInput(f"--model {spec.model}", found, expected, "Mend it.") from error
    return ScriptedEngine(derived_script, slots=slots, latency_seconds=latency, ledger=ledger, answered=answered)
