"""The lab's items, scans of them, and what the server's log says of a scan."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from games import game_table
from model import TABLE_NAME, Lab, Settings

from common import Client, Metrics, Page, connect, scan_pages
from parallel_scan import Output, parallel_scan

Json = dict[str, Any]
ITEMS = 2000  # what the lab's table has
REQUEST = {"TableName": TABLE_NAME}
THROTTLED = "ProvisionedThroughputExceededException"


def instant(items: int = ITEMS, **more: Any) -> Settings:
    """A table that takes no time and never throttles, unless told otherwise."""
    usual = {"latency_ms": 0, "ms_per_mb": 0, "read_capacity": 0}
    return Settings(items=items, **{**usual, **more})


def lab_items(count: int = ITEMS) -> list[Json]:
    """The local lab's items, taken from its table without any scan."""
    return [json.loads(text) for text in game_table(count).items]


def contents(items: Iterable[Any]) -> Counter[str]:
    """How often each item is there, told by its content."""
    return Counter(json.dumps(item, sort_keys=True) for item in items)


def saved_items(lines: str) -> list[Any]:
    """The items of what --save writes."""
    return [json.loads(line)["Item"] for line in lines.split("\n") if line]


# --- Scans: the metrics and the items -------------------------------------------------


def client_of(at: Any) -> Client:
    """A client, as the scripts have it, of what has an `endpoint_url`."""
    return connect(endpoint_url=at.endpoint_url)


def read_pages(at: Any, **request: Any) -> tuple[Metrics, list[Any]]:
    """Scan page after page. `request` has more parameters of Scan."""
    metrics = Metrics()
    pages = list(scan_pages(client_of(at), {**REQUEST, **request}, metrics))
    return metrics, [json.loads(text) for page in pages for text in page["Items"]]


def read_segments(
    at: Any, total_segments: int, workers: int | None = None, **request: Any
) -> tuple[Metrics, list[Any]]:
    """Scan in segments."""
    items: list[Any] = []

    class Keep(Output):
        def write(self, page: Page) -> None:
            items.extend(json.loads(text) for text in page["Items"])

    metrics = parallel_scan(
        client_of(at),
        {**REQUEST, **request},
        total_segments,
        workers,
        open_output=lambda segment: Keep(),
    )
    return metrics, items


# --- The request log ------------------------------------------------------------------


def scans_of(lab: Lab) -> list[Json]:
    """The Scan requests in the local lab's log."""
    return [entry for entry in lab.requests if entry["operation"] == "Scan"]


def outcomes(lab: Lab) -> Counter[str]:
    """How often the lab answered a Scan with each outcome."""
    return Counter(entry["outcome"] for entry in scans_of(lab))


def wait_for_hanging(lab: Lab, requests: int) -> None:
    """Wait until so many requests wait for an answer."""
    deadline = time.monotonic() + 60
    while outcomes(lab)["hang"] < requests:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def counts_in(log: list[Json]) -> Json:
    """What a scan has to count, if these were its requests."""
    served = [entry for entry in log if entry["outcome"] == "ok"]
    refused = [entry for entry in log if entry["outcome"] == THROTTLED]
    return {
        "items": sum(entry["items"] for entry in served),
        "scanned": sum(entry["items"] for entry in served),
        "pages": len(served),
        "consumed_rcu": sum(entry["rcu"] for entry in served),
        "throttled_requests": len(refused),
        "retried_requests": len(log) - len(served) - len(refused),
    }
