"""An endpoint of canned answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Union

from engines import Engine

Answer = Union[str, bytes, tuple[int, bytes]]  # a body, or a status and one
EMPTY_PAGE = '{"Items": [], "Count": 0, "ScannedCount": 0}'
TABLE = '{"Table": {"TableStatus": "ACTIVE", "ProvisionedThroughput": {"ReadCapacityUnits": 5}}}'


def refusal(code: str, message: str = "") -> Answer:
    """An error as DynamoDB answers it."""
    kind = f"com.amazonaws.dynamodb.v20120810#{code}"
    return 400, json.dumps({"__type": kind, "message": message}).encode()


class Canned(ThreadingHTTPServer):
    """Answers as it was told to; it knows what it was asked for, over how many connections."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CannedHandler)
        self.endpoint_url = f"http://127.0.0.1:{self.server_address[1]}"
        self.connections: list[object] = []
        self.describing: Callable[[], object] = lambda: None  # called while it is described
        self.answer(EMPTY_PAGE)

    def answer(self, *scans: Answer, table: Answer = TABLE) -> Engine:
        """From now on, answer Scans with these in turn, the last one ever again.

        Returns what a script or a scan is to be run at.
        """
        self.scans = scans
        self.table = table
        self.operations: list[str] = []
        return Engine(self.endpoint_url)

    def next_answer(self, operation: str) -> Answer:
        ordinal = self.operations.count("Scan")
        self.operations.append(operation)
        if operation == "Scan":
            return self.scans[min(ordinal, len(self.scans) - 1)]
        self.describing()
        return self.table


class CannedHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Canned

    def setup(self) -> None:
        self.server.connections.append(self.client_address)
        super().setup()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = self.server.next_answer(self.headers["X-Amz-Target"].partition(".")[2])
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        raw = body.encode() if isinstance(body, str) else body
        head = b"HTTP/1.1 %d Canned\r\nContent-Length: %d\r\n\r\n" % (status, len(raw))
        self.wfile.write(head + raw)


@contextmanager
def canned_answers() -> Iterator[Canned]:
    """Serve canned answers."""
    with Canned() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
