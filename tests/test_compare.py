"""The comparison: its arithmetic, its words, and how it looks."""

from __future__ import annotations

import importlib
import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from local_dynamodb import HIDDEN, Lab, Settings, serve, settings_for_aws
from running import BUNDLE, environment

import compare
from common import Connection, Scan, ScanMetrics, SegmentMetrics
from compare import Runs, Table, best, cost, notes, side_by_side, verdict
from parallel_scan import timeline

WIDTH = 80


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, and nothing of the user's settings."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings_for_aws("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)


def segment(seconds: float, **more: Any) -> SegmentMetrics:
    return SegmentMetrics(pages=1, seconds=seconds, **more)


def scanned(seconds: float = 1.0, segments: int = 4, **more: Any) -> ScanMetrics:
    """The metrics of a made-up scan of 100 items; 0 segments: a sequential one."""
    made_up: dict[str, Any] = {
        "mode": "parallel" if segments else "sequential",
        "table_name": "T",
        "total_segments": segments or 1,
        "complete": True,
        "items": 100,
        "scanned": 100,
        "items_per_second": 100 / seconds,
        "pages": 4,
        "consumed_rcu": 50.0,
        "seconds": seconds,
        "cpu_seconds": 0.1,
        "segments": [segment(seconds, segment=number) for number in range(segments or 1)],
    }
    return ScanMetrics(**{**made_up, **more})


def results(*seconds: float, **more: Any) -> list[Runs]:
    """One run each way: sequential, then in 2, 4, 8 ... segments; `more` is of the parallel ones."""
    sequential = scanned(seconds[0], 0)
    parallel = [scanned(each, 2**number, **more) for number, each in enumerate(seconds[1:], 1)]
    return [[run] for run in (sequential, *parallel)]


def table(rcu: int | None = 5, size: int = 10**6) -> Table:
    return Table("T", 100, size, rcu, "PROVISIONED" if rcu else "PAY_PER_REQUEST")


# --- Arithmetic, by hand


def test_the_median_run_stands_for_all() -> None:
    runs = [scanned(each) for each in (1.0, 2.0, 5.0)]
    assert compare.typical(runs).seconds == 2.0
    assert compare.typical(runs[:2]).seconds == 1.0
    assert compare.times_as_fast([scanned(0.5)], runs) == 4.0


@pytest.mark.parametrize(
    ("seconds", "segments"),
    [
        ((9.0, 1.04, 1.0, 1.3), 2),
        ((9.0, 1.06, 1.0, 1.3), 4),
        ((9.0, 2.0, 1.04, 1.0), 4),
        ((9.0, 2.0, 1.06, 1.0), 8),
        ((0.1, 1.0, 2.0), 2),  # the sequential scan is not one of them
        ((1.0,), 1),  # unless an interrupt left no other
    ],
)
def test_the_best_has_the_fewest_segments_within_5_percent(
    seconds: tuple[float, ...], segments: int
) -> None:
    assert best(results(*seconds))[0].total_segments == segments


def test_the_best_goes_by_the_medians() -> None:
    lucky = [scanned(each, 2) for each in (0.1, 2.0, 2.1)]
    steady = [scanned(each, 4) for each in (1.0, 1.0, 9.0)]
    assert best([[scanned(3.0, 0)], lucky, steady]) is steady


MIB_8 = 8 * 2**20  # 2,048 units of 4 KB: 1,024 RCU a scan, 2,048 if consistent


def test_the_cost_by_hand() -> None:
    assert cost(table(None, MIB_8), 3, False, None) == (
        "3 scans of the whole table consume about 3,072 RCU, billed by the request."
    )
    assert "2 scans of the whole table consume about 4,096 RCU" in cost(
        table(None, MIB_8), 2, True, None
    )


def test_the_cost_of_a_provisioned_table_is_time() -> None:
    text = cost(table(5, MIB_8), 2, False, None)
    assert text.startswith("2 scans of the whole table consume about 2,048 RCU")
    assert "5 a second" in text
    assert "up to 1,500 that were not used in the last 300 s" in text
    assert "about 410 s" in text  # 2,048 / 5


