"""What is found at the address of a server before it is asked anything: whether it is there, and its models."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import openai

from cai.engines.connection import client_of
from cai.engines.faults import cause_of, elsewhere
from cai.engines.key import hidden
from cai.engines.replies import model_names
from cai.errors import BadInput
from cai.pasted import word

LOOK_SECONDS = 30.0


class NotThere(BadInput):
    """An endpoint at which no server answers."""


async def models_at(client: openai.AsyncOpenAI, endpoint: str, key: str, seconds: float) -> list[str]:
    """The models that a server lists; empty if it keeps no list.

    Raises BadInput if the endpoint cannot be used, NotThere if no working server is there.
    """
    try:
        async with asyncio.timeout(seconds):
            answer = await client.models.with_raw_response.list()
        return [hidden(name, key) for name in model_names(answer.content)]
    except (TimeoutError, openai.APIConnectionError) as error:
        found = f"no server that answers ({cause_of(error)})"
        raise NotThere(endpoint, found, "an OpenAI-compatible server", "Start it, or mend --endpoint.") from error
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        found = f"a server that refuses the key ({error.status_code})"
        raise BadInput(endpoint, found, "access", "Set CAI_API_KEY.") from error
    except openai.InternalServerError as error:
        found = f"the status {error.status_code}"
        raise NotThere(endpoint, found, "a server that works", "See the server's log.") from error
    except openai.APIError as error:
        if address := elsewhere(error):
            found = f"a server that sends its callers on to {address}"
            raise BadInput(endpoint, found, "the server itself", f"Give --endpoint {word(address)}.") from error
        return []  # a server that keeps no such list may still answer chats


def only_model(endpoints: list[str], key: str) -> str:
    """The one model that the first endpoint serves, of those that can be reached. Raises BadInput."""
    for number, endpoint in enumerate(endpoints, start=1):
        try:
            # In a thread of its own: whoever opens an engine may be in an event loop.
            with ThreadPoolExecutor(1) as alone:
                served = alone.submit(asyncio.run, _look(endpoint, key)).result()
        except NotThere:
            if number == len(endpoints):
                raise
            continue
        if len(served) != 1:
            found = f"{len(served)} models ({', '.join(served)})" if served else "no list of models"
            raise BadInput(endpoint, found, "exactly one, since --model is not given", "Give --model.")
        return served[0]
    raise AssertionError("there is at least one endpoint")


async def _look(endpoint: str, key: str) -> list[str]:
    async with client_of(endpoint, key, LOOK_SECONDS) as client:
        return await models_at(client, endpoint, key, LOOK_SECONDS)


def base_url(endpoint: str) -> str:
    """The address as the client wants it. Raises BadInput for what is no address, or holds a secret."""
    expected = "an address such as http://127.0.0.1:8000/v1"
    if set(endpoint) & set("@?#"):
        # Not shown: an address is printed, logged and written down, so whatever is in it is no secret any more.
        found = "an address with a name, a key or a query in it"
        remedy = "Put the key into CAI_API_KEY, and give --endpoint without it."
        raise BadInput("endpoint", found, expected, remedy)
    bad = BadInput("endpoint", f"'{endpoint}'", expected, "Mend --endpoint.")
    try:
        parts = urlsplit(endpoint)
        (parts.hostname or "").encode("idna")  # as whoever looks the name up will do
        named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        raise bad from error
    if not named or not endpoint.isprintable() or " " in endpoint:
        raise bad
    return endpoint.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
