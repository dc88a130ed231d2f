"""Throttled requests and lost answers: a page is asked for again, and counted once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError, SSLError
from canned import EMPTY_PAGE, Canned, Reply, refusal
from engines import Engine
from items import (
    THROTTLE,
    Kept,
    assert_as_logged,
    contents,
    instant,
    lab_items,
    outcomes,
    scans_of,
)
from local_dynamodb import serve

import common
from common import Metrics, ScanError, scan_page
from parallel_scan import parallel_scan
from sequential_scan import sequential_scan

REQUEST = {"TableName": "GameLeaderboard"}


class Table:
    """A client that gives these answers in turn: a page, or an error to raise."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def scan(self, **_: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Clock:
    """Time that passes only in sleep()."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps.append(seconds)

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Lets common.py wait by a clock of ours."""
    clock = Clock()
    monkeypatch.setattr(common, "time", clock)
    return clock


def error(code: str, status: int = 400) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": ""},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(response, "Scan")


PAGE = json.loads(EMPTY_PAGE)
REFUSED = error(THROTTLE)
LOST = error("InternalServerError", 500)


# --- Against the server's log


@pytest.mark.parametrize("workers", [1, 16])
def test_throttled_scan_is_whole_and_as_logged(workers: int, no_delay: None) -> None:
    kept = Kept()
    model = instant(1000, read_capacity=30, burst_seconds=0.5)
    with serve(model) as lab:
        engine = Engine(lab.endpoint_url)
        metrics = parallel_scan(
            engine.client(), engine.request(Limit=50), workers, open_output=kept
        )
    assert metrics.complete
    assert metrics.throttled_requests > 0
    assert contents(kept.items()) == contents(lab_items(1000))
    assert_as_logged(common.counts_json(metrics), scans_of(lab))
    for segment, of_segment in metrics.segments.items():
        log = [entry for entry in scans_of(lab) if entry["segment"] == segment]
        assert_as_logged(common.counts_json(of_segment), log)


@pytest.mark.parametrize("fault", ["500", "reset", "truncated", "bad-crc"])
def test_lost_answer_is_requested_again(fault: str, no_delay: None) -> None:
    kept = Kept()
    # Each third request meets the fault.
    model = instant(500, script=lambda ordinal, _: fault if ordinal % 3 == 1 else None)
    with serve(model) as lab:
        engine = Engine(lab.endpoint_url)
        metrics = parallel_scan(
            engine.client(), engine.request(Limit=50), 3, open_output=kept
        )
    assert metrics.retried_requests == outcomes(lab)[fault] > 3
    assert contents(kept.items()) == contents(lab_items(500))
    assert_as_logged(common.counts_json(metrics), scans_of(lab))


def test_throttles_and_losses_are_counted_apart(no_delay: None) -> None:
    faults = ["500", "throttle", "truncated", "throttle"]
    model = instant(20, script=lambda n, _: faults[n] if n < len(faults) else None)
    with serve(model) as lab:
        engine = Engine(lab.endpoint_url)
        metrics = sequential_scan(engine.client(), engine.request())
    assert metrics.throttled_requests == 2
    assert metrics.retried_requests == 2
    assert metrics.pages == 1


# --- What is throttled, and what is lost


@pytest.mark.parametrize(
    "answer",
    [
        refusal("ProvisionedThroughputExceededException"),
        refusal("ThrottlingException"),
        refusal("RequestLimitExceeded"),
        refusal("ThrottlingException", status=503),
        Reply("{}", 429),
    ],
    ids=lambda answer: f"{answer.status} {answer.body!r}"[:60],
)
def test_every_kind_of_throttling_is_waited_out(
    canned: Canned, no_delay: None, answer: Reply
) -> None:
    canned.answer(answer, answer, EMPTY_PAGE)
    engine = Engine(canned.endpoint_url)
    metrics = sequential_scan(engine.client(), engine.request())
    assert (metrics.throttled_requests, metrics.retried_requests) == (2, 0)
    assert metrics.complete


@pytest.mark.parametrize("code", ["ValidationException", "AccessDeniedException"])
def test_other_errors_are_raised_at_once(canned: Canned, code: str) -> None:
    canned.answer(refusal(code))
    engine = Engine(canned.endpoint_url)
    with pytest.raises(ClientError, match=code):
        sequential_scan(engine.client(), engine.request())
    assert len(canned.requests) == 1


def test_a_wrong_certificate_is_raised_at_once(clock: Clock) -> None:
    table = Table(SSLError(endpoint_url="https://x", error=OSError("no certificate")))
    with pytest.raises(SSLError):
        scan_page(table, REQUEST, Metrics())
    assert clock.sleeps == []


def test_eighth_lost_answer_is_the_error(clock: Clock) -> None:
    metrics = Metrics()
    assert scan_page(Table(*[LOST] * 7, PAGE), REQUEST, metrics) == PAGE
    assert metrics.retried_requests == 7
    with pytest.raises(ClientError, match="InternalServerError"):
        scan_page(Table(*[LOST] * 8), REQUEST, Metrics())


def test_losses_of_another_page_do_not_count(clock: Clock) -> None:
    metrics = Metrics()
    for _ in range(3):
        scan_page(Table(*[LOST] * 7, PAGE), REQUEST, metrics)
    assert metrics.retried_requests == 21


# --- Waiting


def test_delays_grow_to_five_seconds_at_random(clock: Clock) -> None:
    scan_page(Table(*[REFUSED] * 20, PAGE), REQUEST, Metrics())
    for number, seconds in enumerate(clock.sleeps):
        assert 0.5 <= seconds / min(5.0, 0.05 * 2**number) <= 1
    assert len(set(clock.sleeps)) == 20


def test_waiting_ends_after_half_an_hour(clock: Clock) -> None:
    with pytest.raises(ScanError, match="throttled a page for half an hour") as raised:
        scan_page(Table(*[REFUSED] * 2000), REQUEST, Metrics())
    assert 1800 < clock.now - 1000 < 1810
    assert "--max-rcu" in raised.value.hint


def test_each_page_has_its_own_half_hour(clock: Clock) -> None:
    for _ in range(3):
        scan_page(Table(*[REFUSED] * 300, PAGE), REQUEST, Metrics())
    assert clock.now - 1000 > 1800


def test_waits_are_those_while_throttled(clock: Clock) -> None:
    metrics = Metrics()
    scan_page(Table(REFUSED, LOST, REFUSED, PAGE), REQUEST, metrics)
    first, lost, second = clock.sleeps
    (start, end), (next_start, next_end) = metrics.waits
    assert start == 1000.0
    assert end - start == pytest.approx(first)
    assert next_start - end == pytest.approx(lost)
    assert next_end - next_start == pytest.approx(second)