@pytest.mark.parametrize("rcu", [None, 5])
def test_the_cost_at_a_pace_is_the_paces_time(rcu: int | None) -> None:
    text = cost(table(rcu, MIB_8), 2, False, 100)
    assert text.endswith("about 2,048 RCU: at --max-rcu 100, in 20 s or more.")


# --- The table


def rows_of(text: str) -> dict[str, list[str]]:
    """The table's rows: their cells by their names."""
    lines = text.split("\n---")[1].splitlines()[1:]
    return {line[:20].strip(): re.split(r"\s{2,}", line[20:].strip()) for line in lines}


FIRST_ROWS = ["Total execution time", "Items processed", "Items per second", "Consumed RCU",
              "Times as fast", "Pages", "CPU time"]  # fmt: skip


def test_a_column_a_scan_and_a_row_a_metric() -> None:
    faster = scanned(1.0, 4, consumed_rcu=52.5, pages=6, cpu_seconds=0.25, items=1234, scanned=1234)
    text = side_by_side([[scanned(2.0, 0)], [faster]])
    assert re.match(r" +sequential +4\n +segments\n", text)
    assert rows_of(text) == {
        "Total execution time": ["2.00 s", "1.00 s"],
        "Items processed": ["100", "1,234"],
        "Items per second": ["50", "100"],
        "Consumed RCU": ["50.0", "52.5"],
        "Times as fast": ["1.0", "2.0"],
        "Pages": ["4", "6"],
        "CPU time": ["0.10 s", "0.25 s"],
    }
    assert list(rows_of(text)) == FIRST_ROWS


def test_several_runs_show_their_spread() -> None:
    some = [scanned(each, 0) for each in (1.0, 2.0, 4.0)]
    others = [scanned(each, 4) for each in (0.5, 1.0, 3.0)]
    rows = rows_of(side_by_side([some, others]))
    assert list(rows)[:4] == [FIRST_ROWS[0], "Fastest run", "Slowest run", FIRST_ROWS[1]]
    assert rows["Total execution time"] == ["2.00 s", "1.00 s"]
    assert rows["Fastest run"] == ["1.00 s", "0.50 s"]
    assert rows["Slowest run"] == ["4.00 s", "3.00 s"]
    assert list(rows)[3:] == FIRST_ROWS[1:]


def test_other_rows_come_where_some_scan_has_them() -> None:
    special = scanned(
        1.0, connect_seconds=0.2, scanned=300, throttled_requests=7, retried_requests=2
    )
    rows = rows_of(side_by_side([[scanned(2.0, 0)], [special]]))
    assert list(rows) == [*FIRST_ROWS, "Connecting before", "Items scanned", "Throttled requests",
                          "Retried requests"]  # fmt: skip
    assert rows["Connecting before"] == ["0.20 s"]
    assert rows["Items scanned"] == ["300"]
    assert rows["Throttled requests"] == ["7"]
    assert rows["Retried requests"] == ["2"]
    usual = rows_of(side_by_side([[scanned(2.0, 0)], [scanned(1.0, connect_seconds=0.1)]]))
    assert list(usual) == FIRST_ROWS


def test_a_row_of_one_scan_leaves_the_others_cell_empty() -> None:
    text = side_by_side([[scanned(2.0, 0, throttled_requests=7)], [scanned(1.0)]])
    (line,) = (line for line in text.splitlines() if line.startswith("Throttled"))
    under_sequential = text.splitlines()[0].index("sequential") + len("sequential")
    assert line.rstrip().endswith("7")
    assert len(line.rstrip()) == under_sequential


def test_what_an_engine_does_not_say_is_not_0() -> None:
    rows = rows_of(side_by_side(results(2.0, 1.0, consumed_rcu=None)))
    assert rows["Consumed RCU"] == ["50.0", "n/a"]


LARGE = {
    "items": 49_999_999,
    "scanned": 99_999_999,
    "pages": 49_999_999,
    "items_per_second": 12_345_678.9,
    "consumed_rcu": 999_999.5,
    "cpu_seconds": 35_999.99,
    "connect_seconds": 9_000.0,
    "throttled_requests": 10_000_000,
    "retried_requests": 10_000_000,
}


