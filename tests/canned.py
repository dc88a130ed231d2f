"""An endpoint that answers as a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COUNTS = '"Count": 1, "ScannedCount": 1'
EMPTY_PAGE = '{"Items": [], "Count": 0, "ScannedCount": 0}'
TABLE = (
    '{"Table": {"TableStatus": "ACTIVE", '
    '"ProvisionedThroughput": {"ReadCapacityUnits": 5}}}'
)


@dataclass(frozen=True)
class Reply:
    """An answer: a body, and an HTTP status."""

    body: str | bytes
    status: int = 200


def refusal(code: str, message: str = "", status: int = 400) -> Reply:
    """An error as DynamoDB answers it."""
    kind = f"com.amazonaws.dynamodb.v20120810#{code}"
    return Reply(json.dumps({"__type": kind, "message": message}), status)


class Canned(ThreadingHTTPServer):
    """Answers Scans with `scans` in turn, and the last one again and again."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CannedHandler)
        self.endpoint_url = f"http://127.0.0.1:{self.server_address[1]}"
        self.lock = threading.Lock()
        self.answer(EMPTY_PAGE)

    def answer(
        self, *scans: Reply | str | bytes, table: Reply | str | bytes = TABLE
    ) -> None:
        """From now on, answer so, and forget the requests that came until now."""
        self.scans = [one if isinstance(one, Reply) else Reply(one) for one in scans]
        self.table = table if isinstance(table, Reply) else Reply(table)
        self.requests: list[Any] = []  # parameters of the Scans that came

    def reply_to(self, operation: str, params: Any) -> Reply:
        if operation != "Scan":
            return self.table
        with self.lock:
            self.requests.append(params)
            return self.scans.pop(0) if len(self.scans) > 1 else self.scans[0]


class CannedHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Canned

    def do_POST(self) -> None:
        params = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        operation = self.headers["X-Amz-Target"].partition(".")[2]
        reply = self.server.reply_to(operation, params)
        data = reply.body.encode() if isinstance(reply.body, str) else reply.body
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def canned_answers() -> Iterator[Canned]:
    """Serve canned answers."""
    with Canned() as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()
