"""The kinds of field in the settings: how each reads what YAML and the command line give, and what it refuses."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from cai.figures import BOUND_PATTERN, bound_of
from cai.rows import is_text


def _switch(value: object) -> object:
    # YAML reads the words on and off as booleans.
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _list(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _bound(value: str) -> str:
    bound_of(value)
    return value


def _text(value: str) -> str:
    if not is_text(value):
        raise ValueError("text that UTF-8 can hold")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("a name that is not blank")
    return value


Told = Annotated[str, AfterValidator(_text)]
Several = Annotated[tuple[Told, ...], Field(strict=False), BeforeValidator(_list)]
# A pattern is for a deployment's schema, by which Prefect's server refuses a value before there is a run.
Bounding = Annotated[str, AfterValidator(_bound), Field(json_schema_extra={"pattern": BOUND_PATTERN})]
Alarms = Annotated[tuple[Bounding, ...], Field(strict=False), BeforeValidator(_list)]
Switch = Annotated[Literal["on", "off"], BeforeValidator(_switch)]
Name = Annotated[str, AfterValidator(_not_blank), Field(json_schema_extra={"pattern": r"\S"})]
SwitchOrName = Annotated[Name, BeforeValidator(_switch)]
Temperature = Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1)]
Tokens = Annotated[int, Field(ge=1, le=131_072)]
