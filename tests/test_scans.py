"""The scans: every item once, whatever the pages and segments; and metrics that hold.

They are held against the items themselves, against the request log of the local lab,
and against dynalite.
"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import pytest
from botocore.exceptions import ClientError
from canned import EMPTY_PAGE, Canned
from conftest import Invoke
from engines import Engine
from hypothesis import given, settings
from hypothesis import strategies as st
from items import (
    ITEMS,
    Kept,
    assert_as_logged,
    contents,
    instant,
    lab_items,
    scans_of,
)
from local_dynamodb import Lab, lab_environment, serve
from running import BUNDLE, run

import common
from common import Metrics, Page, scan_pages
from parallel_scan import Output, SegmentError, parallel_scan, scan_segment
from sequential_scan import sequential_scan


def read_all(engine: Engine, **request: Any) -> tuple[Metrics, list[Any]]:
    """Scan sequentially. Returns the metrics and the items."""
    metrics = Metrics()
    pages = list(scan_pages(engine.client(), engine.request(**request), metrics))
    return metrics, [json.loads(text) for page in pages for text in page["Items"]]


# --- Every item, once


def test_sequential_scan_reads_every_item(engine: Engine) -> None:
    metrics, items = read_all(engine)
    assert contents(items) == contents(lab_items())
    assert metrics.items == metrics.scanned == ITEMS


# A hundred segments are more than there are players: some of them are empty.
@pytest.mark.parametrize("total_segments", [1, 3, 100])
def test_segments_hold_every_item_once(engine: Engine, total_segments: int) -> None:
    kept = Kept()
    metrics = parallel_scan(
        engine.client(),
        engine.request(),
        total_segments,
        open_output=kept,
    )
    assert contents(kept.items()) == contents(lab_items())
    assert metrics.complete
    assert list(metrics.segments) == list(range(total_segments))


def test_more_segments_than_workers_are_all_read(lab: Lab) -> None:
    kept = Kept()
    engine = Engine(lab.endpoint_url)
    parallel_scan(engine.client(), engine.request(), 20, 3, open_output=kept)
    assert contents(kept.items()) == contents(lab_items())


# A page that is exactly full has a key even at the end of the table. Then an empty
# page follows.
@pytest.mark.parametrize(("limit", "pages"), [(300, 7), (1999, 2), (2000, 2)])
def test_page_size_decides_the_pages(engine: Engine, limit: int, pages: int) -> None:
    metrics, items = read_all(engine, Limit=limit)
    assert metrics.pages == pages
    assert contents(items) == contents(lab_items())


def test_empty_page_is_not_the_end(real: Engine) -> None:
    # The filter keeps one player of 80, so most of the pages are empty.
    last_player = lab_items()[-1]["player_id"]
    metrics, items = read_all(
        real,
        FilterExpression="player_id = :last",
        ExpressionAttributeValues={":last": last_player},
        Limit=100,
    )
    assert len(items) == metrics.items == 25
    assert metrics.scanned == ITEMS
    assert metrics.pages == 21


def test_empty_table_is_no_error() -> None:
    with serve(instant(0)) as empty:
        engine = Engine(empty.endpoint_url)
        sequential = sequential_scan(engine.client(), engine.request())
        parallel = parallel_scan(engine.client(), engine.request(), 3)
    for metrics in (sequential, parallel):
        assert metrics.complete
        assert metrics.items == 0
        assert metrics.consumed_rcu == 0


def test_empty_last_evaluated_key_is_the_end(canned: Canned) -> None:
    # "When LastEvaluatedKey is empty": so the API reference words it.
    canned.answer('{"Items":[],"Count":0,"ScannedCount":0,"LastEvaluatedKey":{}}')
    engine = Engine(canned.endpoint_url)
    assert sequential_scan(engine.client(), engine.request()).pages == 1


def test_segment_0_is_sent_like_any_other(lab: Lab) -> None:
    before = len(scans_of(lab))
    engine = Engine(lab.endpoint_url)
    parallel_scan(engine.client(), engine.request(Limit=1500), 1)
    sequential_scan(engine.client(), engine.request(Limit=1500))
    sent = [entry["segment"] for entry in scans_of(lab)[before:]]
    assert sent == [0, 0, None, None]


def test_each_page_starts_after_the_last_key(canned: Canned) -> None:
    keys = [{"B": {"B": "AP8="}}, {"n": {"N": "1e3"}, "s": {"S": 'é"\\'}}]
    pages = [
        json.dumps(
            {"Items": [], "Count": 0, "ScannedCount": 9, "LastEvaluatedKey": key}
        )
        for key in keys
    ]
    canned.answer(*pages, EMPTY_PAGE)
    engine = Engine(canned.endpoint_url)
    sequential_scan(engine.client(), engine.request())
    started = [request.get("ExclusiveStartKey") for request in canned.requests]
    assert started == [None, *keys]


@given(
    sizes=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1),
    workers=st.integers(1, 8),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_layout_of_pages_comes_whole(sizes: list[list[int]], workers: int) -> None:
    """`sizes` are the numbers of items of each page, for each segment."""

    class Table:
        """A client whose segments have these pages."""

        def scan(self, **request: Any) -> Any:
            pages = sizes[request["Segment"]]
            number = request.get("ExclusiveStartKey", {"page": 0})["page"]
            name = f"{request['Segment']}.{number}"
            page: dict[str, Any] = {
                "Items": [f"{name}.{item}" for item in range(pages[number])],
                "Count": pages[number],
                "ScannedCount": pages[number],
                "ConsumedCapacity": {"CapacityUnits": 0.5},
            }
            if number + 1 < len(pages):
                page["LastEvaluatedKey"] = {"page": number + 1}
            return page

    kept = Kept()
    metrics = parallel_scan(Table(), {}, len(sizes), workers, open_output=kept)
    for segment, pages in enumerate(sizes):
        expected = [
            f"{segment}.{number}.{item}"
            for number, size in enumerate(pages)
            for item in range(size)
        ]
        assert kept.texts[segment] == expected
        assert metrics.segments[segment].pages == len(pages)
    assert metrics.items == sum(map(sum, sizes))
    assert metrics.consumed_rcu == sum(map(len, sizes)) / 2


# --- Metrics


@pytest.mark.parametrize("script", ["sequential_scan", "parallel_scan"])
def test_json_agrees_with_the_servers_log(
    lab: Lab, invoke: Invoke, script: str
) -> None:
    before = len(scans_of(lab))
    ended = invoke(script, "--page-size", "300", "--output", "json", at=lab)
    metrics = json.loads(ended.stdout)
    log = scans_of(lab)[before:]
    assert ended.returncode == 0
    assert_as_logged(metrics, log)
    assert metrics["complete"]
    assert metrics["table_name"] == "GameLeaderboard"
    assert metrics["items_per_second"] == pytest.approx(ITEMS / metrics["seconds"])
    for segment in metrics["segments"]:
        number = segment["segment"] if script == "parallel_scan" else None
        assert_as_logged(segment, [e for e in log if e["segment"] == number])
        assert 0 <= segment["started"] <= metrics["seconds"]
        assert segment["started"] + segment["seconds"] <= metrics["seconds"]


def test_json_has_the_documented_names(lab: Lab, invoke: Invoke) -> None:
    ended = invoke("parallel_scan", "--workers", "2", "--output", "json", at=lab)
    metrics = json.loads(ended.stdout)
    assert list(metrics) == [
        "mode",
        "table_name",
        "total_segments",
        "workers",
        "complete",
        "seconds",
        "cpu_seconds",
        "items",
        "scanned",
        "pages",
        "consumed_rcu",
        "throttled_requests",
        "retried_requests",
        "items_per_second",
        "segments",
    ]
    assert (metrics["mode"], metrics["total_segments"]) == ("parallel", 4)
    assert metrics["workers"] == 2


def test_table_shows_the_labs_metrics(lab: Lab, invoke: Invoke) -> None:
    output = invoke("sequential_scan", at=lab).stdout
    rows = dict(line.split("  ", 1) for line in output.splitlines()[1:-1])
    assert list(rows) == [
        "Total execution time",
        "Items processed",
        "Items per second",
        "Consumed RCU",
        "Pages",
        "CPU time",
    ]
    assert rows["Items processed"].strip() == "2,000"
    assert rows["Consumed RCU"].strip() == "50.0"


# By hand: 2,000 items are 406,706 bytes, so 100 times 4 KB, at half an RCU each.
@pytest.mark.parametrize(
    ("request_", "segments", "rcu"),
    [({}, 1, 50.0), ({"ConsistentRead": True}, 1, 100.0), ({}, 4, 51.0)],
)
def test_consumed_capacity_by_hand(
    lab: Lab, request_: dict[str, Any], segments: int, rcu: float
) -> None:
    engine = Engine(lab.endpoint_url)
    metrics = parallel_scan(engine.client(), engine.request(**request_), segments)
    assert metrics.consumed_rcu == rcu


def test_capacity_is_unknown_if_one_page_is_silent(canned: Canned) -> None:
    told = (
        '{"Items":[],"Count":0,"ScannedCount":1,"LastEvaluatedKey":{"a":{"S":"b"}},'
        '"ConsumedCapacity":{"TableName":"T","CapacityUnits":0.5}}'
    )
    canned.answer(told, EMPTY_PAGE)
    engine = Engine(canned.endpoint_url)
    metrics = sequential_scan(engine.client(), engine.request())
    assert metrics.pages == 2
    assert metrics.consumed_rcu is None


def test_counting_sends_no_items_and_costs_the_same(lab: Lab) -> None:
    engine = Engine(lab.endpoint_url)
    metrics, items = Metrics(), []
    for page in scan_pages(engine.client(), engine.request(Select="COUNT"), metrics):
        items += page.get("Items", [])
    assert metrics.items == ITEMS
    assert metrics.consumed_rcu == 50.0
    assert items == []


def test_a_filter_costs_as_much_as_the_table(real: Engine, invoke: Invoke) -> None:
    flags = [
        "--filter-expression=#mode = :mode",
        '--expression-attribute-names={"#mode": "game_mode"}',
        '--expression-attribute-values={":mode": {"S": "duo"}}',
        "--projection-expression=score",
        "--output=json",
    ]
    metrics = json.loads(invoke("parallel_scan", *flags, at=real).stdout)
    modes = Counter(item["game_mode"]["S"] for item in lab_items())
    assert metrics["items"] == modes["duo"]
    assert metrics["scanned"] == ITEMS
    assert metrics["consumed_rcu"] == 51.0


def test_projection_sends_only_what_was_asked_for(real: Engine) -> None:
    _, items = read_all(real, ProjectionExpression="score")
    assert all(list(item) == ["score"] for item in items)
    assert len(items) == ITEMS


def test_an_index_can_be_scanned(real: Engine, invoke: Invoke) -> None:
    flags = ("--index-name", "game-mode-index", "--output", "json")
    metrics = json.loads(invoke("sequential_scan", *flags, at=real).stdout)
    assert metrics["items"] == ITEMS


# --- Progress


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("sequential_scan.py", r"\d+ items \(\d+/s\), \d+ RCU/s"),
        ("parallel_scan.py", r"\d of 4 segments, \d+ items \(\d+/s\), \d+ RCU/s"),
    ],
)
def test_progress_is_shown_on_a_terminal(script: str, line: str) -> None:
    terminal, program_end = pty.openpty()
    with serve(instant(40, latency_ms=50)) as lab:
        ended = subprocess.run(
            [sys.executable, BUNDLE / script, "--page-size", "10"],
            env=lab_environment(lab.endpoint_url),
            stdout=subprocess.PIPE,
            stderr=program_end,
            check=True,
        )
    # What the program printed is in the terminal's buffer. One more byte makes sure
    # that there is something to read.
    os.write(program_end, b".")
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    os.close(program_end)
    assert re.search(line, shown)
    assert b"items (" not in ended.stdout


def test_progress_is_not_shown_in_a_log(lab: Lab) -> None:
    for script in ("sequential_scan.py", "parallel_scan.py"):
        assert run(lab.endpoint_url, script).stderr == ""


# --- Workers


def test_first_error_ends_the_scan_and_names_its_segment(lab: Lab) -> None:
    engine = Engine(lab.endpoint_url)
    request = engine.request(FilterExpression="score > :min")
    with pytest.raises(SegmentError, match=r"segment \d: .*FilterExpression") as raised:
        parallel_scan(engine.client(), request, 3)
    assert isinstance(raised.value.__cause__, ClientError)


class Failing(Output):
    """Takes pages, and fails at the third one."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.pages = 0

    def write(self, page: Page) -> None:
        self.pages += 1
        if self.pages == 3:
            raise self.error


