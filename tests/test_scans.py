"""The scans: every item once, whatever the pages and segments; and metrics that hold.

They are held against the items themselves, against the request log of the local lab,
and against dynalite.
"""

from __future__ import annotations

import json
import os
import pty
import re
import time
from threading import Event
from typing import Any

import pytest
from canned import EMPTY_PAGE, Canned
from conftest import Invoke, NewLab
from items import (
    ITEMS,
    REQUEST,
    client_of,
    contents,
    counts_in,
    lab_items,
    read_pages,
    read_segments,
    saved_items,
    scans_of,
)
from model import Lab
from running import PIPE, start

from common import Metrics, Page
from parallel_scan import Output, SegmentError, how_far, parallel_scan

# --- Every item, once -----------------------------------------------------------------


def test_segments_hold_every_item_once(real: Any) -> None:
    metrics, items = read_segments(real, 20, workers=3, Limit=30)
    assert contents(items) == contents(lab_items())
    assert metrics.complete


def test_empty_page_is_not_the_end(real: Any) -> None:
    # The filter keeps one player of 80, the last one, so most pages are empty. 2,000
    # items are 20 full pages. The 20th has a key, so a 21st follows, with nothing read.
    player = lab_items()[-1]["player_id"]
    metrics, items = read_pages(
        real,
        FilterExpression="player_id = :player",
        ExpressionAttributeValues={":player": player},
        Limit=100,
    )
    expected = [item for item in lab_items() if item["player_id"] == player]
    assert contents(items) == contents(expected)
    assert (metrics.items, metrics.scanned, metrics.pages) == (25, ITEMS, 21)


def test_empty_last_evaluated_key_is_the_end(canned: Canned) -> None:
    # "When LastEvaluatedKey is empty": so the API reference words it.
    canned.answer(f'{EMPTY_PAGE[:-1]}, "LastEvaluatedKey": {{}}}}')
    assert read_pages(canned)[0].pages == 1


