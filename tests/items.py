"""The lab's items, and what a scan made of them: the items themselves, and the server's log."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from local_dynamodb import Lab, Page, Settings, game_table

from common import Json

ITEMS = 2000  # what the lab's table has
Key = tuple[str, str]
THROTTLE = "ProvisionedThroughputExceededException"  # of a provisioned table


def instant(items: int, **more: Any) -> Settings:
    """A table that takes no time and never throttles, unless told otherwise."""
    usual = {"latency_ms": 0, "ms_per_mb": 0, "read_capacity": 0}
    return Settings(items=items, **{**usual, **more})


def items_text(count: int) -> str:
    """The local lab's items as its table has them, taken without any scan."""
    return bytes(game_table(count).json(Page(0, count, 0, limited=False))).decode()


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


def contents(items: Iterable[Any]) -> Counter[str]:
    """How often each item is there, told by its content."""
    return Counter(json.dumps(item, sort_keys=True) for item in items)


def saved_items(lines: bytes) -> list[Any]:
    """The items of what --save writes."""
    return [json.loads(line)["Item"] for line in lines.splitlines()]


def is_whole(lines: bytes, count: int) -> bool:
    """These lines, as --save writes them, are the lab's items, each once."""
    return contents(saved_items(lines)) == contents(lab_items(count))


def scans_of(lab: Lab) -> list[Json]:
    """The Scan requests in the local lab's log."""
    return [line for line in lab.requests if line["operation"] == "Scan"]


def outcomes(lab: Lab) -> Counter[str]:
    """How often the lab answered a Scan with each outcome."""
    return Counter(line["outcome"] for line in scans_of(lab))


def assert_as_logged(counts: Json, log: list[Json]) -> None:
    """Asserts that the counts of an unfiltered scan are those of its requests in the log."""
    served = [line for line in log if line["outcome"] == "ok"]
    refused = [line for line in log if "Throughput" in line["outcome"]]
    assert counts["items"] == counts["scanned"] == sum(line["items"] for line in served)
    assert counts["consumed_rcu"] == sum(line["rcu"] for line in served)
    assert counts["pages"] == len(served)
    assert counts["throttled_requests"] == len(refused)
    assert counts["retried_requests"] == len(log) - len(served) - len(refused)
