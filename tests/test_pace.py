"""--max-rcu: in any ten seconds the table pays no more than it may; and nearly that is used."""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import math
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from items import assert_as_logged, instant, scans_of
from local_dynamodb import serve

import common
from common import Connection, Json, Pace, Page, Scan, ScanError

MB = 2**20
REQUEST = {"TableName": "T"}
Segment = list[tuple[int, int]]  # so many items of so many bytes, and then so many others
Seconds = Callable[[], float]


# --- Simulated time -------------------------------------------------------------------------------


class Over(Exception):
    """The simulated time has come to its end."""


class Simulation:
    """Time for threads that only sleep: when one does, the one to wake first goes on, alone."""

    def __init__(self, end: float) -> None:
        self.now = 0.0
        self.end = end
        self.order = itertools.count()
        self.asleep: list[tuple[float, int, Any]] = []
        self.errors: list[BaseException] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        if self.asleep and self.asleep[0][0] <= self.now + seconds:
            turn = self.lie_down(seconds)
            self.wake_next()
            turn.acquire()
        else:
            self.now += seconds
        if self.now > self.end:
            raise Over

    def lie_down(self, seconds: float) -> Any:
        turn = threading.Lock()
        turn.acquire()
        heapq.heappush(self.asleep, (self.now + seconds, next(self.order), turn))
        return turn

    def wake_next(self) -> None:
        if self.asleep:
            self.now, _, turn = heapq.heappop(self.asleep)
            turn.release()

    def live(self, work: Callable[[], object], turn: Any) -> None:
        turn.acquire()
        try:
            with contextlib.suppress(Over):
                work()
        except BaseException as error:
            self.errors.append(error)
        self.wake_next()

    def run(self, works: list[Callable[[], object]]) -> None:
        threads = [
            threading.Thread(target=self.live, args=(work, self.lie_down(0)), daemon=True)
            for work in works
        ]
        for thread in threads:
            thread.start()
        self.wake_next()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert self.errors == []


