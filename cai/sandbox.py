"""The language that templates may use: text, variables, conditions, loops and a few filters, and nothing that escapes.

Templates are handed on as files, so what is not known to be harmless is refused when a template is loaded, with its
line: calls of any kind, other files, macros, and what makes much out of little (multiplying, loops over the letters of
a text). Jinja's own sandbox lies below, for attributes.
"""

import re
from collections.abc import Iterable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from cai.texts import JOINS, NO_ROOM, TURNS

# Characters of anything that a template makes: four of the longest texts that a row may have.
LONGEST = 64 << 20
_LOOPS = 2  # within each other

_FINE = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If, nodes.For, nodes.Assign),
    *(nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.FilterBlock, nodes.Test, nodes.Compare),
    *(nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.CondExpr, nodes.Concat, nodes.Add, nodes.Sub, nodes.Div),
    *(nodes.FloorDiv, nodes.Neg, nodes.Pos, nodes.List, nodes.Tuple),
)
_FILTERS = (
    *("fence", "join", "replace", "trim", "upper", "lower", "capitalize", "title", "first", "last", "length", "count"),
    *("default", "d"),
)
EXPECTED = f"text, variables, if, for, set, and the filters {', '.join(_FILTERS)}"


class Refused(Exception):
    """A construct that templates may not use: its line, and what it is."""

    def __init__(self, line: int, found: str) -> None:
        super().__init__(found)
        self.line, self.found = line, found


def environment() -> ImmutableSandboxedEnvironment:
    """An environment in which templates that `checked` has let pass are compiled. It has no loader and no globals."""
    made = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals.clear()
    filters: dict[str, Any] = made.filters
    for name in filters.keys() - set(_FILTERS):
        del filters[name]
    filters.update(fence=fence, join=_join, replace=_replace, bounded=_bounded, items=_items)
    made.concat = _whole  # type: ignore[method-assign]
    return made


def fence(text: str) -> str:
    """`text` between two lines of backticks longer than any run of backticks in it, so that it cannot close them.

    What is unseen between two backticks does not part them: whoever reads the run sees one.
    """
    runs = re.findall(rf"`[`{TURNS}{NO_ROOM}{JOINS}]*", text)
    bar = "`" * max(3, 1 + max((run.count("`") for run in runs), default=0))
    return f"{bar}\n{text}\n{bar}"


def checked(made: jinja2.Environment, tree: nodes.Template) -> nodes.Template:
    """The template, with bounds put around all that makes new values. Raises Refused."""
    _look(tree, 0)
    tree = _Bounds().visit(tree)
    tree.set_environment(made)
    return tree


def _look(node: nodes.Node, loops: int) -> None:
    if not isinstance(node, _FINE):
        raise Refused(node.lineno, f"'{_name(node)}'")
    if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
        raise Refused(node.lineno, f"the filter '{node.name}'")
    made_here = isinstance(node, nodes.List) or (isinstance(node, nodes.Tuple) and node.ctx == "load")
    if made_here and not all(isinstance(one, nodes.Const) for one in node.iter_child_nodes()):
        raise Refused(node.lineno, "a list of more than words and numbers")  # a list of lists doubles with each line
    if isinstance(node, nodes.For):
        loops += 1
        if loops > _LOOPS or node.recursive:
            raise Refused(node.lineno, f"more than {_LOOPS} loops within each other")
    for inner in node.iter_child_nodes():
        _look(inner, loops)


def _name(node: nodes.Node) -> str:
    if isinstance(node, nodes.Call):
        called = getattr(node.node, "attr", None) or getattr(node.node, "name", None) or ""
        return f"{called}(...)"
    kind = type(node).__name__.lower()
    return {"mul": "*", "pow": "**", "mod": "%"}.get(kind, kind)


class _Bounds(NodeTransformer):
    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        return _filtered(self.generic_visit(node), "bounded")

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        return _filtered(self.generic_visit(node), "bounded")

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "items")
        return node


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _join(values: Any, between: str = "") -> str:
    texts = [str(one) for one in values]
    _refuse_long(sum(map(len, texts)) + len(texts) * len(between))
    return between.join(texts)


def _replace(text: str, old: str, new: str) -> str:
    text = str(text)
    _refuse_long(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


def _whole(parts: Iterable[str]) -> str:
    """What a template renders to, of which a loop may make any number of parts."""
    told: list[str] = []
    length = 0
    for part in parts:
        length += len(part) + 1
        _refuse_long(length)
        told.append(part)
    return "".join(told)


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        _refuse_long(len(value))
    elif not isinstance(value, int | float):
        raise ValueError("a list that is put together")  # it doubles with each line, and so does what loops over it
    return value


def _items(values: Any) -> Any:
    if isinstance(values, str):
        raise ValueError("a loop over the letters of a text")
    return values


def _refuse_long(length: int) -> None:
    if length > LONGEST:
        raise ValueError(f"a text of {length} characters, more than {LONGEST}")
