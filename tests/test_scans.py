"""The scans: every item once, whatever the pages and segments; and metrics that hold.

They are held against the items themselves, against the request log of the local lab,
and against dynalite.
"""

from __future__ import annotations

import json
import os
import pty
import re
import threading
import time
from typing import Any

import pytest
from botocore.exceptions import ClientError
from canned import EMPTY_PAGE, Canned
from conftest import Invoke, NewLab
from items import (
    ITEMS,
    REQUEST,
    Json,
    client_of,
    contents,
    counts_in,
    lab_items,
    read_pages,
    read_segments,
    saved_items,
    scans_of,
)
from local_dynamodb import Lab
from running import PIPE, start

from common import Metrics, Page, connect, scan_pages
from parallel_scan import Output, SegmentError, how_far, parallel_scan
from sequential_scan import sequential_scan

# --- Every item, once -----------------------------------------------------------------


# A hundred segments are more than there are players: some of them are empty.
@pytest.mark.parametrize(("segments", "workers"), [(3, None), (20, 3), (100, None)])
def test_segments_hold_every_item_once(
    engine: Any, segments: int, workers: int | None
) -> None:
    metrics, items = read_segments(engine, segments, workers)
    assert contents(items) == contents(lab_items())
    assert metrics.complete
    assert list(metrics.segments) == list(range(segments))


# A page that is exactly full has a key even at the end of the table. Then an empty
# page follows.
@pytest.mark.parametrize(
    ("request_", "pages"),
    [({}, 1), ({"Limit": 300}, 7), ({"Limit": 1999}, 2), ({"Limit": 2000}, 2)],
)
def test_pages_hold_every_item_once(engine: Any, request_: Json, pages: int) -> None:
    metrics, items = read_pages(engine, **request_)
    assert contents(items) == contents(lab_items())
    assert (metrics.items, metrics.scanned, metrics.pages) == (ITEMS, ITEMS, pages)


def test_empty_page_is_not_the_end(real: Any) -> None:
    # The filter keeps the last player of 80, so almost all of the pages are empty.
    player = {":player": lab_items()[-1]["player_id"]}
    metrics, items = read_pages(
        real,
        FilterExpression="player_id = :player",
        ExpressionAttributeValues=player,
        Limit=100,
    )
    assert (metrics.items, metrics.scanned, metrics.pages) == (25, ITEMS, 21)
    assert len(items) == 25


def test_empty_table_is_no_error(new_lab: NewLab) -> None:
    client = client_of(new_lab(0))
    for metrics in (sequential_scan(client, REQUEST), parallel_scan(client, REQUEST)):
        assert metrics.complete
        assert (metrics.items, metrics.consumed_rcu) == (0, 0)


@pytest.mark.parametrize("key", ["{}", "null"])
def test_empty_last_evaluated_key_is_the_end(canned: Canned, key: str) -> None:
    # "When LastEvaluatedKey is empty": so the API reference words it.
    canned.answer(f'{EMPTY_PAGE[:-1]}, "LastEvaluatedKey": {key}}}')
    assert read_pages(canned)[0].pages == 1


def test_each_page_starts_after_the_last_key(canned: Canned) -> None:
    keys = [{"B": {"B": "AP8="}}, {"n": {"N": "1e3"}, "s": {"S": 'é"\\'}}]
    page = {"Items": [], "Count": 0, "ScannedCount": 9}
    pages = [json.dumps({**page, "LastEvaluatedKey": key}) for key in keys]
    canned.answer(*pages, EMPTY_PAGE)
    read_pages(canned)
    started = [request.get("ExclusiveStartKey") for request in canned.requests]
    assert started == [None, *keys]


def test_callers_request_stays_as_it_was(lab: Lab) -> None:
    request = {**REQUEST, "Limit": 500}
    sequential_scan(client_of(lab), request)
    parallel_scan(client_of(lab), request)
    assert request == {**REQUEST, "Limit": 500}


def test_plain_client_returns_what_boto3_returns(lab: Lab) -> None:
    client = connect(endpoint_url=lab.endpoint_url, plain=True)
    (page,) = scan_pages(client, REQUEST, Metrics())
    assert contents(page["Items"]) == contents(lab_items())


