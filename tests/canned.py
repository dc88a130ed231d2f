"""An endpoint that answers as a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EMPTY_PAGE = b'{"Items": [], "Count": 0, "ScannedCount": 0}'
TABLE = (
    b'{"Table": {"TableStatus": "ACTIVE", "ProvisionedThroughput": '
    b'{"ReadCapacityUnits": 5}}}'
)


class Reply:
    """An answer: a body, and an HTTP status."""

    def __init__(self, body: bytes | str, status: int = 200) -> None:
        self.body = body.encode() if isinstance(body, str) else body
        self.status = status


def refusal(code: str, message: str = "", status: int = 400) -> Reply:
    """An error as DynamoDB answers it."""
    kind = f"com.amazonaws.dynamodb.v20120810#{code}"
    return Reply(json.dumps({"__type": kind, "message": message}), status)


class Canned(ThreadingHTTPServer):
    """Answers Scans with `scans` in turn, and the last one again and again."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CannedHandler)
        self.endpoint_url = f"http://127.0.0.1:{self.server_address[1]}"
        self.scans: list[Reply] = []
        self.table = Reply(TABLE)
        self.requests: list[dict[str, Any]] = []  # parameters of the Scans that came
        self.lock = threading.Lock()

    def answer(self, *scans: Reply | bytes | str, table: Reply | None = None) -> None:
        """From now on, give these answers."""
        self.scans = [one if isinstance(one, Reply) else Reply(one) for one in scans]
        self.table = table or Reply(TABLE)
        self.requests = []

    def reply_to(self, operation: str, params: dict[str, Any]) -> Reply:
        if operation != "Scan":
            return self.table
        with self.lock:
            self.requests.append(params)
            return self.scans[min(len(self.requests), len(self.scans)) - 1]


class CannedHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Canned

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        operation = self.headers["X-Amz-Target"].partition(".")[2]
        reply = self.server.reply_to(operation, json.loads(body))
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def canned_answers() -> Iterator[Canned]:
    """Serve canned answers."""
    with Canned() as server:
        server.answer(EMPTY_PAGE)
        thread = threading.Thread(
            target=server.serve_forever, args=(0.05,), daemon=True
        )
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
