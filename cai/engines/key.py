"""The key of the servers: from the environment only, and taken out of all that a server says in an error."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from cai.errors import BadInput

NO_KEY = "none"


def server_key() -> str:
    """The key. Raises BadInput, without showing it, for one that no header can hold."""
    for name in ("CAI_API_KEY", "OPENAI_API_KEY"):
        if key := os.environ.get(name, "").strip():
            if not (key.isascii() and key.isprintable() and " " not in key):
                raise BadInput(name, "a key with spaces or special characters", "letters, digits and signs", "Mend it.")
            return key
    return NO_KEY


@contextmanager
def without(key: str) -> Generator[None]:
    """Take the key out of an error, and of those that led to it: a server may say what it was sent."""
    try:
        yield
    except Exception as error:
        found: BaseException | None = error
        while found is not None:
            found.args = tuple(hidden(one, key) for one in found.args)
            for name, value in vars(found).items():
                if isinstance(value, str | dict | list):
                    setattr(found, name, hidden(value, key))
            found = found.__cause__ or found.__context__
        raise


def hidden(said: Any, key: str) -> Any:
    """What was said, as text without the key if the key is in it."""
    text = str(said)
    return text.replace(key, "[key]") if key != NO_KEY and key in text else said
