"""--max-rcu: a table pays no more than it may, and most of that is used."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import suppress
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

KB = 1024
MB = 1024 * KB
THROTTLED_ANSWER: Any = {
    "Error": {"Code": THROTTLED},
    "ResponseMetadata": {"HTTPStatusCode": 400},
}
REFUSED = ClientError(THROTTLED_ANSWER, "Scan")
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
        # The last page is paid for after the end.
        assert self.cost() <= max_rcu * self.now + pages * page


# --- In ten seconds, and on average ---------------------------------------------------


@pytest.mark.parametrize(
    ("item_size", "max_rcu", "consistent"), [(390 * KB, 8, True), (2 * KB, 1000, False)]
)
def test_rate_is_kept_and_used(item_size: int, max_rcu: int, consistent: bool) -> None:
    table = Table(item_size, seconds=0.1)
    paced = table.paced(max_rcu)
    while table.now < 200:
        paced.scan(ConsistentRead=consistent)
    table.assert_paid_at_most(max_rcu)
    assert table.cost() >= 0.8 * max_rcu * 200


@pytest.mark.parametrize("max_rcu", [8, 1000])
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


def test_slow_pages_are_read_at_the_same_time() -> None:
    table = Table(2 * KB)
    paced = table.paced(1000)
    for _ in range(3):  # so that it knows what an item costs
        paced.scan(ConsistentRead=True)
    table.sleep(2)  # so that nothing is left to wait for
    before = table.now

    # No page arrives before all ten requests came. Each costs 256 RCU.
    table.hold_page = threading.Barrier(10, timeout=10).wait
    with ThreadPoolExecutor(10) as workers:
        scans = [workers.submit(paced.scan, ConsistentRead=True) for _ in range(10)]
        assert all(scan.result() for scan in scans)

    # So the rate is used, even if a page takes three seconds.
    assert table.now - before < 3
    assert sum(rcu for _, rcu in table.paid[3:]) >= 0.8 * 3 * 1000


def test_worker_that_waits_hears_what_a_page_cost() -> None:
    # The first page may cost 50 RCU. So at 1 RCU a second, the second request would
    # have to wait for 50 s. The order of events: the first request is sent, the second
    # begins to sleep, the first page arrives (it cost 0.5 RCU), and the second wakes.
    table = Table(200)
    second_waits = threading.Event()
    first_is_back = threading.Event()

    def sleep(seconds: float) -> None:
        second_waits.set()
        assert first_is_back.wait(10)
        table.sleep(seconds)

    paced = PacedClient(table, 1, table.clock, sleep)
    table.hold_page = lambda: second_waits.wait(10)
    with ThreadPoolExecutor(2) as workers:
        requests = [workers.submit(paced.scan) for _ in range(2)]
        done, _ = wait(requests, timeout=10, return_when=FIRST_COMPLETED)
        first_is_back.set()
    assert done
    assert all(request.result() for request in requests)
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


@pytest.mark.parametrize("max_rcu", [20, 1000])
def test_lost_pages_are_paid_from_the_same_rate(max_rcu: int) -> None:
    table = Table(200, seconds=0.01)
    paced = table.paced(max_rcu)
    while table.now < 20:
        paced.scan(ConsistentRead=True)
    # Now the items are large, but no page arrives that tells.
    table.item_size = 390 * KB
    table.failures = [LOST, LOST, REFUSED] * 20
    while table.now < 300:
        with suppress(ClientError, ConnectionClosedError):
            paced.scan(ConsistentRead=True)
    table.assert_paid_at_most(max_rcu, pages=2)


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