# --- Metrics --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "mode", "segments", "workers"),
    [
        ("sequential_scan", "sequential", [None], 1),
        ("parallel_scan", "parallel", [0, 1, 2, 3], 4),
        ("parallel_scan --total-segments 9 --workers 2", "parallel", range(9), 2),
    ],
)
def test_json_agrees_with_the_servers_log(
    new_lab: NewLab,
    invoke: Invoke,
    command: str,
    mode: str,
    segments: Any,
    workers: int,
) -> None:
    lab = new_lab()
    started = time.perf_counter()
    ended = invoke(f"{command} --page-size 300 --output json", at=lab)
    seconds = time.perf_counter() - started
    metrics = ended.json()
    log = scans_of(lab)
    assert ended.err == ""  # progress is only for a terminal
    assert log[-1]["time"] - log[0]["time"] <= metrics["seconds"] <= seconds
    assert metrics["cpu_seconds"] > 0
    assert metrics["items_per_second"] == pytest.approx(ITEMS / metrics["seconds"])
    assert len(metrics["segments"]) == len(segments)
    assert counts_in(log).items() <= metrics.items()
    for segment, of_segment in zip(segments, metrics["segments"]):
        assert of_segment["segment"] == (segment or 0)
        of_log = [entry for entry in log if entry["segment"] == segment]
        assert counts_in(of_log).items() <= of_segment.items()
        assert of_segment["started"] >= 0
        assert of_segment["started"] + of_segment["seconds"] <= metrics["seconds"]
    described = {
        "mode": mode,
        "table_name": "GameLeaderboard",
        "total_segments": len(segments),
        "workers": workers,
        "complete": True,
    }
    assert described.items() <= metrics.items()
    measured = {"seconds", "cpu_seconds", "items_per_second", "segments"}
    assert metrics.keys() == {*described, *counts_in(log), *measured}


def test_table_shows_the_labs_metrics(lab: Lab, invoke: Invoke) -> None:
    output = invoke("sequential_scan", at=lab).out
    rows = dict(re.findall(r"^(\w.*?)  +(.*)", output, re.MULTILINE))
    names = "Total execution time,Items processed,Items per second,Consumed RCU"
    assert list(rows) == [*names.split(","), "Pages", "CPU time"]
    assert rows["Items processed"] == "2,000"
    assert rows["Consumed RCU"] == "50.0"


def test_table_of_a_parallel_scan_has_a_timeline(lab: Lab, invoke: Invoke) -> None:
    bars = re.findall(r"^segment \d +\|", invoke("parallel_scan", at=lab).out, re.M)
    assert len(bars) == 4


# By hand: 2,000 items have 406,722 bytes, so 100 times 4 KB, at half an RCU each. Four
# segments have four pages, and each of them is rounded up.
@pytest.mark.parametrize(
    ("segments", "request_", "rcu"),
    [
        (1, {}, 50.0),
        (1, {"ConsistentRead": True}, 100.0),
        (1, {"Select": "COUNT"}, 50.0),
        (4, {}, 51.0),
    ],
)
def test_consumed_capacity_by_hand(
    lab: Lab, segments: int, request_: Json, rcu: float
) -> None:
    metrics = parallel_scan(client_of(lab), {**REQUEST, **request_}, segments)
    assert (metrics.items, metrics.consumed_rcu) == (ITEMS, rcu)


def test_counting_sends_no_items(lab: Lab) -> None:
    (page,) = scan_pages(client_of(lab), {**REQUEST, "Select": "COUNT"}, Metrics())
    assert page["Count"] == ITEMS
    assert "Items" not in page


@pytest.mark.parametrize("silent", ["null", "{}"])
def test_capacity_is_unknown_if_one_page_is_silent(
    canned: Canned, invoke: Invoke, silent: str
) -> None:
    page = '{"Items": [], "Count": 0, "ScannedCount": 1, "ConsumedCapacity": '
    told = page + '{"CapacityUnits": 0.5}, "LastEvaluatedKey": {"a": {"S": "b"}}}'
    canned.answer(told, f"{page}{silent}}}")
    assert "Consumed RCU          n/a" in invoke("sequential_scan", at=canned).out