@dataclass
class Table:
    """A table of segments of items, whose pages take `seconds` each.

    What is paid falls at a request's start (0), at its end (1) or between.
    """

    segments: list[Segment]
    seconds: Seconds
    payment: float = 1.0
    time: Simulation = field(default_factory=lambda: Simulation(end=25))
    paid: list[tuple[float, float]] = field(default_factory=list)
    most_under_way: int = 0
    under_way: int = 0

    def fetch(self, _: object, request: Json, __: object) -> Page:
        first = int(request.get("ExclusiveStartKey", 0))
        items, size = page_of(self.segments[request["Segment"]], first, request["Limit"])
        rcu = math.ceil(size / 4096) * (1.0 if request.get("ConsistentRead") else 0.5)
        seconds = self.seconds()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.time.sleep(seconds * self.payment)
        self.paid.append((self.time.now, rcu))
        self.time.sleep(seconds * (1 - self.payment))
        self.under_way -= 1
        has_more = items == request["Limit"] or size >= MB
        key = str(first + items) if has_more else None
        return Page(items, items, pages=1, consumed_rcu=rcu, last_evaluated_key=key)

    def scan(self, rate: int, **request: Any) -> None:
        """Read it all, a worker for each segment."""
        scan = Scan(Connection(), REQUEST | request, Pace(rate, self.time, self.time.sleep))
        pages = functools.partial(scan.pages, TotalSegments=len(self.segments))
        works: list[Callable[[], object]] = [
            functools.partial(list, pages(Segment=n)) for n in range(len(self.segments))
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(common, "fetch", self.fetch)
            self.time.run(works)

    def largest(self) -> float:
        return max(rcu for _, rcu in self.paid)


def page_of(segment: Segment, first: int, limit: int) -> tuple[int, int]:
    """A page's items and bytes: it ends with the item that reaches 1 MB, or after Limit items."""
    items = 0
    size = 0
    for count, each in segment:
        of_these = min(max(0, count - first), limit - items, math.ceil((MB - size) / each))
        first = max(0, first - count)
        items += of_these
        size += of_these * each
        if size >= MB:
            break
    return items, size


def most_in(seconds: float, paid: list[tuple[float, float]]) -> float:
    """What was paid in any stretch of so many seconds, at most."""
    most = total = 0.0
    earliest = 0
    for at, rcu in sorted(paid):
        total += rcu
        while paid[earliest][0] <= at - seconds:
            total -= paid[earliest][1]
            earliest += 1
        most = max(most, total)
    return most


def all_small_then_large(workers: int, before: int) -> list[Segment]:
    """In every segment the items jump from 100 bytes to 300 KB, not all at the same place."""
    return [[(before * (4 + n % 3) // 4, 100), (10_000, 300 * 1024)] for n in range(workers)]


# --- Never more -----------------------------------------------------------------------------------


PAYMENTS = [0.0, 0.5, 1.0]
CASES = [  # each payment meets each latency, each rate, and each number of workers
    (seconds, rate, workers, PAYMENTS[(ordinal + ordinal // 3) % 3])
    for ordinal, (seconds, rate, workers) in enumerate(
        itertools.product([0.1, 3.0], [1, 10, 100, 1000], [1, 4, 16])
    )
]


@pytest.mark.parametrize(("seconds", "rate", "workers", "payment"), CASES)
def test_ten_seconds_pay_their_worth_and_one_page(
    seconds: float, rate: int, workers: int, payment: float
) -> None:
    before = 20 + 40 * rate // workers  # some seconds' worth
    table = Table(all_small_then_large(workers, before), lambda: seconds, payment)
    table.scan(rate)
    assert table.largest() > 128.5
    assert most_in(10, table.paid) <= 10 * rate + table.largest()


@pytest.mark.parametrize(("is_consistent", "pages"), [(False, 4), (True, 2)])
def test_so_many_pages_are_under_way_as_may_turn_out_full(is_consistent: bool, pages: int) -> None:
    # At 1,000 a second, half a second's worth is reached by four pages of 128.5, or two of 257.
    table = Table(all_small_then_large(16, 2000), lambda: 3.0)
    table.scan(1000, ConsistentRead=is_consistent)
    assert table.most_under_way == pages


@pytest.mark.parametrize("rate", [10, 400, 1000])
@pytest.mark.parametrize("is_consistent", [False, True])
def test_latency_and_size_may_change_at_any_time(is_consistent: bool, rate: int) -> None:
    for seed in range(4):
        chance = random.Random(seed)
        draw_seconds = functools.partial(chance.choice, [0.01, 0.1, 0.5, 3.0, 9.0])
        draw_size = functools.partial(chance.choice, [100, 2000, 300 * 1024, 400 * 1024])
        segments = [
            [(chance.randrange(1, 20_000), draw_size()) for _ in range(50)] for _ in range(8)
        ]
        table = Table(segments, draw_seconds, chance.random())
        table.scan(rate, ConsistentRead=is_consistent)
        assert most_in(10, table.paid) <= 10 * rate + table.largest()


def test_a_page_sent_twice_is_paid_twice() -> None:
    once = paid_at(10, Page(pages=1, consumed_rcu=20.0))
    assert paid_at(10, Page(pages=1, consumed_rcu=20.0, retried_requests=1)) > 1.9 * once


def paid_at(rate: int, page: Page) -> float:
    """How long the next request has to wait for a page."""
    time = Simulation(end=1000)
    pace = Pace(rate, time, lambda seconds: setattr(time, "now", time.now + seconds))
    pace.pay(page)
    with pace.turn(REQUEST):
        return time.now


def no_sleep(seconds: float) -> None:
    raise AssertionError(f"{seconds} s are waited for nothing")


# --- Nearly as much as it may ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 2000, 20_000, 300 * 1024])
@pytest.mark.parametrize(
    ("rate", "workers", "seconds"),
    [(1, 1, 0.45), (10, 1, 0.45), (100, 1, 0.45), (100, 4, 0.45), (1000, 1, 0.1), (1000, 8, 0.45)],
)
def test_nine_tenths_of_the_rate_are_used(
    rate: int, workers: int, seconds: float, size: int
) -> None:
    end = {1: 1000.0, 1000: 50.0}.get(rate, 200.0)
    table = Table([[(10**9, size)]] * workers, lambda: seconds, time=Simulation(end))
    table.scan(rate)
    start = end / 10  # by then the size of the items is known
    assert sum(rcu for at, rcu in table.paid if at > start) >= 0.9 * rate * (end - start)


def test_pages_are_about_a_seconds_worth() -> None:
    table = Table([[(10**9, 2000)]], lambda: 0.1)
    table.scan(50)
    rcu = [rcu for _, rcu in table.paid[5:-1]]
    assert 45 <= min(rcu) <= max(rcu) <= 55


def test_a_page_size_of_the_users_is_kept() -> None:
    with Pace(1000).turn({"Limit": 7}) as small:
        assert small["Limit"] == 7
    with Pace(1000).turn({"Limit": 10**6}) as large:
        assert large["Limit"] < 10**6


def test_without_max_rcu_nothing_waits_and_no_page_is_cut() -> None:
    pace = Pace(None, sleep=no_sleep)
    pace.pay(Page(pages=1, consumed_rcu=10.0**6))
    with pace.turn(REQUEST) as admitted:
        assert admitted == REQUEST


# --- What is not known, and what fails ------------------------------------------------------------


def test_what_a_page_cost_has_to_be_known() -> None:
    pace = Pace(5)
    with pytest.raises(ScanError, match="--max-rcu needs an endpoint"), pace.turn(REQUEST):
        pace.pay(Page(pages=1, consumed_rcu=None))
    assert pace.set_aside == 0


def test_an_engine_may_say_that_a_page_cost_nothing() -> None:
    pace = Pace(5, sleep=no_sleep)
    pace.pay(Page(pages=1, scanned=10, consumed_rcu=0.0))
    with pace.turn(REQUEST) as admitted:
        assert admitted["Limit"] > 0


@pytest.mark.parametrize(("rate", "items"), [(1, 1), (100, 20), (1000, 200)])
def test_before_the_size_of_items_is_known_a_page_has_few(rate: int, items: int) -> None:
    with Pace(rate).turn(REQUEST) as admitted:
        assert admitted["Limit"] <= items


def test_a_scan_that_failed_may_be_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = Scan(Connection(), REQUEST, Pace(1, sleep=no_sleep))
    monkeypatch.setattr(common, "fetch", mock.Mock(side_effect=[ScanError("once"), Page(pages=1)]))
    with pytest.raises(ScanError, match="once"):
        list(scan.pages())
    assert len(list(scan.pages())) == 1


def test_a_request_that_was_not_answered_gives_back_what_was_set_aside() -> None:
    pace = Pace(1, sleep=no_sleep)
    for _ in range(3):
        with contextlib.suppress(KeyboardInterrupt), pace.turn(REQUEST):
            raise KeyboardInterrupt
    assert pace.set_aside == 0


# --- On the server's log --------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["sequential_scan", "parallel_scan"])
def test_max_rcu_on_the_servers_log(metrics_of: Callable[..., Json], script: str) -> None:
    with serve(instant(4500, read_capacity=80, burst_seconds=1)) as lab:
        metrics = metrics_of(script, "--max-rcu", "80", at=lab)
    paid = [(entry["time"], entry["rcu"]) for entry in scans_of(lab)]
    assert metrics["items"] == 4500
    assert_as_logged(metrics, scans_of(lab))
    assert most_in(1, paid) <= 80 * 1 + max(rcu for _, rcu in paid)
    assert metrics["throttled_requests"] <= 2
