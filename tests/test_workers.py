"""Workers: what they read comes whole and in order; one that fails, or an interrupt, stops all."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import common
from common import Connection, Json, Pace, Page, Scan, ScanError
from parallel_scan import merged, parallel_scan

LAYOUTS = st.lists(  # segments of pages, each with so many items, and refused so often before
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=6),
    min_size=1,
    max_size=6,
)


@given(LAYOUTS, st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_any_layout_comes_whole_and_in_order(
    layout: list[list[tuple[int, int]]], workers: int
) -> None:
    tries: Counter[tuple[int, int]] = Counter()

    def fetch(_: object, request: Json, each_page: Callable[[Any], Any]) -> Page:
        segment = request["Segment"]
        number = request.get("ExclusiveStartKey", 0)
        items, refusals = layout[segment][number]
        tries[segment, number] += 1
        if tries[segment, number] <= refusals:
            return Page(throttled_requests=1)
        has_more = number + 1 < len(layout[segment])
        page = Page(items, items, pages=1, consumed_rcu=1.0)
        page.last_evaluated_key = number + 1 if has_more else None
        page.result = each_page([(segment, number, each) for each in range(items)])
        return page

    got: list[tuple[int, int, int]] = []
    pace = Pace(sleep=lambda seconds: None)
    scan = Scan(Connection(), {"TableName": "T"}, pace, each_page=list)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "fetch", fetch)
        patch.setattr(Scan, "opening", lambda scan: iter(["open"]))
        metrics = parallel_scan(scan, len(layout), workers, collect=got.extend)
    expected = [
        (segment, number, each)
        for segment, pages in enumerate(layout)
        for number, (items, _) in enumerate(pages)
        for each in range(items)
    ]
    assert sorted(got, key=lambda item: item[0]) == expected  # stable: in order in each segment
    assert metrics.pages == metrics.consumed_rcu == sum(map(len, layout))
    for pages, segment in zip(layout, metrics.segments):
        assert segment.pages == len(pages)
        assert segment.items == sum(items for items, _ in pages)
        assert segment.throttled_requests == sum(refusals for _, refusals in pages)


def test_streams_are_taken_one_at_a_time() -> None:
    def streams() -> Iterator[list[int]]:
        for number in range(20):
            time.sleep(0.005)  # meanwhile the others want one, too
            yield [number]

    assert sorted(merged(streams(), 4)) == list(range(20))


# --- Workers that fail, and what becomes of the others


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Scan]:
    """Gives a scan for which this function is what fetches; there is no server."""

    def pretended(fetch: Any) -> Scan:
        monkeypatch.setattr(common, "fetch", fetch)
        monkeypatch.setattr(Scan, "opening", lambda scan: iter(["open"]))
        return Scan(Connection(), {"TableName": "T"})

    return pretended


def ended(before: set[threading.Thread]) -> bool:
    """Whether there are no other threads than these, or will be none in a moment."""
    deadline = time.monotonic() + 2
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    return not set(threading.enumerate()) - before


class Workers:
    """Four workers' requests: of each segment two pages come, and the third when it is let."""

    def __init__(self, failing_segment: int | None = None) -> None:
        self.failing_segment = failing_segment
        self.requests = 0
        self.let_on = threading.Event()
        self.all_busy = threading.Barrier(4, timeout=10)
        self.pages: Counter[int] = Counter()

    def fetch(self, _: object, request: Json, __: object) -> Page:
        segment = request["Segment"]
        self.requests += 1
        self.pages[segment] += 1
        if self.pages[segment] == 3:
            self.all_busy.wait()
            if segment == self.failing_segment:
                raise ScanError("the first")
            self.let_on.wait(10)
        return Page(1, 1, pages=1, last_evaluated_key="there is always more")


def test_a_worker_that_fails_stops_the_others(pretend: Callable[[Any], Scan]) -> None:
    before = set(threading.enumerate())
    workers = Workers(failing_segment=2)
    with pytest.raises(ScanError, match="the first"):
        parallel_scan(pretend(workers.fetch))
    workers.let_on.set()
    assert ended(before)
    assert workers.requests == 4 * 3


def test_the_first_error_is_the_one_that_is_told(pretend: Callable[[Any], Scan]) -> None:
    def fetch(_: object, request: Json, __: object) -> Page:
        time.sleep(0.1 * request["Segment"])
        raise ScanError(f"segment {request['Segment']}")

    with pytest.raises(ScanError, match="segment 0"):
        parallel_scan(pretend(fetch))


@pytest.mark.parametrize("error", [KeyError("a bug"), SystemExit(3), MemoryError()])
def test_whatever_ends_a_worker_is_raised(
    pretend: Callable[[Any], Scan], error: BaseException
) -> None:
    def fetch(*_: object) -> Page:
        raise error

    with pytest.raises(type(error)):
        parallel_scan(pretend(fetch))


def test_an_interrupt_stops_the_workers(pretend: Callable[[Any], Scan]) -> None:
    before = set(threading.enumerate())
    workers = Workers()
    collected: list[Any] = []

    def collect(result: Any) -> None:
        collected.append(result)
        if len(collected) == 8:
            raise KeyboardInterrupt

    metrics = parallel_scan(pretend(workers.fetch), collect=collect)
    workers.let_on.set()
    assert not metrics.complete
    assert metrics.pages == 8
    assert ended(before)
    assert workers.requests <= 4 * 3


def test_an_error_in_what_collects_stops_the_workers(pretend: Callable[[Any], Scan]) -> None:
    before = set(threading.enumerate())
    workers = Workers()

    def collect(_: Any) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full") as raised:
        parallel_scan(pretend(workers.fetch), collect=collect)
    workers.let_on.set()
    assert ended(before)
    assert workers.requests <= 4 * 3
    assert raised.value  # kept until here, and all its frames


@pytest.mark.parametrize("max_rcu", [1, None], ids=["pacing", "throttled"])
def test_who_waits_for_capacity_sends_one_request_more_at_most_after_an_error(
    pretend: Callable[[Any], Scan], max_rcu: int | None
) -> None:
    before = set(threading.enumerate())
    asked: list[int] = []

    def fetch(_: object, request: Json, __: object) -> Page:
        asked.append(request["Segment"])
        if request["Segment"] == 1:
            return Page(throttled_requests=1)
        time.sleep(0.3)  # the other one waits by now
        raise ScanError("the first")

    scan = Scan(Connection(), pretend(fetch).request, Pace(max_rcu))
    with pytest.raises(ScanError, match="the first"):
        parallel_scan(scan, 2, 2)
    asked.clear()
    assert ended(before)
    assert asked in ([], [1])


@pytest.mark.parametrize("started", [2, 4 + 2], ids=["while opening", "while reading"])
def test_a_thread_that_cannot_be_started_is_an_error_at_once(
    pretend: Callable[[Any], Scan], monkeypatch: pytest.MonkeyPatch, started: int
) -> None:
    before = set(threading.enumerate())
    start = threading.Thread.start
    left = iter(range(started))

    def limited(thread: threading.Thread) -> None:
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    scan = pretend(lambda *_: Page(pages=1, last_evaluated_key="there is always more"))
    no_more = pytest.raises(RuntimeError, match="can't start new thread")
    with monkeypatch.context() as patch, no_more:
        patch.setattr(threading.Thread, "start", limited)
        parallel_scan(scan)
    assert ended(before)
