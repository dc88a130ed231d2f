"""Faults on the way: every item comes once, and all requests are accounted for; or an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from campaign import campaign
from canned import Answer, Canned, refusal
from engines import Engine
from items import assert_as_logged, instant, is_whole, outcomes, scans_of
from local_dynamodb import FAULTS, Lab, serve
from running import Ended

import common
from common import Json, Pace, Scan, ScanError, ScanMetrics, json_lines
from parallel_scan import parallel_scan
from sequential_scan import sequential_scan

ITEMS = 200  # ten pages of them
WAYS = ["sequential_scan", "parallel_scan"]
FAILURES = (ScanError, BotoCoreError, ClientError)
ERRORS = {  # for a fault that meets every attempt
    "500": "InternalServerError.*Internal server error",
    "reset": "Connection",
    "truncated": "crc32|IncompleteRead",
    "bad-crc": "crc32",
    "hang": "Read timeout",
}
PAGE = """{"Items": [{"a": {"S": "player_1"}}], "Count": 1, "ScannedCount": 1,
          "LastEvaluatedKey": {"a": {"S": "player_1"}}}"""
REFUSALS = [  # what may come after five pages, the error, and its hint
    (refusal("ExpiredTokenException", "it is expired"), "(ExpiredTokenException)", "renew"),
    (refusal("ResourceNotFoundException"), "(ResourceNotFoundException)", "is it there"),
    ((200, b"<html>Bad gateway</html>"), "does not answer as DynamoDB does", "network"),
    ((502, b"<html>Bad gateway</html>"), "(502)", "network"),
]


def scan_of(lab: Lab) -> Scan:
    return Engine(lab.endpoint_url).scan(json_lines, Limit=20)


def run_scan(way: str, scan: Scan, lines: list[bytes]) -> ScanMetrics:
    if way == "sequential_scan":
        return sequential_scan(scan, lines.append)
    return parallel_scan(scan, 4, 4, collect=lines.append)


def test_a_campaign_loses_nothing_and_counts_everything() -> None:
    total = campaign(seeds=3, fault_rate=0.2)
    assert total.differences == []
    assert total.lost == total.twice == 0
    assert total.items == total.scans * 500 == 15 * 500
    assert min(total.faults.values()) > 5


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_the_first_page_and_at_the_last(fault: str) -> None:
    lines: list[bytes] = []
    struck = {0, 10}  # with the first one, there are eleven requests for ten pages
    with serve(instant(190, script=lambda n, _: fault if n in struck else None)) as lab:
        metrics = sequential_scan(scan_of(lab), lines.append)
    assert is_whole(b"".join(lines), 190)
    assert outcomes(lab) == {"ok": 10, scans_of(lab)[0]["outcome"]: 2}
    assert_as_logged(dataclasses.asdict(metrics), scans_of(lab))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_every_segment_at_once(fault: str) -> None:
    struck: set[int] = set()
    lines: list[bytes] = []

    def first_of_each(_: int, params: Json) -> str | None:
        is_first = params["Segment"] not in struck
        struck.add(params["Segment"])
        return fault if is_first else None

    with serve(instant(ITEMS, script=first_of_each)) as lab:
        metrics = run_scan("parallel_scan", scan_of(lab), lines)
    assert is_whole(b"".join(lines), ITEMS)
    faults = [each.throttled_requests + each.retried_requests for each in metrics.segments]
    assert faults == [1, 1, 1, 1]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(("faults", "comes"), [(7, True), (8, False)])
def test_a_page_is_asked_for_eight_times(faults: int, comes: bool) -> None:
    with serve(instant(10, script=lambda n, _: "500" if n < faults else None)) as lab:
        if comes:
            assert sequential_scan(scan_of(lab)).retried_requests == 7
        else:
            with pytest.raises(ClientError, match="InternalServerError"):
                sequential_scan(scan_of(lab))
    assert len(scans_of(lab)) == 8


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", ERRORS)
@pytest.mark.usefixtures("hurried", "anew")
def test_what_does_not_pass_ends_in_an_error_not_in_a_shorter_table(
    monkeypatch: pytest.MonkeyPatch, fault: str, way: str
) -> None:
    def impatient(**options: Any) -> Config:
        assert options["read_timeout"] <= 10
        return Config(**{**options, "read_timeout": 0.1 if fault == "hang" else 10})

    monkeypatch.setattr(common, "Config", impatient)
    from_sixth_page = instant(ITEMS, script=lambda n, _: fault if n >= 5 else None)
    with serve(from_sixth_page) as lab, pytest.raises(FAILURES, match=ERRORS[fault]) as raised:
        run_scan(way, scan_of(lab), [])
    assert "player_" not in str(raised.value)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("refused", "error", "hint"), REFUSALS)
@pytest.mark.usefixtures("anew")
def test_errors_are_one_line_and_a_hint_and_no_secret(
    canned: Canned,
    invoke: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    *,
    way: str,
    refused: Answer,
    error: str,
    hint: str,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "AKEYNOBODYSEES")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "ATOKENNOBODYSEES")
    ended = invoke(way, "--save", "-", at=canned.answer(*[PAGE] * 5, refused))
    errors, hints = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert errors.startswith("error: ")
    assert error in errors
    assert hints.startswith("hint: ")
    assert hint in hints
    assert "NOBODYSEES" not in ended.stdout + ended.stderr
    assert "player_" not in ended.stderr


@pytest.mark.usefixtures("hurried")
def test_a_scan_that_failed_may_be_run_again() -> None:
    faults = iter(["500"] * 8)
    lines: list[bytes] = []
    with serve(instant(ITEMS, script=lambda n, _: next(faults, None))) as lab:
        scan = dataclasses.replace(scan_of(lab), pace=Pace(1000))
        with pytest.raises(ClientError):
            run_scan("sequential_scan", scan, [])
        metrics = run_scan("parallel_scan", scan, lines)
    assert metrics.complete
    assert is_whole(b"".join(lines), ITEMS)
