"""Throttled requests and lost answers: a page is asked for again, and counted once.

`campaign.py` has longer campaigns than the one here.
"""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, SSLError
from campaign import campaign
from canned import EMPTY_PAGE, Canned, Reply, refusal
from items import (
    REQUEST,
    THROTTLED,
    read_pages,
)

import common
from common import Client, Metrics, ScanError, scan_page

REFUSED: Any = refusal(THROTTLED)
LOST: Any = refusal("InternalServerError", status=500)


class Clock:
    """Time that passes only in sleep()."""

    def __init__(self) -> None:
        self.now = 0.0
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


@pytest.mark.usefixtures("no_delay")
def test_every_item_arrives_once_through_faults() -> None:
    seen = campaign(seed=1, fault_rate=0.2)
    assert set(seen) == {"ok", THROTTLED, "500", "reset", "truncated", "bad-crc"}


# --- What is throttled, and what is lost ----------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
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


def test_other_errors_are_raised_at_once(canned: Canned) -> None:
    canned.answer(refusal("ValidationException"))
    with pytest.raises(ClientError, match="ValidationException"):
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
    canned.answer(*[LOST] * 7, EMPTY_PAGE, LOST)
    metrics = Metrics()
    scan_page(client, REQUEST, metrics)
    assert metrics.retried_requests == 7
    with pytest.raises(ClientError, match="InternalServerError"):
        scan_page(client, REQUEST, metrics)
    assert len(canned.requests) == 8 + 8


# --- Waiting --------------------------------------------------------------------------


def test_delays_grow_to_five_seconds_at_random(
    canned: Canned, client: Client, clock: Clock
) -> None:
    canned.answer(REFUSED, LOST, *[REFUSED] * 10, EMPTY_PAGE)
    metrics = Metrics()
    scan_page(client, REQUEST, metrics)
    for number, seconds in enumerate(clock.sleeps):
        assert 0.5 <= seconds / min(5.0, 0.05 * 2**number) <= 1
    assert len(set(clock.sleeps)) == 12
    # The second one was no wait for capacity.
    waits = [ended - started for started, ended in metrics.waits]
    assert waits == pytest.approx([clock.sleeps[0], *clock.sleeps[2:]])


def test_waiting_for_a_page_ends_after_half_an_hour(
    canned: Canned, client: Client, clock: Clock
) -> None:
    # Each page has half an hour of its own: the first one takes more than 1,000 s.
    canned.answer(*[REFUSED] * 300, EMPTY_PAGE, REFUSED)
    scan_page(client, REQUEST, Metrics())
    waited = clock.now
    assert waited > 1000
    with pytest.raises(ScanError, match="throttled a page for half an hour") as raised:
        scan_page(client, REQUEST, Metrics())
    assert 1800 < clock.now - waited < 1810
    assert "--max-rcu" in raised.value.hint
