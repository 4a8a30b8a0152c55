"""Settings from a YAML file and a command line, each mistake in one sentence; and back to the command they mean."""

import difflib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from cai.errors import BadInput, brief_value
from cai.files import find_shipped, shipped_names
from cai.plain_yaml import read_yaml_file
from cai.settings import ExportSettings, GoldSettings, LabelSettings, PipelineSettings, Settings

S = TypeVar("S", bound=Settings)


def load_settings(kind: type[S], config: str | None, given: Mapping[str, Any]) -> S:
    """Settings from a YAML file (a path, or the name of a recipe), with what is `given` on top.

    A file that holds settings of the whole pipeline may be given to the command of each stage, which then takes what
    the pipeline would hand to that stage.

    Raises BadInput for an unknown key, a wrong type or a value out of bounds; it names the file and line, or the
    option.
    """
    path, from_file, lines = _read_config(config) if config is not None else (None, {}, {})
    foreign = [key for key in from_file if key not in kind.model_fields]
    for key in foreign:
        if key not in PipelineSettings.model_fields:
            close = difflib.get_close_matches(str(key), list(kind.model_fields), n=1)
            remedy = f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(kind.model_fields)}."
            raise BadInput(
                f"{path}:{lines.get(key, 1)}", f"the unknown setting '{key}'", "a setting of this command", remedy
            )
    try:
        if foreign:
            from_file = _stage_of_pipeline(kind, from_file)
        return kind.model_validate({**from_file, **given})
    except ValidationError as error:
        one = error.errors()[0]
        if not one["loc"]:  # settings that do not go together
            found = one["msg"].removeprefix("Value error, ")
            raise BadInput(str(path or "the settings"), found, "settings that go together", "Mend them.") from None
        name = str(one["loc"][0])
        option = option_of(kind, name)
        if one["type"] == "missing":
            raise BadInput(option, "nothing", "a value", "Give it on the command line or in --config FILE.") from None
        place = option if name in given or path is None else f"{path}:{lines.get(name, 1)}"
        found = brief_value(one["input"]) + ("" if place == option else f" for '{name}'")
        told = [other["msg"] for other in error.errors() if other["loc"][0] == name]  # of each kind that it may be
        expected = " or ".join(text.removeprefix("Input should be ").removeprefix("Value error, ") for text in told)
        raise BadInput(place, found, expected, _described(kind, name)) from None


def option_of(kind: type[Settings], name: str) -> str:
    """What a setting is called on the command line: its option, or the argument in capitals."""
    if name == kind.positional:
        return name.upper()
    field = {**PipelineSettings.model_fields, **kind.model_fields}.get(name)
    named: Any = (field.json_schema_extra if field is not None else None) or {}
    return named.get("option", "--" + name.replace("_", "-"))


def repeat(command: str, settings: ExportSettings) -> str:
    """The command that means these settings, for a person to give again."""
    first: str = getattr(settings, settings.positional)
    told = [f"./{first}" if first.startswith("-") else first]
    for name, field in type(settings).model_fields.items():
        value: Any = getattr(settings, name)
        # Where somebody keeps a key is nobody's business, and the same data come of it.
        if name in (settings.positional, "sign") or value == field.default:
            continue
        option = option_of(type(settings), name)
        if isinstance(value, bool):
            told.append(option if value else f"--no-{option[2:]}")
        else:
            for one in value if isinstance(value, tuple) else (value,):
                told += [option, str(one)]
    return shlex.join([*command.split(), *told])


def _described(kind: type[Settings], name: str) -> str:
    return {**PipelineSettings.model_fields, **kind.model_fields}[name].description or ""


def _stage_of_pipeline(kind: type[Settings], from_file: dict[str, Any]) -> dict[str, Any]:
    """What the pipeline with these settings hands to one stage, without what hangs on a missing PROMPTS or --out."""
    missing = "\x00"
    whole = PipelineSettings.model_validate({"prompts": missing, "out": missing, **from_file})
    told: dict[str, Any]
    if kind is LabelSettings:
        told = whole.labelling().model_dump()
    elif kind is ExportSettings:
        told = whole.exporting().model_dump()
    elif issubclass(kind, GoldSettings):
        told = whole.measuring()
    else:
        told = whole.revising().model_dump()
    return {
        name: value
        for name, value in told.items()
        if name in kind.model_fields and not (isinstance(value, str) and value.startswith(missing))
    }


def _read_config(config: str) -> tuple[Path, dict[str, Any], dict[str, int]]:
    path = find_shipped("flows/recipes", config, ".yaml")
    if path is None:
        known = ", ".join(shipped_names("flows/recipes", ".yaml"))
        raise BadInput("--config", f"no file and no recipe '{config}'", "a YAML file or a recipe", f"Recipes: {known}.")
    data, node = read_yaml_file(path, str(path), "a YAML file of settings", "Mend it.")
    if not isinstance(data, dict) or not isinstance(node, yaml.MappingNode):
        raise BadInput(str(path), "no settings", "lines such as 'rounds: 2'", "See flows/recipes/demo.yaml.")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value in lines:
            found = f"the setting '{key.value}' a second time"
            raise BadInput(f"{path}:{line}", found, "each setting once", "Remove one of them.")
        lines[key.value] = line
    return path, data, lines
