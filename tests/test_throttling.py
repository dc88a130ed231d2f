"""Throttled requests and lost answers: a page is asked for again, and counted once.

`campaign.py` has longer campaigns than the one here.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, SSLError
from campaign import campaign
from canned import EMPTY_PAGE, Canned, Reply, refusal
from conftest import NewLab
from items import (
    REQUEST,
    THROTTLED,
    contents,
    counts_in,
    lab_items,
    read_pages,
    read_segments,
    scans_of,
)

import common
from common import Client, Metrics, ScanError, scan_page

REFUSED: Any = refusal(THROTTLED)
LOST: Any = refusal("InternalServerError", status=500)


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


# --- Against the server's log ---------------------------------------------------------


def test_throttled_scan_is_whole_and_as_logged(new_lab: NewLab, no_delay: None) -> None:
    lab = new_lab(1000, read_capacity=30, burst_seconds=0.05)  # one page at first
    metrics, items = read_segments(lab, 16, Limit=50)
    assert metrics.complete
    assert metrics.throttled_requests > 0
    assert contents(items) == contents(lab_items(1000))
    assert common.counts_json(metrics) == counts_in(scans_of(lab))
    for segment, of_segment in metrics.segments.items():
        log = [entry for entry in scans_of(lab) if entry["segment"] == segment]
        assert common.counts_json(of_segment) == counts_in(log)


@pytest.mark.usefixtures("no_delay")
def test_every_item_arrives_once_through_faults() -> None:
    seen = campaign(seed=1, fault_rate=0.2)
    assert set(seen) == {"ok", THROTTLED, "500", "reset", "truncated", "bad-crc"}


# --- What is throttled, and what is lost ----------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        refusal("ProvisionedThroughputExceededException"),
        refusal("ThrottlingException"),
        refusal("RequestLimitExceeded"),
        refusal("ThrottlingException", status=503),
        Reply("{}", 429),
    ],
    ids=str,
)
def test_every_kind_of_throttling_is_waited_out(
    canned: Canned, no_delay: None, answer: Reply
) -> None:
    canned.answer(answer, LOST, answer, EMPTY_PAGE)
    metrics, _ = read_pages(canned)
    assert (metrics.throttled_requests, metrics.retried_requests) == (2, 1)
    assert metrics.pages == 1


@pytest.mark.parametrize("code", ["ValidationException", "AccessDeniedException"])
def test_other_errors_are_raised_at_once(canned: Canned, code: str) -> None:
    canned.answer(refusal(code))
    with pytest.raises(ClientError, match=code):
        read_pages(canned)
    assert len(canned.requests) == 1


def test_failed_tls_is_raised_at_once(canned: Canned) -> None:
    secure = common.connect(endpoint_url=canned.endpoint_url.replace("http", "https"))
    metrics = Metrics()
    with pytest.raises(SSLError):
        scan_page(secure, REQUEST, metrics)
    assert metrics.retried_requests == 0


def test_refused_connection_is_tried_eight_times(no_delay: None) -> None:
    nowhere = common.connect(endpoint_url="http://127.0.0.1:1")
    metrics = Metrics()
    with pytest.raises(EndpointConnectionError):
        scan_page(nowhere, REQUEST, metrics)
    assert metrics.retried_requests == 8


def test_eighth_lost_answer_of_a_page_is_the_error(
    canned: Canned, client: Client, no_delay: None
) -> None:
    canned.answer(*[*[LOST] * 7, EMPTY_PAGE] * 2, LOST)
    metrics = Metrics()
    for _ in range(2):
        scan_page(client, REQUEST, metrics)
    assert metrics.retried_requests == 14
    with pytest.raises(ClientError, match="InternalServerError"):
        scan_page(client, REQUEST, metrics)
    assert len(canned.requests) == 8 + 8 + 8


# --- Waiting --------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "times"), [(REFUSED, 20), (LOST, 7)])
def test_delays_grow_to_five_seconds_at_random(
    canned: Canned, client: Client, clock: Clock, answer: Reply, times: int
) -> None:
    canned.answer(*[answer] * times, EMPTY_PAGE)
    scan_page(client, REQUEST, Metrics())
    for number, seconds in enumerate(clock.sleeps):
        assert 0.5 <= seconds / min(5.0, 0.05 * 2**number) <= 1
    assert len(set(clock.sleeps)) == times


def test_waiting_for_a_page_ends_after_half_an_hour(
    canned: Canned, client: Client, clock: Clock
) -> None:
    canned.answer(*[*[REFUSED] * 300, EMPTY_PAGE] * 2, REFUSED)
    for _ in range(2):
        scan_page(client, REQUEST, Metrics())
    waited = clock.now - 1000
    assert waited > 1800  # for two pages
    with pytest.raises(ScanError, match="throttled a page for half an hour") as raised:
        scan_page(client, REQUEST, Metrics())
    assert 1800 < clock.now - 1000 - waited < 1810
    assert "--max-rcu" in raised.value.hint


def test_only_throttling_counts_as_waiting(
    canned: Canned, client: Client, clock: Clock
) -> None:
    canned.answer(REFUSED, LOST, REFUSED, EMPTY_PAGE)
    metrics = Metrics()
    scan_page(client, REQUEST, metrics)
    # Sleeping starts and ends at these times: throttled, lost, throttled.
    times = list(accumulate(clock.sleeps, initial=1000.0))
    assert metrics.waits == [(times[0], times[1]), (times[2], times[3])]
