"""Throttling: waited out page by page, ever longer, until no worker had a page for five minutes."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby

import pytest
from canned import EMPTY_PAGE, Canned, refusal
from engines import Engine
from items import THROTTLE, instant, is_whole, outcomes
from local_dynamodb import serve
from running import Ended

import common
from common import Connection, Json, Pace, Page, Scan, ScanError, json_lines
from parallel_scan import parallel_scan
from sequential_scan import sequential_scan

MetricsOf = Callable[..., Json]


@pytest.mark.parametrize("workers", [1, 16])
def test_a_throttled_scan_waits_and_goes_on_where_it_was(workers: int) -> None:
    asked: dict[int, list[str]] = {number: [] for number in range(workers)}
    lines: list[bytes] = []

    def note(ordinal: int, params: Json) -> None:
        assert ordinal < 1000  # it must not go on for ever
        asked[params["Segment"]].append(json.dumps(params.get("ExclusiveStartKey")))

    model = instant(1000, read_capacity=30, burst_seconds=0.5, script=note)
    with serve(model) as lab:
        scan = Engine(lab.endpoint_url).scan(json_lines, Limit=50)
        metrics = parallel_scan(scan, workers, workers, collect=lines.append)
    assert metrics.complete
    assert is_whole(b"".join(lines), 1000)
    assert metrics.throttled_requests == outcomes(lab)[THROTTLE] > 0
    assert metrics.pages == outcomes(lab)["ok"]
    # Each place is asked for until it is admitted, and never again.
    places = [[key for key, _ in groupby(keys)] for keys in asked.values()]
    assert all(len(keys) == len(set(keys)) for keys in places)
    assert sum(map(len, places)) == metrics.pages


THROTTLES = [  # botocore's own list of them, as far as DynamoDB might answer a Scan with one
    "ThrottlingException",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "Throttling",
    "ThrottledException",
    "RequestThrottled",
    "TooManyRequestsException",
    "LimitExceededException",
    "BandwidthLimitExceeded",
    "SlowDown",
]


@pytest.mark.parametrize("code", THROTTLES)
def test_every_kind_of_throttling_is_waited_out(
    canned: Canned, metrics_of: MetricsOf, code: str
) -> None:
    refused = refusal(code, "slow down")
    engine = canned.answer(refused, refused, EMPTY_PAGE)
    metrics = metrics_of("sequential_scan", at=engine)
    assert (metrics["throttled_requests"], metrics["pages"]) == (2, 1)
    assert metrics["complete"]


@pytest.mark.parametrize("status", [400, 500, 503])
def test_throttling_of_any_status_and_of_a_proxy_is_waited_out(
    canned: Canned, metrics_of: MetricsOf, status: int
) -> None:
    named = status, b'{"__type": "ThrottlingException"}'
    by_proxy = 429, b"{}"
    metrics = metrics_of("parallel_scan", at=canned.answer(named, by_proxy, EMPTY_PAGE))
    assert (metrics["throttled_requests"], metrics["retried_requests"]) == (2, 0)


def test_what_was_lost_before_a_refusal_counts_as_retried() -> None:
    faults = ["500", "truncated", "throttle"]
    with serve(instant(20, script=lambda n, _: faults[n] if n < 3 else None)) as lab:
        metrics = sequential_scan(Engine(lab.endpoint_url).scan())
    assert metrics.retried_requests == 2
    assert metrics.throttled_requests == 1


# --- Patience


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps.append(seconds)


REFUSED = Page(throttled_requests=1)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refused(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Scan:
    """A scan of which every request is refused, for as long as five minutes can take twice."""
    left = iter([REFUSED] * 1000)
    monkeypatch.setattr(common, "fetch", lambda *_: next(left))
    return scan_by(clock)


def scan_by(clock: Clock) -> Scan:
    return Scan(Connection(), {"TableName": "T"}, Pace(clock=clock, sleep=clock.sleep))


def test_patience_ends_after_five_minutes_without_a_page(clock: Clock, refused: Scan) -> None:
    with pytest.raises(ScanError, match=r"throttled for five minutes, in which no worker got"):
        list(refused.pages())
    assert 300 < clock.now <= 305


def test_a_refusal_that_ends_the_patience_is_the_last_request(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_at: list[float] = []

    def refuse(*_: object) -> Page:
        asked_at.append(clock.now)
        return REFUSED

    monkeypatch.setattr(common, "fetch", refuse)
    with pytest.raises(ScanError):
        list(scan_by(clock).pages())
    assert asked_at[-1] == clock.now


def test_any_page_renews_the_patience(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    # A page each 250 seconds and more, to either of two workers in turn; then none any more.
    came_at = [0.0]

    def fetch(*_: object) -> Page:
        if clock.now - came_at[-1] < 250 or len(came_at) > 4:
            return REFUSED
        came_at.append(clock.now)
        return Page(pages=1, last_evaluated_key="there is always more")

    monkeypatch.setattr(common, "fetch", fetch)
    scan = scan_by(clock)
    workers = [scan.pages(Segment=0), scan.pages(Segment=1)]
    with pytest.raises(ScanError, match="throttled for five minutes"):
        while True:
            for worker in workers:
                next(worker)
    assert came_at[-1] >= 4 * 250
    assert 300 < clock.now - came_at[-1] <= 310


def test_patience_is_whole_again_when_the_scan_is_run_again(clock: Clock, refused: Scan) -> None:
    for run_number in (1, 2):
        with pytest.raises(ScanError):
            list(refused.pages())
        assert 300 * run_number < clock.now <= 305 * run_number


def test_waiting_grows_up_to_five_seconds_with_jitter(clock: Clock) -> None:
    pace = scan_by(clock).pace
    for refusals in range(1, 20):
        pace.back_off(refusals)
    for refusals, seconds in enumerate(clock.sleeps, 1):
        assert 0.5 <= seconds / min(5, 0.05 * 2**refusals) <= 1
    assert len(set(clock.sleeps)) == len(clock.sleeps)


def test_waiting_is_short_again_after_a_page(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [*[REFUSED] * 6, Page(pages=1, last_evaluated_key="next"), REFUSED, Page(pages=1)]
    left = iter(pages)
    monkeypatch.setattr(common, "fetch", lambda *_: next(left))
    assert list(scan_by(clock).pages()) == pages
    assert max(clock.sleeps) > 1
    assert clock.sleeps[-1] <= 0.1


# --- What is said of it


@pytest.fixture
def _by_the_clock(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script's waits take no time."""
    monkeypatch.setattr(common, "Pace", lambda _: Pace(clock=clock, sleep=clock.sleep))


@pytest.mark.usefixtures("_by_the_clock")
@pytest.mark.parametrize(
    ("script", "described"), [("sequential_scan", 1), ("parallel_scan", 4), ("compare", 2)]
)
def test_the_error_says_how_long_and_what_to_do_and_asks_nothing_more(
    canned: Canned, invoke: Callable[..., Ended], script: str, described: int
) -> None:
    at = canned.answer(refusal(THROTTLE), table='{"Table": {}}')
    ended = invoke(script, at=at)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-2:] == [
        "error: throttled for five minutes, in which no worker got a page",
        "hint: raise the table's capacity, or read more slowly: --max-rcu",
    ]
    assert canned.operations.count("DescribeTable") == described  # before the scan, as always


@pytest.mark.usefixtures("_by_the_clock")
def test_a_throttled_scan_needs_no_permission_to_describe_the_table(
    canned: Canned, invoke: Callable[..., Ended]
) -> None:
    at = canned.answer(refusal("ThrottlingException"), table=refusal("AccessDeniedException"))
    ended = invoke("parallel_scan", at=at)
    assert "throttled for five minutes" in ended.stderr
    assert "denied" not in ended.stderr
