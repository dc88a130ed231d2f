"""The lab's items, and what a scan made of them: the items, and the server's log."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from games import game_table
from local_dynamodb import Lab, Settings

from common import Page
from parallel_scan import Output

Json = dict[str, Any]
ITEMS = 2000  # what the lab's table has
THROTTLE = "ProvisionedThroughputExceededException"  # of a provisioned table


def instant(items: int, **more: Any) -> Settings:
    """A table that takes no time and never throttles, unless told otherwise."""
    usual = {"latency_ms": 0, "ms_per_mb": 0, "read_capacity": 0}
    return Settings(items=items, **{**usual, **more})


def lab_items(count: int = ITEMS) -> list[Json]:
    """The local lab's items, taken from its table without any scan."""
    return [json.loads(text) for text in game_table(count).items]


def contents(items: Iterable[Any]) -> Counter[str]:
    """How often each item is there, told by its content."""
    return Counter(json.dumps(item, sort_keys=True) for item in items)


class Kept:
    """Keeps the items of a parallel scan: their JSON texts, by segment.

    It is what `parallel_scan` takes as open_output: open_output=Kept().
    """

    def __init__(self) -> None:
        self.texts: dict[int, list[Any]] = {}

    def __call__(self, segment: int) -> Output:
        self.texts[segment] = []
        return Keeping(self.texts[segment])

    def items(self) -> list[Json]:
        return [json.loads(text) for texts in self.texts.values() for text in texts]


class Keeping(Output):
    def __init__(self, texts: list[Any]) -> None:
        self.texts = texts

    def write(self, page: Page) -> None:
        self.texts += page["Items"]


def saved_items(lines: bytes) -> list[Any]:
    """The items of what --save writes."""
    return [json.loads(line)["Item"] for line in lines.splitlines()]


def scans_of(lab: Lab) -> list[Json]:
    """The Scan requests in the local lab's log."""
    return [entry for entry in lab.requests if entry["operation"] == "Scan"]


def outcomes(lab: Lab) -> Counter[str]:
    """How often the lab answered a Scan with each outcome."""
    return Counter(entry["outcome"] for entry in scans_of(lab))


def assert_as_logged(counts: Json, log: list[Json]) -> None:
    """Assert that a scan's counts are those of its requests in the server's log."""
    served = [entry for entry in log if entry["outcome"] == "ok"]
    refused = [entry for entry in log if entry["outcome"] == THROTTLE]
    assert counts["items"] == sum(entry["items"] for entry in served)
    assert counts["scanned"] == sum(entry["items"] for entry in served)
    assert counts["consumed_rcu"] == sum(entry["rcu"] for entry in served)
    assert counts["pages"] == len(served)
    assert counts["throttled_requests"] == len(refused)
    assert counts["retried_requests"] == len(log) - len(served) - len(refused)
