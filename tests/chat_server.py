"""A chat server on this machine for tests: a scripted answer for each request, and faults on demand."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class ChatServer:
    """Speaks the OpenAI chat protocol at `url`.

    `answer(body) -> str` replies to a request's JSON body. `faults` are taken first, one a request: an int is an HTTP
    status, a float a silence of that many seconds, a text a body with status 200 that is sent as it stands, None no fault.
    `requests` and `keys` keep what came. While request number N of `asks_to_stop` (N, folder) is answered, a file `stop` comes
    into the folder. `stop()` closes the port, as a server that dies does.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], str]) -> None:
        self.answer = answer
        self.faults: list[int | float | str | None] = []
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.required_key: str | None = None
        self.dies_after: int | None = None
        self.asks_to_stop: tuple[int, Path] | None = None
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.alive = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        if self.alive:
            self.alive = False
            self.http.shutdown()
            self.http.server_close()

    def last_texts(self) -> list[str]:
        """The text of the last turn of every request."""
        return [self.text_of(body["messages"][-1]) for body in self.requests]

    @staticmethod
    def text_of(message: dict[str, Any]) -> str:
        """The words of a chat message, pictures left out."""
        content = message["content"]
        return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _handler(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                dead = server.dies_after is not None and len(server.requests) >= server.dies_after
                if not dead:
                    server.requests.append(body)
                    server.keys.append(self.headers["Authorization"])
                fault = server.faults.pop(0) if server.faults and not dead else None
                if server.asks_to_stop and len(server.requests) == server.asks_to_stop[0]:
                    # Whole at once: who sees it before its words are in would take it for one made by hand.
                    written = server.asks_to_stop[1] / "stop.part"
                    written.write_text("time limit")
                    written.rename(written.with_name("stop"))
            if dead:
                self.connection.close()
            elif server.required_key and self.headers["Authorization"] != f"Bearer {server.required_key}":
                self.send(401, json.dumps({"error": {"message": f"bad key {self.headers['Authorization']}"}}))
            elif isinstance(fault, str):
                self.send(200, fault)
            elif isinstance(fault, int):
                self.send(fault, json.dumps({"error": {"message": "injected"}}))
            else:
                time.sleep(fault or 0.0)
                self.send(200, json.dumps(completion(body, server.answer(body))))

        def send(self, status: int, text: str) -> None:
            data = text.encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json" if text[:1] in "{[" else "text/html")
                self.send_header("retry-after-ms", "1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except ConnectionError:
                return  # the client gave up waiting

        def log_message(self, *args: object) -> None:
            return

    return Handler


def completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    words = sum(len(ChatServer.text_of(message).split()) for message in body["messages"])
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": words, "completion_tokens": len(text.split()), "total_tokens": 0},
    }