@pytest.mark.parametrize("error", [KeyError("a bug"), MemoryError(), SystemExit(3)])
def test_mistake_in_a_worker_is_raised_as_it_is(lab: Lab, error: BaseException) -> None:
    def open_output(segment: int) -> Output:
        return Failing(error) if segment == 2 else Output()

    engine = Engine(lab.endpoint_url)
    request = engine.request(Limit=20)
    with pytest.raises(type(error)) as raised:
        parallel_scan(engine.client(), request, open_output=open_output)
    assert raised.value is error


def test_other_workers_stop_when_one_fails() -> None:
    # Each segment has a hundred pages of 10 ms. Segment 1 fails at its third one.
    with serve(instant(2000, latency_ms=10)) as lab:
        engine = Engine(lab.endpoint_url)
        with pytest.raises(SegmentError, match="segment 1: disk full"):
            parallel_scan(
                engine.client(),
                engine.request(Limit=5),
                open_output=lambda segment: (
                    Failing(OSError("disk full")) if segment == 1 else Output()
                ),
            )
        # In this time, the others would read most of their pages.
        time.sleep(1)
        assert len(scans_of(lab)) < 100


def test_scan_segment_reads_one_segment(real: Engine) -> None:
    found = 0
    for segment in range(3):
        metrics = Metrics()
        pages = scan_segment(real.client(), real.request(), segment, 3, metrics)
        items = sum(len(page["Items"]) for page in pages)
        assert items == metrics.items > 0
        found += items
    assert found == ITEMS


def test_the_callers_request_stays_as_it_was(lab: Lab) -> None:
    engine = Engine(lab.endpoint_url)
    request = engine.request(Limit=500)
    sequential_scan(engine.client(), request)
    parallel_scan(engine.client(), request)
    assert request == {"TableName": "GameLeaderboard", "Limit": 500}


def test_plain_client_returns_what_boto3_returns(lab: Lab) -> None:
    engine = Engine(lab.endpoint_url)
    client = common.connect(endpoint_url=lab.endpoint_url, plain=True)
    (page,) = scan_pages(client, engine.request(), Metrics())
    assert contents(page["Items"]) == contents(lab_items())
