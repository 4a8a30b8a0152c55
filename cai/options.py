"""The options of a command, made from the fields of a settings model, so that each is written down once."""

import shlex
import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click

from cai.settings import ExportSettings, Settings
from cai.settings_load import load_settings, option_of


def with_settings(kind: type[Settings]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one option for each field of a settings model; the command gets the options that were given."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(_own_first(kind)):
            if name == kind.positional:
                continue
            kind_of, multiple = _click_type(field.annotation)
            default = (
                "" if field.default is None or field.is_required() or multiple else f"  [default: {field.default}]"
            )
            flag = option_of(kind, name)
            command = click.option(
                f"{flag}/--no-{flag[2:]}" if kind_of is bool else flag,
                name,
                type=None if kind_of is bool else kind_of,
                multiple=multiple,
                default=None,
                help=(field.description or "") + default,
            )(command)
        command = click.option("--config", help="Settings from a YAML file or a recipe; options here come first.")(
            command
        )
        command = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)
        return click.argument(kind.positional, required=False)(command)

    return decorate


def _own_first(kind: type[Settings]) -> list[tuple[str, Any]]:
    """The fields of a settings model, its own before those that it shares with others."""
    owners = [one.__annotations__ for one in kind.__mro__ if "__annotations__" in one.__dict__]
    depth = {name: next(n for n, own in enumerate(owners) if name in own) for name in kind.model_fields}
    return sorted(kind.model_fields.items(), key=lambda item: depth[item[0]])


def _click_type(annotation: Any) -> tuple[Any, bool]:
    """The click type of a field, and whether it may be given several times. The settings model checks bounds."""
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [one for one in get_args(annotation) if one is not type(None)]
        if len(kinds) > 1:
            return str, False
        annotation = kinds[0]
    if get_origin(annotation) is tuple:
        return str, True
    while hasattr(annotation, "__metadata__"):
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation)), False
    return annotation, False


S = TypeVar("S", bound=Settings)


def chosen(kind: type[S], options: dict[str, Any]) -> S:
    """The settings that a command line means: its options on top of its --config."""
    config = options.pop("config")
    return load_settings(kind, config, {name: value for name, value in options.items() if value not in (None, ())})


@click.command(add_help_option=False)
@with_settings(ExportSettings)
def _export(**_: Any) -> None:
    """What `cai export` is given, to read a command by."""


def meant_by(command: str) -> ExportSettings:
    """The settings that a `cai export` means, as `settings_load.repeat` writes it.

    Raises BadInput or ValueError for anything else.
    """
    words = shlex.split(command)
    if words[:2] != ["cai", "export"]:
        raise ValueError("another command")
    try:
        options = dict(_export.make_context("export", words[2:]).params)
    except click.ClickException as error:
        raise ValueError(error.message) from None
    if options.pop("as_json") or options["config"] is not None:
        raise ValueError("an option that no such command has")
    return chosen(ExportSettings, options)