# --- Metrics --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "mode", "segments", "workers"),
    [
        ("sequential_scan", "sequential", [None], 1),
        # Some of the segments are empty: there are only 80 players.
        ("parallel_scan --total-segments 100", "parallel", range(100), 64),
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
    ended = invoke(f"{command} --page-size 300 --output json", at=lab)
    metrics = ended.json()
    log = scans_of(lab)
    assert ended.err == ""  # progress is only for a terminal
    assert counts_in(log).items() <= metrics.items()
    assert len(metrics["segments"]) == len(segments)
    for segment, of_segment in zip(segments, metrics["segments"]):
        assert of_segment["segment"] == (segment or 0)
        of_log = [entry for entry in log if entry["segment"] == segment]
        assert counts_in(of_log).items() <= of_segment.items()
        assert of_segment["started"] >= 0
        assert of_segment["seconds"] > 0
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


def test_times_are_within_those_of_the_test(new_lab: NewLab, invoke: Invoke) -> None:
    lab = new_lab(latency_ms=100)
    seconds, cpu_seconds = time.perf_counter(), time.process_time()
    metrics = invoke("sequential_scan --page-size 300 --output json", at=lab).json()
    seconds = time.perf_counter() - seconds
    cpu_seconds = time.process_time() - cpu_seconds
    log = scans_of(lab)
    assert log[-1]["time"] - log[0]["time"] <= metrics["seconds"] <= seconds
    assert 0 < metrics["cpu_seconds"] <= cpu_seconds
    assert metrics["items_per_second"] == pytest.approx(ITEMS / metrics["seconds"])


def test_cpu_time_is_of_all_threads(lab: Lab) -> None:
    class Busy(Output):
        def write(self, page: Page) -> None:
            started = time.thread_time()
            while time.thread_time() < started + 0.1:
                pass

    client = client_of(lab)
    metrics = parallel_scan(client, REQUEST, 3, open_output=lambda segment: Busy())
    assert metrics.cpu_seconds >= 0.3  # three segments, a page each


def test_table_shows_the_labs_metrics_and_a_timeline(lab: Lab, invoke: Invoke) -> None:
    table, bars = invoke("parallel_scan", at=lab).out.split("\n\n")
    rows = dict(re.findall(r"^(\w.*?)  +(.*)", table, re.MULTILINE))
    names = "Total execution time,Items processed,Items per second,Consumed RCU"
    assert list(rows) == [*names.split(","), "Pages", "CPU time"]
    assert rows["Items processed"] == "2,000"
    assert rows["Consumed RCU"] == "51.0"
    assert len(re.findall(r"^segment \d +\|", bars, re.MULTILINE)) == 4


# By hand: 2,000 items have 406,722 bytes, so 100 times 4 KB, at half an RCU each.
@pytest.mark.parametrize(
    ("flags", "rcu"), [("", 50.0), ("--consistent-read", 100.0), ("--select COUNT", 50)]
)
def test_consumed_capacity_by_hand(
    lab: Lab, invoke: Invoke, flags: str, rcu: float
) -> None:
    metrics = invoke(f"sequential_scan {flags} --output json", at=lab).json()
    assert (metrics["items"], metrics["consumed_rcu"]) == (ITEMS, rcu)


def test_capacity_is_unknown_if_one_page_is_silent(
    canned: Canned, invoke: Invoke
) -> None:
    page = '{"Items": [], "Count": 0, "ScannedCount": 1, "ConsumedCapacity": '
    told = page + '{"CapacityUnits": 0.5}, "LastEvaluatedKey": {"a": {"S": "b"}}}'
    canned.answer(told, f"{page}{{}}}}")
    assert re.search("Consumed RCU +n/a", invoke("sequential_scan", at=canned).out)


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


# The first line is shown when a page or a segment was read, and then one a second.
@pytest.mark.parametrize(
    ("command", "how_far_it_is"),
    [
        ("sequential_scan.py --page-size 10", ""),
        ("parallel_scan.py --total-segments 40 --workers 1", r"\d+ of 40 .*left, "),
    ],
)
def test_progress_is_shown_on_a_terminal(
    new_lab: NewLab, command: str, how_far_it_is: str
) -> None:
    terminal, program_end = pty.openpty()
    lab = new_lab(400, latency_ms=50, script=lambda n, _: None if n else "throttle")
    process = start(command, lab, PIPE, program_end)
    result, _ = process.communicate()
    # What the program printed is in the terminal's buffer. One more byte makes sure
    # that there is something to read.
    os.write(program_end, b".")
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    os.close(program_end)
    rates = r"[1-9]\d* items \([1-9]\d*/s\), [1-9]\d* RCU/s, 1 throttled"
    assert re.search(how_far_it_is + rates, shown)
    assert "items (" not in result


# If 20 of 40 segments took 200 s, the other 20 take 200 s, too.
@pytest.mark.parametrize(
    ("segments_read", "workers", "seconds", "left"),
    [
        (20, 4, 200, ", 200 s left, "),
        (4, 4, 1000, ", 150 min left, "),
        (3, 3, 10, ", "),  # it is too early to tell
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


@pytest.mark.parametrize("error", [RuntimeError("a bug"), SystemExit(3)])
def test_mistake_in_a_worker_is_raised_as_it_is(lab: Lab, error: BaseException) -> None:
    def open_output(segment: int) -> Output:
        if segment == 2:
            raise error
        return Output()

    with pytest.raises(type(error)) as raised:
        parallel_scan(client_of(lab), REQUEST, open_output=open_output)
    assert raised.value is error


def test_outputs_are_closed_when_a_scan_has_failed(lab: Lab) -> None:
    is_closed = Event()

    class Zero(Output):
        def __exit__(self, *error: object) -> None:
            is_closed.set()

    class One(Output):
        def write(self, page: Page) -> None:
            raise OSError("disk full")

    with pytest.raises(SegmentError):
        parallel_scan(
            client_of(lab),
            {**REQUEST, "Limit": 5},
            total_segments=2,
            open_output=lambda segment: One() if segment else Zero(),
        )
    assert is_closed.is_set()


def test_other_workers_stop_when_one_fails(lab: Lab) -> None:
    zero_has_a_page, one_has_failed, zero_is_closed = (Event() for _ in range(3))
    written: list[int] = []

    class Zero(Output):
        """Holds its worker at the first page, until the other one has failed."""

        def write(self, page: Page) -> None:
            written.append(len(page["Items"]))
            zero_has_a_page.set()
            one_has_failed.wait(30)

        def __exit__(self, *error: object) -> None:
            zero_is_closed.set()

    class One(Output):
        def write(self, page: Page) -> None:
            zero_has_a_page.wait(30)
            raise OSError("disk full")

    with pytest.raises(SegmentError, match="segment 1: disk full"):
        parallel_scan(
            client_of(lab),
            {**REQUEST, "Limit": 5},
            total_segments=2,
            open_output=lambda segment: One() if segment else Zero(),
        )
    one_has_failed.set()
    assert zero_is_closed.wait(30)
    assert written == [5]
