"""--max-rcu: a table pays no more than it may, and most of that is used."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError
from canned import COUNTS, Canned
from conftest import Invoke, NewLab
from items import THROTTLED, counts_in, scans_of
from running import assert_failed

from common import Page
from parallel_scan import PacedClient

MB = 1024 * 1024
KB = 1000
SAID: Any = {"Error": {"Code": THROTTLED}, "ResponseMetadata": {"HTTPStatusCode": 400}}
REFUSED = ClientError(SAID, "Scan")
LOST = ConnectionClosedError(endpoint_url="http://127.0.0.1:9")


class Table:
    """A table without an end. Its time passes only while somebody sleeps.

    Its items have `item_size` bytes, and a page takes `seconds`. `failures` are raised
    in turn: a lost page is paid for, a refused one is not. `hold_page` is called before
    a page arrives.
    """

    def __init__(self, item_size: int, seconds: float = 0.0) -> None:
        self.now = 0.0
        self.item_size = item_size
        self.seconds = seconds
        self.failures: list[Exception | None] = []
        self.hold_page: Callable[[], object] = lambda: None
        self.sent: list[float] = []  # when each request came
        self.paid: list[tuple[float, float]] = []  # when, and how many RCU
        self.meta = SimpleNamespace(endpoint_url="http://127.0.0.1:9")

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def paced(self, max_rcu: int) -> PacedClient:
        return PacedClient(self, max_rcu, self.clock, self.sleep)

    def scan(self, **request: Any) -> Page:
        self.sent.append(self.now)
        failure = self.failures.pop(0) if self.failures else None
        if failure is REFUSED:
            raise failure
        items = min(request["Limit"], math.ceil(MB / self.item_size))
        blocks = math.ceil(items * self.item_size / 4096)
        rcu = blocks * (1.0 if request.get("ConsistentRead") else 0.5)
        self.hold_page()
        self.sleep(self.seconds)
        self.paid.append((self.now, rcu))
        if failure is LOST:
            raise failure
        return {
            "Count": 0,  # as if a filter removed all of them
            "ScannedCount": items,
            "ConsumedCapacity": {"CapacityUnits": rcu},
        }

    def cost(self, start: float = 0, end: float = math.inf) -> float:
        """The RCU that were paid from one moment to another."""
        return sum(rcu for when, rcu in self.paid if start <= when < end)

    def assert_paid_at_most(self, max_rcu: int, pages: int = 1) -> None:
        """Assert what --max-rcu promises.

        In any ten seconds, that is ten seconds' worth and one page. When items become
        larger, each worker may get one page more.
        """
        page = max(rcu for _, rcu in self.paid)
        most = max(self.cost(start, start + 10) for start, _ in self.paid)
        assert most <= 10 * max_rcu + pages * page
        # The time that the last page is worth comes after the end.
        assert self.cost() <= max_rcu * self.now + pages * page


# --- In ten seconds, and on average ---------------------------------------------------


@pytest.mark.parametrize("consistent", [False, True])
@pytest.mark.parametrize(
    ("item_size", "max_rcu"), [(390 * KB, 8), (20 * KB, 30), (200, 20), (2 * KB, 1000)]
)
def test_rate_is_kept_and_used(item_size: int, max_rcu: int, consistent: bool) -> None:
    table = Table(item_size, seconds=0.1)
    paced = table.paced(max_rcu)
    while table.now < 200:
        paced.scan(ConsistentRead=consistent)
    table.assert_paid_at_most(max_rcu)
    assert table.cost() >= 0.8 * max_rcu * 200


@pytest.mark.parametrize("max_rcu", [8, 100, 1000])
def test_rate_is_kept_when_items_change_size(max_rcu: int) -> None:
    chance = random.Random(1)
    table = Table(200)
    paced = table.paced(max_rcu)
    while table.now < 300:
        table.item_size = chance.choice([200, 2 * KB, 20 * KB, 390 * KB])
        table.seconds = chance.choice([0.01, 0.1, 0.9, 3.0])
        paced.scan()
    table.assert_paid_at_most(max_rcu, pages=2)


def test_each_worker_may_get_one_larger_page() -> None:
    table = Table(200, seconds=0.01)
    paced = table.paced(10)
    while table.now < 20:
        paced.scan()

    # Eight requests are sent before one of these large pages arrives.
    table.item_size = 390 * KB
    table.hold_page = threading.Barrier(8, timeout=10).wait
    with ThreadPoolExecutor(8) as workers:
        list(workers.map(lambda _: paced.scan(), range(8)))
    table.hold_page = lambda: None
    while table.now < 300:
        paced.scan()

    table.assert_paid_at_most(10, pages=9)


@pytest.mark.parametrize(
    ("item_size", "max_rcu", "consistent", "requests"),
    [
        (20 * KB, 30, False, 3),  # 12 items are a second's worth
        (2 * KB, 1000, True, 10),  # full pages of 256 RCU
    ],
)
def test_slow_pages_are_read_at_the_same_time(
    item_size: int, max_rcu: int, consistent: bool, requests: int
) -> None:
    table = Table(item_size)
    paced = table.paced(max_rcu)
    for _ in range(3):  # so that it knows what an item costs
        paced.scan(ConsistentRead=consistent)
    table.sleep(2)  # so that nothing is left to wait for
    before = table.now

    # No page arrives before all requests came.
    table.hold_page = threading.Barrier(requests, timeout=10).wait
    with ThreadPoolExecutor(requests) as workers:
        scan = partial(paced.scan, ConsistentRead=consistent)
        pages = [workers.submit(scan) for _ in range(requests)]
        assert all(page.result() for page in pages)

    # So the rate is used, even if a page takes three seconds.
    assert table.now - before < 3
    assert sum(rcu for _, rcu in table.paid[3:]) >= 0.8 * 3 * max_rcu


def test_worker_that_waits_hears_what_a_page_cost() -> None:
    table = Table(200)
    one_waits = threading.Event()
    page_arrived = threading.Event()

    def sleep(seconds: float) -> None:
        one_waits.set()
        assert page_arrived.wait(10)
        table.sleep(seconds)

    # The first page may cost 50 RCU, so the other request would have to wait for 50 s.
    paced = PacedClient(table, 1, table.clock, sleep)
    table.hold_page = lambda: one_waits.wait(10)
    with ThreadPoolExecutor(2) as workers:
        requests = [workers.submit(paced.scan) for _ in range(2)]
        done, _ = wait(requests, timeout=10, return_when=FIRST_COMPLETED)
        page_arrived.set()
    assert done
    assert all(request.result() for request in requests)

    # The page cost 0.5 RCU.
    assert max(table.sent) == pytest.approx(0.5, abs=0.06)


def test_page_is_worth_a_second_at_most() -> None:
    table = Table(200)
    paced = table.paced(20)
    for limit in (7, 1_000_000, 1_000_000, 1_000_000, 7):
        paced.scan(Limit=limit)
    # The first two pages are small: they find out what an item costs.
    assert [rcu for _, rcu in table.paid] == [0.5, 1, 20, 20, 0.5]


# --- Requests that fail ---------------------------------------------------------------


def test_refused_request_costs_no_time() -> None:
    table = Table(20 * KB)
    paced = table.paced(30)
    table.failures = [REFUSED] * 5
    for _ in range(5):
        with pytest.raises(ClientError):
            paced.scan()
    paced.scan()
    assert table.sent == [0] * 6


@pytest.mark.parametrize(
    ("item_size", "max_rcu", "in_turn"),
    [
        (390 * KB, 8, [LOST]),
        (390 * KB, 8, [REFUSED, LOST]),
        (390 * KB, 8, [LOST, LOST, LOST, REFUSED, None]),
        (20 * KB, 30, [None, None, LOST, None, None]),
    ],
)
def test_lost_pages_are_paid_from_the_same_rate(
    item_size: int, max_rcu: int, in_turn: list[Exception | None]
) -> None:
    table = Table(item_size, seconds=0.1)
    paced = table.paced(max_rcu)
    while table.now < 100:
        table.failures = table.failures or list(in_turn)
        with suppress(ClientError, ConnectionClosedError):
            paced.scan(ConsistentRead=True)
    table.assert_paid_at_most(max_rcu)


def test_rate_is_kept_when_larger_pages_are_lost() -> None:
    table = Table(200, seconds=0.01)
    paced = table.paced(20)
    while table.now < 20:
        paced.scan()
    table.item_size = 390 * KB
    table.failures = [LOST] * 7
    while table.now < 300:
        with suppress(ConnectionClosedError):
            paced.scan()
    table.assert_paid_at_most(20, pages=2)


# --- On servers -----------------------------------------------------------------------


# Without --max-rcu, this scan takes a tenth of a second.
def test_log_shows_that_the_rate_is_kept(new_lab: NewLab, invoke: Invoke) -> None:
    lab = new_lab()
    command = "parallel_scan --max-rcu 100 --page-size 20 --output json"
    metrics = invoke(command, at=lab).json()
    log = scans_of(lab)
    costs = [entry["rcu"] for entry in log]
    seconds = log[-1]["time"] - log[0]["time"]
    assert counts_in(log).items() <= metrics.items()
    # One page, and two more because requests may be a while on their way.
    assert sum(costs) <= 100 * seconds + 3 * max(costs)


def test_endpoint_has_to_report_capacity(invoke: Invoke, canned: Canned) -> None:
    canned.answer(f'{{"Items": [{{}}], {COUNTS}}}')
    ended = invoke("parallel_scan --total-segments 1 --max-rcu 50", at=canned)
    error = "segment 0: --max-rcu needs an endpoint that reports consumed capacity"
    assert_failed(ended, 1, error, "read small pages instead: --page-size 100")