@pytest.mark.parametrize("runs", [1, 3])
def test_five_scans_fit_80_columns(runs: int) -> None:
    small = [[scanned(1.0, count)] * runs for count in (0, 2, 4, 8, 16)]
    large = [
        [scanned(36_000.0, 0, total_segments=count, **LARGE)] * runs
        for count in (1, 250_000, 500_000, 999_999, 1_000_000)
    ]
    for five in (small, large):
        text = side_by_side(five)
        assert text.split()[0] == "sequential"
        assert len(rows_of(text)["Pages"]) == 5
        assert max(map(len, text.splitlines())) <= WIDTH


# --- What came of it


def test_a_verdict_names_the_tables_capacity_where_throttled_scans_waited() -> None:
    for waits, throttled, is_named in (
        ([(0.1, 0.32)], 1, True),
        ([(0.1, 0.2), (0.5, 0.62)], 1, True),
        ([(0.1, 0.28)], 1, False),
        ([(0.1, 0.32)], 0, False),
    ):
        segments = [segment(1.0, waits=waits), segment(1.0)]
        many = results(2.0, 1.0, segments=segments, throttled_requests=throttled)
        text = verdict(many, None)
        named = text == "The table's capacity set the time, not the way of scanning."
        assert named == is_named, text


def test_a_verdict_names_the_tables_capacity_if_only_the_sequential_scan_waited() -> None:
    many = results(2.0, 1.0)
    many[0][0] = scanned(2.0, 0, throttled_requests=1, segments=[])
    many[0][0].segments = [segment(2.0, waits=[(0.0, 1.0)])]
    assert verdict(many, None).startswith("The table's capacity")


@pytest.mark.parametrize(("max_rcu", "is_named"), [(None, False), (71, True), (72, False)])
def test_a_verdict_names_the_pace_where_it_was_used(max_rcu: int | None, is_named: bool) -> None:
    text = verdict(results(2.0, 1.0), max_rcu)  # 50 RCU in a second
    assert (text == "Your own --max-rcu set the time, not the way of scanning.") == is_named


def test_the_tables_capacity_counts_before_the_pace() -> None:
    waited = [segment(1.0, waits=[(0.0, 0.5)])]
    many = results(2.0, 1.0, segments=waited, throttled_requests=1)
    assert verdict(many, 50).startswith("The table's capacity")


def test_a_verdict_says_what_the_time_went_on() -> None:
    assert verdict(results(2.0, 1.0, cpu_seconds=0.7), None) == (
        "2 segments: 2.0 times as fast. It waited for pages: more segments may help."
    )
    assert verdict(results(2.0, 1.0, cpu_seconds=0.71), None) == (
        "2 segments: 2.0 times as fast. This machine's CPU set the time."
    )


def test_more_segments_may_help_only_beyond_the_most_that_were_tried() -> None:
    assert verdict(results(3.0, 2.0, 1.0), None) == (
        "4 segments: 3.0 times as fast. It waited for pages: more segments may help."
    )
    assert verdict(results(3.0, 1.0, 2.0), None) == (
        "2 segments: 3.0 times as fast. More segments gained nothing."
    )
    assert verdict(results(3.0, 1.0, 1.0, cpu_seconds=0.9), None) == (
        "2 segments: 3.0 times as fast. This machine's CPU set the time. "
        "More segments gained nothing."
    )


def test_a_slower_scan_is_said_to_be_slower() -> None:
    assert verdict(results(1.0, 2.0), None).startswith("2 segments: 0.5 times as fast.")


@pytest.mark.parametrize(
    ("one", "other", "is_different"),
    [
        ([1.0], [1.05], False),
        ([1.0], [1.06], True),
        ([1.06], [1.0], True),
        ([1.0, 1.1, 1.2], [1.25, 1.4, 1.5], False),  # they touch, within 5 %
        ([1.0, 1.1, 1.2], [1.27, 1.4, 1.5], True),
        ([1.0, 1.1, 3.0], [2.0, 2.5, 2.6], False),
    ],
)
def test_a_difference_is_claimed_only_where_all_runs_show_it(
    one: list[float], other: list[float], is_different: bool
) -> None:
    text = verdict([[scanned(each, 0) for each in one], [scanned(each) for each in other]], None)
    assert (text == "4 segments: no measurable difference.") != is_different
    assert (" times as fast." in text) == is_different


