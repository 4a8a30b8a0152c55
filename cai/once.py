"""What several stages of one command read is read once: the text that was checked is the text that is used."""

from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

_loaded: ContextVar[dict[Hashable, Any] | None] = ContextVar("loaded", default=None)


@contextmanager
def read_once() -> Generator[None]:
    """Inside, `once` gives again what it gave before, whatever somebody has done to the files since."""
    token = _loaded.set({})
    try:
        yield
    finally:
        _loaded.reset(token)


def once(load: Callable[..., T], *arguments: Hashable) -> T:
    """What `load` gives for these arguments. Raises what it raises."""
    loaded = _loaded.get()
    if loaded is None:
        return load(*arguments)
    key = (load, arguments)
    if key not in loaded:
        loaded[key] = load(*arguments)
    return loaded[key]
