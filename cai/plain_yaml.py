"""YAML as files of people are read: plain values only, and no more of them than the file seems to hold."""

from pathlib import Path
from typing import Any

import yaml

from cai.errors import BadInput

# Characters of a file, and of what its aliases unfold to: a constitution of hundreds of principles has a tenth of it.
LONGEST = 1 << 20
_LONGEST_NUMBER = 100
_DEEPEST = 50


def read_yaml(text: str) -> tuple[Any, yaml.Node | None]:
    """The values of a YAML text, and its nodes, which know their lines.

    Raises yaml.YAMLError, ValueError or RecursionError for a text that is no YAML, a value that is none of its kind,
    and a text that is small and unfolds to something large.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{len(text)} characters, more than {LONGEST}")
    node = yaml.compose(text, Loader=_Shallow)
    if node is not None and (size := _size(node, {})) > LONGEST:
        raise ValueError(f"aliases that unfold to {size} characters, more than {LONGEST}")
    try:
        return yaml.safe_load(text), node
    except (ValueError, KeyError, IndexError, AttributeError, TypeError):  # "!!bool maybe", "!!int ''", 2026-02-30
        # Not from the error, which shows the value.
        raise ValueError("a date that is none, or a value that is not of the kind that its tag (!!) names") from None


def read_yaml_file(path: Path, called: str, expected: str, remedy: str) -> tuple[Any, yaml.Node | None]:
    """The values of a YAML file, and its nodes.

    Raises BadInput for a file that cannot be read or is no YAML: it is `called` so, and the line named where one is to
    blame. What was `expected` and the `remedy` are the reader's words.
    """
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why, place = " ".join(str(error).split()), called
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            # Without the line itself, which may hold a key.
            why, place = str(error.problem), f"{called}:{error.problem_mark.line + 1}"
        raise BadInput(place, f"text that is not YAML ({why})", expected, remedy) from None


class _Shallow(yaml.SafeLoader):
    """Gives up where lists and objects lie too deep within each other: the time they take grows with the square."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} lists or objects within each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _size(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """How many characters, keys and items a node has when all its aliases are written out."""
    if id(node) in sizes:
        size = sizes[id(node)]
        if size is None:
            raise ValueError("an anchor that holds itself")
        return size
    sizes[id(node)] = None
    if isinstance(node, yaml.MappingNode):
        size = 1 + sum(_size(key, sizes) + _size(value, sizes) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size = 1 + sum(_size(one, sizes) for one in node.value)
    else:
        size = 1 + len(node.value)
        # Numbers may be written to the base 60, which takes time that grows with the square of their length.
        if node.tag.endswith((":int", ":float")) and size > _LONGEST_NUMBER:
            raise ValueError(f"a number of {size - 1} digits")
    sizes[id(node)] = size
    return size