def test_a_table_of_one_page_has_little_to_gain() -> None:
    small = results(0.2, 0.15)
    small[0][0].pages = 1
    text = verdict(small, None)
    assert text.startswith("The whole table fits in one page, which one request reads")
    assert "(here 0.05 s)" in text


@pytest.mark.parametrize("number", [0, 1])
def test_an_interrupted_comparison_draws_no_conclusion(number: int) -> None:
    cut = results(2.0, 1.0, throttled_requests=1)
    cut[number].append(scanned(0.1, complete=False))
    assert verdict(cut, 1) == "Interrupted: this is what was measured until then."


# --- Notes

DIFFERENT = "The scans found different items"
THROTTLED = "--max-rcu reads within the capacity"
LESS_RCU = "step 1 of the lab restores it"
ROUNDED = "rounded up to 4 KB"
ONE_PAGE = "A larger table has more to split"


def noted(rcu: int | None = 5, **more: Any) -> list[str]:
    return notes(table(rcu), results(2.0, 1.0, **more))


def test_nothing_special_needs_no_note() -> None:
    assert noted() == []
    assert noted(rcu=None) == []
    assert noted(rcu=9000) == []
    assert noted(consumed_rcu=None) == []


def test_notes_of_different_items() -> None:
    for more in ({"items": 101}, {"scanned": 101}):
        (note,) = noted(**more)
        assert note.startswith(DIFFERENT)
    assert noted(items=99, complete=False) == []


def test_a_note_of_any_throttled_run() -> None:
    many = results(2.0, 1.0)
    many[1].append(scanned(3.0, throttled_requests=1))
    (note,) = notes(table(), many)
    assert THROTTLED in note


def test_a_note_of_a_table_with_less_capacity_than_the_labs() -> None:
    (note,) = noted(rcu=4)
    assert note.startswith("The table has 4 RCU, the lab's has 5")
    assert LESS_RCU in note


def test_a_note_of_rounded_pages() -> None:
    (note,) = noted(consumed_rcu=51.0, pages=6)
    assert note.startswith("2% more RCU: each of the 6 pages")
    assert ROUNDED in note
    assert noted(consumed_rcu=50.5) == []


def test_a_note_of_a_small_table() -> None:
    small = results(2.0, 1.0)
    small[0][0].pages = 1
    (note,) = notes(table(), small)
    assert note.startswith(ONE_PAGE)
    assert noted(pages=1) == []


def test_of_all_notes_three_sentences_are_left_without_a_command() -> None:
    worst = results(2.0, 1.0, items=101, throttled_requests=1, consumed_rcu=60.0)
    worst[0][0].pages = 1
    given = notes(table(1), worst)
    for note, words in zip(given, (DIFFERENT, THROTTLED, LESS_RCU)):
        assert words in note
    assert len(given) == 3
    worst[1][0].items = 100
    given += notes(table(5), worst)
    assert len(given) == 6
    assert not re.search(r"python|\.py|\./|aws ", " ".join(given))


# --- The timeline


