"""The HTTP connection to a server. Everything that comes from a server comes through here, and the key is taken out of
it here: out of every error, in whatever place the server put it, before a library or a log has seen it.

It also sees to what the environment says (proxies, certificates), and that no call follows a server to another one.
"""

import json
import os
import sys
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import openai

from cai.engines.key import hidden, without
from cai.errors import BadInput

CONNECT_SECONDS = 10.0
ELSEWHERE = "cai-elsewhere"
# The library that the openai client is built on: httpx or httpx2, depending on its version.
_http: Any = sys.modules[openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0]]


def client_of(url: str, key: str, seconds: float) -> openai.AsyncOpenAI:
    """A client for one server that asks once and never again. Raises BadInput for an environment it cannot use."""
    timeout = openai.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds))
    transport: Any = _Clean(_transport(url), key)
    http = openai.DefaultAsyncHttpxClient(transport=transport, timeout=timeout)
    return openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=timeout, http_client=http)


class _Clean:
    """A transport without the key in its responses and errors. An answer (2xx) is data and stays what it is."""

    def __init__(self, inner: Any, key: str) -> None:
        self._inner, self._key = inner, key

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def handle_async_request(self, request: Any) -> Any:
        with without(self._key):
            response = await self._inner.handle_async_request(request)
            try:
                await response.aread()
            finally:
                await response.aclose()
        return _cleaned(request, response, self._key)


def _cleaned(request: Any, response: Any, key: str) -> Any:
    """The same response with its body read and, unless it is an answer, without the key."""
    # The body is neither compressed nor cut into chunks any more.
    gone = ("content-encoding", "content-length", "transfer-encoding")
    headers = {name: hidden(value, key) for name, value in response.headers.items() if name not in gone}
    extensions: dict[str, Any] = {"reason_phrase": hidden(response.reason_phrase, key).encode("ascii", "replace")}
    content = response.content
    if not response.is_success:
        content = hidden(_plain(response), key).encode(response.encoding or "utf-8", "replace")
    if response.has_redirect_location:
        target = _target(request, headers["location"])
        if target is not None and _origin(target) != _origin(request.url):
            extensions[ELSEWHERE] = _address(target, request.url)
        # A call that is sent on in any other way than these loses what it says.
        keeps_its_words = request.method == "GET" or response.status_code in (307, 308)
        if target is None or ELSEWHERE in extensions or not keeps_its_words:
            del headers["location"]
    spelled = {hidden(name, key): value.encode(response.headers.encoding, "replace") for name, value in headers.items()}
    return _http.Response(response.status_code, headers=spelled, content=content, extensions=extensions)


def _plain(response: Any) -> str:
    """What a response says; JSON with every letter as itself, so that none is spelled with numbers."""
    with suppress(ValueError, RecursionError):
        return json.dumps(json.loads(response.content), ensure_ascii=False)
    return response.text


def _target(request: Any, location: str) -> Any:
    """Where a server sends a call on to, as a whole address; None if that is none."""
    with suppress(ValueError, _http.InvalidURL):
        urlsplit(location)  # which is stricter about what a host may be
        target = request.url.join(location)
        return target if target.scheme in ("http", "https") and target.host else None
    return None


def _origin(url: Any) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}[url.scheme]


def _address(target: Any, asked: Any) -> str:
    """The address to give for a server that a call was sent on to."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    server = f"{target.scheme}://{host}" + (f":{target.port}" if target.port else "")
    path = target.path.rstrip("/")
    for end in ("/chat/completions", "/models"):
        if asked.path.endswith(end) and path.endswith(end):
            return server + path.removesuffix(end)
    return server


def _transport(url: str) -> Any:
    """A transport by way of the proxy that the environment names for an address. Raises BadInput, and shows no proxy's
    address, which may hold a password."""
    name, proxy = _proxy(url)
    expected = "an address such as http://127.0.0.1:3128"
    remedy = f"Mend {name}, or put the server's host into NO_PROXY."
    try:
        way = None if proxy is None else _http.Proxy(proxy)
        if proxy is not None and not (urlsplit(proxy).hostname and urlsplit(proxy).port != 0):
            raise ValueError
    except (ValueError, _http.InvalidURL):
        raise BadInput(name, "a proxy whose address cannot be used", expected, remedy) from None
    try:
        return _http.AsyncHTTPTransport(proxy=way, limits=openai.DEFAULT_CONNECTION_LIMITS)
    except ImportError:
        remedy = "Install the package socksio, or put the server's host into NO_PROXY."
        raise BadInput(name, "a SOCKS proxy, which needs the package socksio", expected, remedy) from None
    except OSError as error:  # ssl.SSLError is one
        name = "SSLKEYLOGFILE" if error.filename else "SSL_CERT_FILE"  # the error names the former's file only
        found = f"'{os.environ.get(name, '')}', which cannot be used ({error.strerror or error})"
        raise BadInput(name, found, "a file that can", f"Mend {name}, or unset it.") from error


def _proxy(url: str) -> tuple[str, str | None]:
    """The variable that names a proxy for an address, and the proxy; None if there is none."""
    parts, proxies = urlsplit(url), getproxies()
    if proxy_bypass(parts.netloc) or proxy_bypass(parts.hostname or ""):
        return "", None
    for kind in (parts.scheme, "all"):
        if proxy := proxies.get(kind):
            names = (f"{kind}_proxy", f"{kind}_PROXY".upper())
            name = next((name for name in names if os.environ.get(name)), f"the system's {kind} proxy")
            return name, proxy if "://" in proxy else f"http://{proxy}"
    return "", None