def test_expressions_reach_a_real_engine(real: Any, invoke: Invoke) -> None:
    ended = invoke(
        "parallel_scan --projection-expression score --save - --output json"
        " --filter-expression '#mode = :mode'"
        """ --expression-attribute-names '{"#mode": "game_mode"}'"""
        """ --expression-attribute-values '{":mode": {"S": "duo"}}'""",
        at=real,
    )
    metrics = json.loads(ended.err)
    duos = [item for item in lab_items() if item["game_mode"]["S"] == "duo"]
    scores = [{"score": item["score"]} for item in duos]
    assert contents(saved_items(ended.out)) == contents(scores)
    assert (metrics["items"], metrics["scanned"]) == (len(duos), ITEMS)
    assert metrics["consumed_rcu"] == 51.0


def test_an_index_can_be_scanned(real: Any, invoke: Invoke) -> None:
    flags = "--index-name game-mode-index --page-size 300 --output json"
    assert invoke(f"sequential_scan {flags}", at=real).json()["items"] == ITEMS


# The first line is shown when a page or a segment was read, and then one a second.
@pytest.mark.parametrize(
    ("command", "how_far"),
    [
        ("sequential_scan.py --page-size 10", ""),
        ("parallel_scan.py --total-segments 40 --workers 1", r"\d+ of 40 .*left, "),
    ],
)
def test_progress_is_shown_on_a_terminal(
    new_lab: NewLab, command: str, how_far: str
) -> None:
    terminal, program_end = pty.openpty()
    script = {"script": lambda number, _: None if number else "throttle"}
    lab = new_lab(400, latency_ms=50, **script)
    process = start(command, lab, PIPE, program_end)
    result, _ = process.communicate()
    # What the program printed is in the terminal's buffer. One more byte makes sure
    # that there is something to read.
    os.write(program_end, b".")
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    os.close(program_end)
    rates = r"[1-9]\d* items \([1-9]\d*/s\), [1-9]\d* RCU/s, 1 throttled"
    assert re.search(how_far + rates, shown)
    assert "items (" not in result


# If 4 of 40 segments took 10 s, the other 36 take 90 s.
@pytest.mark.parametrize(
    ("segments_read", "workers", "seconds", "left"),
    [
        (4, 4, 10, ", 90 s left, "),
        (4, 4, 1000, ", 150 min left, "),
        (2, 2, 10, ", "),
        (4, 5, 10, ", "),
    ],
)
def test_time_left_is_told_after_a_tenth(
    segments_read: int, workers: int, seconds: int, left: str
) -> None:
    so_far = Metrics(started=time.perf_counter() - seconds)
    so_far.segments = {number: Metrics() for number in range(40)}
    text = how_far(so_far, segments_read, workers)
    assert text == f"{segments_read} of 40 segments{left}"


# --- Workers that fail ----------------------------------------------------------------


def test_first_error_names_its_segment(lab: Lab) -> None:
    refused = r"segment \d: .*does not model FilterExpression"
    with pytest.raises(SegmentError, match=refused) as raised:
        read_segments(lab, 3, FilterExpression="score > :min")
    assert isinstance(raised.value.__cause__, ClientError)


@pytest.mark.parametrize("error", [KeyError("a bug"), MemoryError(), SystemExit(3)])
def test_mistake_in_a_worker_is_raised_as_it_is(lab: Lab, error: BaseException) -> None:
    def open_output(segment: int) -> Output:
        if segment == 2:
            raise error
        return Output()

    with pytest.raises(type(error)) as raised:
        parallel_scan(client_of(lab), REQUEST, open_output=open_output)
    assert raised.value is error


def test_other_workers_stop_when_one_fails(lab: Lab) -> None:
    all_have_a_page = threading.Barrier(4, timeout=30)
    failed = threading.Event()
    closed = threading.Semaphore(0)
    written: list[int] = []

    class Held(Output):
        """Takes a first page, and holds its worker until segment 2 has failed."""

        def __init__(self, segment: int) -> None:
            self.segment = segment

        def write(self, page: Page) -> None:
            written.append(self.segment)
            if not failed.is_set():
                all_have_a_page.wait()
            if self.segment == 2:
                raise OSError("disk full")
            failed.wait(30)

        def __exit__(self, *error: object) -> None:
            closed.release()

    with pytest.raises(SegmentError, match="segment 2: disk full"):
        parallel_scan(client_of(lab), {**REQUEST, "Limit": 5}, open_output=Held)
    failed.set()
    for _ in range(4):
        assert closed.acquire(timeout=30)
    assert sorted(written) == [0, 1, 2, 3]
