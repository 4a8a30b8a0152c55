"""Small servers on 127.0.0.1 that speak the OpenAI chat protocol, well or badly, and calls to them."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cai.engines import Completion, Request, Sampling, Spec, open_engine
from cai.rows import Message

# A status, JSON or text, and headers (":reason" stands behind the status); all as bytes; or a way to give no answer.
Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]] | bytes | str
Behave = Callable[[dict[str, Any], int], Answer]

HANGS = "hangs"  # says nothing, and keeps the connection open
CLOSES = "closes"  # says half of an answer, and closes the connection
BREAKS = "breaks"  # closes the connection without a word
DRIPS = "drips"  # says one byte after another, and never comes to an end
BOOM = (500, {"error": {"message": "boom"}})


def well(body: dict[str, Any], number: int) -> Answer:
    return 200, chat()


def only_hello(body: dict[str, Any], number: int) -> Answer:
    """Answers the harmless question of an engine that wonders whose fault it is, and nothing else."""
    return (200, chat()) if body["messages"][-1]["content"] == "Hello" else BOOM


class Server:
    """Serves what `behave(body, number of the call)` returns. `models` is what it lists, and may be changed; `listing`
    is what it says instead."""

    def __init__(self, behave: Behave = well, models: list[str] | None = None, port: int = 0) -> None:
        self.calls: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.moments: list[float] = []  # when each call came
        self.behave, self.models = behave, models or ["m"]
        self.listing: tuple[int, Any, dict[str, str]] | None = None
        self.stopped = threading.Event()
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                models = [{"id": name, "object": "model"} for name in outer.models]
                self.answer(*(outer.listing or (200, {"object": "list", "data": models}, {})))

            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers["Content-Length"]))
                if not sent:
                    return  # whoever asks has given up already
                body = json.loads(sent)
                with lock:
                    outer.calls.append(body)
                    outer.moments.append(time.monotonic())
                    outer.keys.append(self.headers["Authorization"])
                    number = len(outer.calls)
                said = outer.behave(body, number)
                if said == HANGS:
                    outer.stopped.wait(20)
                if isinstance(said, bytes):
                    self.close_connection = True
                    self.wfile.write(said)
                elif isinstance(said, str):
                    self.close_connection = True
                    if said in (CLOSES, DRIPS):
                        self.answer(200, chat(), {}, half=True)
                    while said == DRIPS and not outer.stopped.wait(0.1):
                        try:
                            self.wfile.write(b" ")
                        except OSError:
                            return
                else:
                    status, what, *headers = said
                    self.answer(status, what, headers[0] if headers else {})

            def answer(self, status: int, said: Any, headers: dict[str, str], half: bool = False) -> None:
                data = said.encode("utf-8") if isinstance(said, str) else json.dumps(said).encode()
                self.send_response(status, headers.get(":reason"))
                kind = "text/html" if isinstance(said, str) else "application/json"
                for name, value in {
                    "Content-Type": kind,
                    "Content-Length": str(len(data)),
                    "Connection": "close",
                    **headers,
                }.items():
                    if name != ":reason":
                        self.send_header(name, value)
                try:
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2] if half else data)
                except OSError:
                    return None  # whoever asked has given up

            def log_message(self, *_: Any) -> None:
                return None

        class Http(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256  # the usual 5 turn many connections at once into waits of seconds

        self.http = Http(("127.0.0.1", port), Handler)
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if not self.stopped.is_set():
            self.stopped.set()
            self.http.shutdown()
            self.http.server_close()


def chat(
    text: str = "hi there", finish: str = "stop", logprobs: list[tuple[str, float]] | None = None
) -> dict[str, Any]:
    told = None
    if logprobs is not None:
        top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in logprobs]
        told = {"content": [{"token": text, "logprob": -0.1, "bytes": None, "top_logprobs": top}], "refusal": None}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, "logprobs": told}
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


# Calls


def call(row_id: str = "r1", said: str = "hello") -> Request:
    return Request("response", row_id, (Message("user", said),), Sampling(7), seed=11)


GATE = Request("gate", "r1", (Message("user", "broken?"),), Sampling(1), seed=0, choices=("Yes", "No"))


def spec(*servers: Server | str, model: str | None = "m", **options: Any) -> Spec:
    """An engine over these servers, of which a call may take ten seconds."""
    urls = tuple(one.url if isinstance(one, Server) else one for one in servers)
    return Spec("auto", model, urls, **{"deadline_seconds": 10.0, **options})


def ask(*servers: Server | str, requests: tuple[Request, ...] = (call(),), **options: Any) -> list[Completion]:
    """What such an engine answers, when all is asked at once."""

    async def all_of_them() -> list[Completion]:
        async with open_engine(spec(*servers, **options)) as engine:
            return list(await asyncio.gather(*(engine.complete(request) for request in requests)))

    return asyncio.run(all_of_them())