def bars_of(text: str) -> dict[str, str]:
    """The bars by their names, without axis and legend."""
    lines = [line.split("|") for line in text.splitlines() if "|" in line]
    return {name.strip(): bar for name, bar in lines}


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_timeline_is_to_scale(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    waiting = segment(0.5, segment=1, started=0.5, waits=[(0.5, 0.75)])
    one = scanned(2.0, 0)
    text = timeline([one, scanned(1.0, segments=[segment(1.0), waiting])])
    bars = bars_of(text)
    full = len(bars["sequential"])
    assert list(bars) == ["sequential", "segment 0", "segment 1"]
    assert max(map(len, text.splitlines())) <= columns
    assert full > columns * 0.6
    assert bars["sequential"] == "█" * full
    assert bars["segment 0"] == "█" * round(full / 2)
    assert bars["segment 1"].startswith(" " * (full // 4) + "░")
    assert abs(len(bars["segment 1"]) - full / 2) <= 1
    assert abs(bars["segment 1"].count("░") - full / 8) <= 1
    assert abs(bars["segment 1"].count("█") - full / 8) <= 1


def test_a_timeline_has_an_axis_and_a_legend() -> None:
    axis, legend = timeline([scanned(2.0, 0)]).splitlines()[-2:]
    assert axis.split() == ["0", "s", "2.00", "s"]
    assert abs(len(axis) - WIDTH) <= 2
    assert legend == "█ reading  ░ waiting"


def test_a_short_segment_can_be_seen_and_an_unread_one_not() -> None:
    scan = scanned(9.0, segments=[segment(9.0), segment(0.001, segment=1), SegmentMetrics(segment=2)])
    bars = bars_of(timeline([scan]))
    assert bars["segment 1"] == "█"
    assert bars["segment 2"] == ""


@pytest.mark.parametrize("columns", [40, 80])
def test_of_many_segments_the_20_that_ended_last_are_drawn(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    segments = [segment(1.0, segment=number, started=5 - number / 9) for number in range(30)]
    text = timeline([scanned(10.0, segments=segments)])
    assert list(bars_of(text)) == [f"segment {number}" for number in range(20)]
    assert "20 of 30 segments" in text
    assert max(map(len, text.splitlines())) <= columns


def test_20_bars_are_all_there_are_with_the_sequential_scans() -> None:
    both = bars_of(timeline([scanned(0.1, 0), scanned(1.0, 30)]))
    assert len(both) == 20
    assert len(bars_of(timeline([scanned(1.0, 0), scanned(1.0, 19)]))) == 20


# --- As a whole


class Printed(NamedTuple):
    status: int
    out: str
    err: str


Compare = Any


@pytest.fixture
def run_compare(capfd: pytest.CaptureFixture[str]) -> Compare:
    """Runs compare.py in this process."""

    def call(*flags: str) -> Printed:
        status = compare.main(list(flags))
        return Printed(status, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with serve(Settings(items=2000, latency_ms=1, ms_per_mb=0, read_capacity=0)) as served:
        yield served


class Fakes:
    """Scans that take no time, and what was asked of them."""

    def __init__(self) -> None:
        self.ways: list[int] = []  # 0 is sequential
        self.times: list[float] = []  # what the next scans take; then all take a second
        self.workers: set[int] = set()
        self.cut_at = 0  # the ordinal of the scan that is interrupted

    def scan(self, segments: int) -> ScanMetrics:
        self.ways.append(segments)
        seconds = self.times.pop(0) if self.times else 1.0
        return scanned(seconds, segments, complete=len(self.ways) != self.cut_at)

    def parallel(self, scan: Scan, segments: int, workers: int) -> ScanMetrics:
        self.workers.add(workers)
        return self.scan(segments)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made_up = Fakes()
    monkeypatch.setattr(compare, "described", lambda scan: table())
    monkeypatch.setattr(compare, "sequential_scan", lambda scan: made_up.scan(0))
    monkeypatch.setattr(compare, "parallel_scan", made_up.parallel)
    return made_up


@pytest.mark.parametrize("given", ["2 4 8", "2,4,8", "8,2 4", "4 2,4 8 2"])
def test_counts_of_segments_come_in_any_form_and_each_once(
    run_compare: Compare, fakes: Fakes, given: str
) -> None:
    ended = run_compare("--total-segments", *given.split(), "--output", "json")
    assert fakes.ways == [0, 2, 4, 8]
    shown = [each["total_segments"] for each in json.loads(ended.out)["results"]]
    assert shown == [1, 2, 4, 8]
    assert ended.err.startswith("4 scans of the whole table")


def test_one_comparison_is_a_scan_in_4_segments(run_compare: Compare, fakes: Fakes) -> None:
    run_compare()
    assert fakes.ways == [0, 4]
    assert fakes.workers == {64}
    run_compare("--workers", "3")
    assert fakes.workers == {64, 3}


def test_rounds_go_forth_and_back(run_compare: Compare, fakes: Fakes) -> None:
    ended = run_compare("--total-segments", "2", "4", "--runs", "3")
    assert fakes.ways == [0, 2, 4, 4, 2, 0, 0, 2, 4]
    assert ended.err.startswith("9 scans of the whole table")


def test_json_has_every_run_and_the_median(run_compare: Compare, fakes: Fakes) -> None:
    fakes.times = [2.0, 0.5, 1.5, 4.0, 3.0, 1.0]  # sequential: 2, 4, 3; parallel: 0.5, 1.5, 1
    ended = run_compare("--runs", "3", "--output", "json")
    answer = json.loads(ended.out)
    assert answer["table"] == {"name": "T", "item_count": 100, "size_bytes": 10**6,
                               "read_capacity": 5, "billing_mode": "PROVISIONED"}  # fmt: skip
    sequential, parallel = answer["results"]
    assert sequential["mode"] == "sequential"
    assert sequential["seconds"] == 3.0
    assert sorted(sequential["runs"]) == [2.0, 3.0, 4.0]
    assert sequential["speedup"] == 1.0
    assert parallel["mode"] == "parallel"
    assert parallel["seconds"] == 1.0
    assert sorted(parallel["runs"]) == [0.5, 1.0, 1.5]
    assert parallel["speedup"] == 3.0
    assert len(parallel["segments"]) == 4
    assert answer["warnings"] == []
    assert answer["verdict"].startswith("4 segments: 3.0 times as fast.")


@pytest.mark.parametrize(("cut_at", "runs"), [(1, [1]), (2, [1, 1]), (4, [2, 2]), (5, [3, 2])])
def test_an_interrupt_shows_what_was_measured(
    run_compare: Compare, fakes: Fakes, cut_at: int, runs: list[int]
) -> None:
    fakes.cut_at = cut_at
    ended = run_compare("--runs", "3")
    assert ended.status == 130
    assert "Interrupted: this is what was measured until then." in ended.out
    assert len(fakes.ways) == cut_at
    fakes.ways.clear()
    ended = run_compare("--runs", "3", "--output", "json")
    answer = json.loads(ended.out)
    assert ended.status == 130
    assert [len(each["runs"]) for each in answer["results"]] == runs
    assert answer["verdict"].startswith("Interrupted")


def test_real_scans_go_forth_and_back(run_compare: Compare, lab: Lab) -> None:
    before = len(lab.requests)
    ended = run_compare("--endpoint-url", lab.endpoint_url, "--total-segments", "2", "3", "--runs", "2")
    scans = [line["segment"] for line in lab.requests[before:] if line["operation"] == "Scan"]
    assert ended.status == 0
    assert scans[0] is None
    assert sorted(scans[1:3]) == [0, 1]
    assert sorted(scans[3:6]) == [0, 1, 2]
    assert sorted(scans[6:9]) == [0, 1, 2]
    assert sorted(scans[9:11]) == [0, 1]
    assert scans[11:] == [None]


def test_json_is_the_servers_own_account(run_compare: Compare, lab: Lab) -> None:
    before = len(lab.requests)
    ended = run_compare("--endpoint-url", lab.endpoint_url, "--output", "json")
    answer = json.loads(ended.out)
    sequential, parallel = answer["results"]
    log = [line for line in lab.requests[before:] if line["operation"] == "Scan"]
    assert answer["table"]["name"] == "GameLeaderboard"
    assert answer["table"]["item_count"] == 2000
    assert answer["table"]["size_bytes"] == lab.table.sizes[-1]
    assert answer["table"]["read_capacity"] is None
    assert answer["table"]["billing_mode"] == "PAY_PER_REQUEST"
    for each, is_parallel in ((sequential, False), (parallel, True)):
        lines = [line for line in log if (line["segment"] is not None) == is_parallel]
        assert each["items"] == sum(line["items"] for line in lines) == 2000
        assert each["consumed_rcu"] == sum(line["rcu"] for line in lines)
        assert each["pages"] == len(lines)
        assert each["runs"] == [each["seconds"]]
        assert each["complete"] is True
    assert parallel["speedup"] == pytest.approx(sequential["seconds"] / parallel["seconds"])


def test_a_provisioned_table_is_described_as_one() -> None:
    with serve(Settings(items=100, read_capacity=7)) as small:
        scan = Scan(Connection(endpoint_url=small.endpoint_url), {"TableName": "GameLeaderboard"})
        described = compare.described(scan)
    assert described.read_capacity == 7
    assert described.billing_mode == "PROVISIONED"


def test_the_result_is_on_standard_output_and_the_cost_is_not(
    run_compare: Compare, lab: Lab
) -> None:
    flags = ("--total-segments", "2", "4", "8", "16", "--runs", "2", "--page-size", "500")
    ended = run_compare("--endpoint-url", lab.endpoint_url, *flags)
    paragraphs = ended.out.split("\n\n")
    assert ended.status == 0
    assert paragraphs[0].startswith("GameLeaderboard: about 2,000 items, 0.4 MB; read capacity: on")
    assert list(rows_of(paragraphs[1]))[0] == "Total execution time"
    assert re.match(r"(2|4|8|16) segments: ", paragraphs[2])
    assert "sequential |█" in paragraphs[3]
    assert ROUNDED in paragraphs[4]
    assert ended.err == (
        "10 scans of the whole table consume about 497 RCU, billed by the request.\n"
    )
    assert max(map(len, ended.out.splitlines())) <= WIDTH
    assert "\x1b" not in ended.out


def test_all_that_a_throttled_comparison_says_fits_80_columns(run_compare: Compare) -> None:
    settings = Settings(items=2000, latency_ms=0, ms_per_mb=0, read_capacity=40, burst_seconds=1)
    with serve(settings) as spent:
        ended = run_compare("--endpoint-url", spent.endpoint_url)
    assert max(map(len, (ended.out + ended.err).splitlines())) <= WIDTH
    assert "The table's capacity set the time" in ended.out
    assert "░" in ended.out
    assert THROTTLED in " ".join(ended.out.split())
    assert ended.err.startswith("2 scans of the whole table consume about 99 RCU.")


# --- On a terminal


def on_a_terminal(endpoint_url: str, *command: str) -> str:
    """What a command writes to standard error, that being a terminal 80 columns wide."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=BUNDLE,
        env=environment(endpoint_url, COLUMNS="80"),
        stdout=subprocess.DEVNULL,
        stderr=follower,
    ) as process:
        os.close(follower)
        seen = b""
        while select.select([leader], [], [], 60)[0]:
            try:
                seen += os.read(leader, 4096)
            except OSError:  # Linux says so when the last writer is gone
                break
        os.close(leader)
    assert process.returncode == 0
    return seen.decode()


def test_a_live_line_shows_on_a_terminal_and_is_gone_at_the_end() -> None:
    settings = Settings(items=2000, latency_ms=1, ms_per_mb=0, read_capacity=40, burst_seconds=1)
    with serve(settings) as slow:
        seen = on_a_terminal(slow.endpoint_url, "sequential_scan.py", "--page-size", "300")
    lines = seen.split("\r\x1b[K")
    assert lines[0] == ""
    assert lines[1] == "300 items, 7.5 RCU, 0 requests throttled"
    assert re.fullmatch(r"2,000 items, 5\d\.\d RCU, [1-9]\d* requests throttled", lines[-2])
    assert lines[-1] == ""
    assert max(map(len, lines)) < WIDTH


@pytest.mark.parametrize("script", ["sequential_scan", "parallel_scan", "compare"])
def test_help_fits_80_columns_and_has_its_groups_in_order(
    capfd: pytest.CaptureFixture[str], script: str
) -> None:
    with pytest.raises(SystemExit) as left:
        importlib.import_module(script).main(["--help"])
    text = capfd.readouterr().out
    groups = re.findall("^([a-z ]+):$", text, re.MULTILINE)
    assert left.value.code == 0
    assert max(map(len, text.splitlines())) <= WIDTH
    assert groups[-4:] == ["what to read", "capacity", "connection", "output"]
    assert ("the lab" in groups) == (script != "sequential_scan")
    assert groups.index("what to read") == len(groups) - 4
    assert f"example: python {script}.py" in text
