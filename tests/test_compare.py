"""The comparison: what it claims and what it must not, its numbers, and its look.

First come conclusions from made-up metrics. Then compare.py runs on servers that do
what tables do on bad days.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from signal import SIGINT
from typing import Any

import pytest
from canned import Canned, Reply
from conftest import Invoke
from engines import Engine
from items import assert_as_logged, instant, scans_of
from local_dynamodb import Lab, lab_environment, serve
from running import BUNDLE, Ended, run

import compare
from common import Metrics
from compare import Comparison, Table, Way, conclusion, cost_text, speedup
from parallel_scan import timeline

MADE_UP = Metrics(items=100, scanned=100, pages=8, consumed_rcu=50.0, complete=True)


def sequential(*seconds: float, **more: Any) -> Way:
    """A sequential scan that was run so often, and took so long."""
    return Way(None, [replace(MADE_UP, seconds=each, **more) for each in seconds])


def parallel(segments: int, *seconds: float, **more: Any) -> Way:
    return Way(segments, [replace(MADE_UP, seconds=each, **more) for each in seconds])


def said_of(*ways: Way, plain: bool = False) -> str:
    """The conclusion from a sequential scan and parallel ones."""
    return " ".join(conclusion(Comparison(ways[0], list(ways[1:])), plain))


# --- Different items


def test_runs_of_one_way_may_differ() -> None:
    changed = parallel(4, 1.0, 1.0)
    changed.runs[1].items = changed.runs[1].scanned = 99
    said = said_of(sequential(5.0, 5.0), changed)
    assert "from 99 to 100. No speeds are compared." in said
    assert "times as fast" not in said


def test_where_a_filter_hides_the_difference_the_scanned_items_tell() -> None:
    filtered = parallel(4, 1.0, items=10, scanned=103)
    assert "from 100 to 103." in said_of(sequential(9.0, items=10), filtered)


def test_where_as_many_were_scanned_the_items_tell() -> None:
    other = parallel(4, 1.0, items=12)
    assert "from 10 to 12." in said_of(sequential(9.0, items=10), other)


def test_one_more_item_does_not_blame_the_endpoint() -> None:
    one_more = parallel(4, 1.0, items=101, scanned=101)
    said = said_of(sequential(1.0), parallel(2, 1.0), one_more)
    assert "written to" in said
    assert "exactly" not in said


# --- Speed


@pytest.mark.parametrize(
    ("segments", "seconds", "words"),
    [
        (4, 0.5, "The scan in 4 segments was 4.0 times as fast."),
        (4, 1.5, "1.3 times as fast."),
        (4, 1.7, "was not clearly faster."),  # 2.0 / 1.7 is less than 1.25
        (4, 2.3, "was not clearly faster."),
        (4, 2.6, "was slower: it took 1.3 times as long."),
        (4, 20.0, "was slower: it took 10.0 times as long."),
        (1, 1.7, "The scan in 1 segment was not clearly faster."),
    ],
)
def test_a_single_run_has_to_differ_by_a_quarter(
    segments: int, seconds: float, words: str
) -> None:
    said = said_of(sequential(2.0), parallel(segments, seconds))
    assert words in said
    assert ("One run cannot show" in said) == ("not clearly" in words)
    assert ("--runs" in said) == ("not clearly" in words)


@pytest.mark.parametrize("seconds", [0.010, 0.020])
def test_a_short_scan_is_not_faster_by_chance(seconds: float) -> None:
    assert speedup(parallel(1, seconds), sequential(0.014)) is None


@pytest.mark.parametrize(
    ("before", "after", "ratio"),
    [
        ([4.0, 4.2, 4.4], [1.0, 2.0, 3.0], 2.1),
        ([1.0, 2.0, 3.0], [4.0, 4.0, 4.2], 0.5),
        ([2.2, 2.2, 2.2], [1.9, 1.9, 1.9], 2.2 / 1.9),  # more than a tenth
        ([2.2, 2.2, 2.2], [2.1, 2.1, 2.1], None),  # less than a tenth
        ([4.0, 4.2, 4.4], [1.0, 1.0, 4.1], None),  # 4.1 is slower than 4.0
        ([1.0, 1.0, 4.1], [4.0, 4.2, 4.4], None),
    ],
)
def test_every_run_has_to_be_faster(
    before: list[float], after: list[float], ratio: float | None
) -> None:
    assert speedup(parallel(4, *after), sequential(*before)) == ratio
    assert "--runs" not in said_of(sequential(*before), parallel(4, *after))


def test_of_two_runs_the_faster_stands_for_both() -> None:
    assert parallel(2, 3.0, 1.0).median.seconds == 1.0


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ([1.04, 1.0, 1.3], 2),
        ([1.06, 1.0, 1.3], 4),
        ([2.0, 1.04, 1.0], 4),
        ([4.0, 2.0, 1.0], 8),
    ],
)
def test_the_best_has_the_fewest_segments_within_5_percent(
    seconds: list[float], best: int
) -> None:
    series = [parallel(count, each) for count, each in zip((2, 4, 8), seconds)]
    assert f"The scan in {best} segments was" in said_of(sequential(9.0), *series)


@pytest.mark.parametrize(("before", "after"), [(1, 20), (4, 4)])
def test_a_table_of_more_pages_is_not_one_page(before: int, after: int) -> None:
    said = said_of(sequential(0.2, pages=before), parallel(4, 0.05, pages=after))
    assert "one page" not in said


# --- Causes


@pytest.mark.parametrize(
    ("plain", "cpu_seconds", "busy", "gil"),
    [
        (True, 0.95, True, True),
        (True, 1.1, True, True),
        (True, 0.5, False, False),  # it waited for the server
        (True, 1.9, True, False),  # two threads ran side by side: no GIL
        (False, 0.95, True, False),
        (False, 0.65, False, False),
    ],
)
def test_the_cpu_is_a_cause_only_where_it_was_busy(
    plain: bool, cpu_seconds: float, busy: bool, gil: bool
) -> None:
    scanned = parallel(4, 1.0, cpu_seconds=cpu_seconds)
    said = said_of(sequential(1.1), scanned, plain=plain)
    assert ("machine's CPU" in said) == busy
    assert ("GIL" in said) == gil


@pytest.mark.parametrize(("seconds", "gil"), [(1.4, True), (4.0, False)])
def test_the_gil_is_a_cause_only_where_threads_gained_little(
    seconds: float, gil: bool
) -> None:
    said = said_of(sequential(seconds), parallel(4, 1.0, cpu_seconds=0.95), plain=True)
    assert ("GIL" in said) == gil


@pytest.mark.parametrize(
    "seconds",
    [
        [1.0, 1.0, 1.0, 1.9],  # not twice as long as any other
        [0.1, 0.1, 0.1, 1.4],  # not half of the time
        [3.0],  # there is no other one
    ],
)
def test_segments_much_alike_are_not_named(seconds: list[float]) -> None:
    segments = {number: Metrics(seconds=each) for number, each in enumerate(seconds)}
    said = said_of(sequential(9.0), parallel(len(seconds), 3.0, segments=segments))
    assert "alone" not in said


@pytest.mark.parametrize(
    ("series", "advice"),
    [
        ({2: 4.0, 4: 2.0, 8: 1.0}, "2.0 times as fast: try more segments"),
        ({2: 4.0, 4: 2.0, 8: 1.3}, "try more segments"),  # half of the gain is enough
        ({2: 4.0, 4: 2.0, 8: 1.5}, ""),
        ({2: 4.0, 4: 2.0, 8: 8.0}, "More than 4 segments gained nothing"),
        ({1: 2.0, 4: 2.0}, "More than 1 segment gained nothing"),
        ({4: 1.0, 16: 1.0}, "gained nothing"),
        ({1: 1.0}, ""),
        ({16: 0.25}, ""),
        ({4: 80.0}, ""),
    ],
)
def test_more_segments_are_advised_only_if_the_last_step_gained(
    series: dict[int, float], advice: str
) -> None:
    ways = [parallel(count, seconds) for count, seconds in series.items()]
    said = said_of(sequential(8.0), *ways)
    assert advice in said
    assert ("try more segments" in said) == ("try more segments" in advice)
    assert ("gained nothing" in said) == ("gained nothing" in advice)


def test_a_step_within_the_noise_is_no_gain() -> None:
    unsteady = parallel(4, 0.5, 1.0, 3.0), parallel(5, 0.4, 0.8, 2.0)
    assert "try more" not in said_of(sequential(9.0, 9.0, 9.0), *unsteady)


def test_a_throttled_scan_has_no_other_cause() -> None:
    throttled = parallel(4, 1.0, throttled_requests=1, cpu_seconds=1.0)
    said = said_of(sequential(4.0), parallel(2, 2.0), throttled)
    assert "The scan in 4 segments was throttled once." in said
    assert "CPU" not in said
    assert "try more" not in said


# --- Cost


@pytest.mark.parametrize(
    ("before", "after", "pages", "words"),
    [
        (50.0, 51.0, 4, "consumed 1.0 RCU more than the sequential scan: the cost of"),
        (50.0, 52.0, 4, "rounded up"),  # half an RCU a page
        (50.0, 52.5, 4, "2.5 RCU more than the sequential scan."),
        (100.0, 800.0, 128, "700.0 RCU more than the sequential scan."),
    ],
)
def test_more_capacity_is_rounding_only_up_to_half_an_rcu_a_page(
    before: float, after: float, pages: int, words: str
) -> None:
    more = parallel(4, 1.0, consumed_rcu=after, pages=pages)
    assert words in said_of(sequential(4.0, consumed_rcu=before), more)


@pytest.mark.parametrize(
    ("before", "after"), [(50.0, 50.0), (50.0, 49.0), (None, 51.0), (0.5, None)]
)
def test_no_more_capacity_is_claimed_than_was_measured(
    before: float | None, after: float | None
) -> None:
    other = parallel(4, 1.0, consumed_rcu=after)
    assert "RCU" not in said_of(sequential(4.0, consumed_rcu=before), other)


def test_the_most_important_comes_first() -> None:
    hot = parallel(4, 1.0, throttled_requests=2, consumed_rcu=99.0)
    said = said_of(sequential(4.0), hot)
    order = ["was throttled", "4.0 times as fast", "49.0 RCU more"]
    assert sorted(order, key=said.index) == order


# 8 MiB are 2,048 units of 4 KB. So a scan costs 1,024 RCU, or 2,048 if consistent.
def test_the_cost_of_a_provisioned_table_promises_no_time() -> None:
    words = cost_text(Table("T", 100, 8 * 2**20, 5), 2, consistent=False)
    assert "2 scans of this table consume about 2,048 RCU." in words
    assert "The table has 5 RCU a second. Up to 1,500 RCU" in words  # of five minutes
    assert "How many are left is not known." in words
    assert words.endswith("With none left, the scans take about 410 s.")  # 2,048 / 5


def test_the_cost_of_an_on_demand_table_has_no_time() -> None:
    words = cost_text(Table("T", 100, 8 * 2**20, None), 3, consistent=True)
    assert "3 scans of this table consume about 6,144 RCU." in words
    assert words.endswith("each request is billed.")


# --- The metrics side by side


def cells_of(text: str, name: str) -> list[str]:
    """The cells of one row, without the empty ones."""
    (row,) = [line for line in text.splitlines() if line.startswith(name)]
    return re.split(" {2,}", row)[1:]


def widest(text: str) -> int:
    return max(len(line) for line in text.splitlines())


def test_a_column_is_a_scan_and_a_row_a_metric() -> None:
    other = parallel(2, 1.9, 1.5, 3.0, consumed_rcu=None, cpu_seconds=0.25)
    slower = parallel(4, 4.0, throttled_requests=7, retried_requests=2)
    comparison = Comparison(sequential(2.0), [other, slower])
    text = compare.side_by_side(comparison)
    assert re.match(r" +sequential +2 +4\n +segments +segments\n", text)
    assert cells_of(text, "Total execution time") == ["2.00 s", "1.90 s", "4.00 s"]
    assert cells_of(text, "Fastest run") == ["1.50 s"]
    assert cells_of(text, "Slowest run") == ["3.00 s"]
    assert cells_of(text, "Times as fast") == ["1.0", "0.50"]  # of 2, nothing is known
    assert cells_of(text, "Items processed") == ["100", "100", "100"]
    assert cells_of(text, "Items per second") == ["50", "53", "25"]
    assert cells_of(text, "Consumed RCU") == ["50.0", "n/a", "50.0"]
    assert cells_of(text, "CPU time") == ["0.00 s", "0.25 s", "0.00 s"]
    assert cells_of(text, "Throttled requests") == ["7"]
    assert cells_of(text, "Retried requests") == ["2"]
    assert "Items scanned" not in text


@pytest.mark.parametrize("runs", [1, 3])
def test_five_large_scans_fit_80_columns(runs: int) -> None:
    names = ("items", "pages", "throttled_requests", "retried_requests")
    large: dict[str, Any] = dict.fromkeys(names, 99_999_999)
    first = sequential(*[90_000.0] * runs, **large)
    counts = (250_000, 500_000, 999_999, 1_000_000)
    series = [parallel(count, *[36_000.0] * runs, **large) for count in counts]
    text = compare.side_by_side(Comparison(first, series))
    assert len(cells_of(text, "Times as fast")) == 5
    assert widest(text) <= 80


# --- The timeline


def bars_of(text: str) -> dict[str, str]:
    """The bars by their names, without the axis and the legend."""
    lines = [line.split("|") for line in text.splitlines() if "|" in line]
    return {name.strip(): bar for name, bar in lines}


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_timeline_is_to_scale(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    whole = Metrics(started=50.0, seconds=2.0, waits=[(51.0, 52.0)])
    in_segments = Metrics(started=60.0, seconds=1.0)
    in_segments.segments = {
        0: Metrics(started=60.0, seconds=1.0),
        1: Metrics(started=60.5, seconds=0.5, waits=[(60.5, 60.75)]),
        2: Metrics(started=60.0, seconds=0.001),
        3: Metrics(started=60.5),  # it was still being read at the end
    }
    text = timeline(whole, in_segments)
    bars = bars_of(text)
    full = len(bars["sequential"])
    assert list(bars) == ["sequential", *(f"segment {number}" for number in range(4))]
    assert full > 0.6 * columns
    assert re.fullmatch("█+░+", bars["sequential"])
    assert bars["sequential"].count("░") == pytest.approx(full / 2, abs=1)
    assert bars["segment 0"] == "█" * round(full / 2)
    assert re.fullmatch(" +░+█+", bars["segment 1"])
    assert bars["segment 1"].count(" ") == pytest.approx(full / 4, abs=1)
    assert bars["segment 1"].count("░") == pytest.approx(full / 8, abs=1)
    assert bars["segment 1"].count("█") == pytest.approx(full / 8, abs=1)
    assert bars["segment 2"] == "█"  # however short
    assert re.fullmatch(" +█+", bars["segment 3"])
    assert len(bars["segment 3"]) == len(bars["segment 0"])
    assert text.splitlines()[-2].split() == ["0", "s", "2.00", "s"]
    assert text.splitlines()[-1] == "█ reading  ░ throttled"
    assert widest(text) <= columns


def test_of_many_segments_the_20_that_finished_last_are_drawn() -> None:
    many = Metrics(seconds=10.0)
    for number in range(30):
        many.segments[number] = Metrics(started=5 - number / 9, seconds=1.0)
    text = timeline(Metrics(seconds=1.0), many)
    drawn = [f"segment {number}" for number in range(20)]
    assert list(bars_of(text)) == ["sequential", *drawn]
    assert "20 segments" in text.splitlines()[-1]


def test_the_fastest_parallel_scan_is_drawn() -> None:
    three = {number: Metrics(seconds=1.0) for number in range(3)}
    ways = [parallel(3, 1.0, segments=three), parallel(8, 3.0)]
    text = compare.result_text(
        Comparison(sequential(4.0), ways), Table("T", 1, 1, 5), []
    )
    assert list(bars_of(text)) == ["sequential", "segment 0", "segment 1", "segment 2"]


# --- On servers: interrupted


def interrupted_at(number: int, *flags: str) -> Ended:
    """Run compare.py, and interrupt it at a certain Scan, counted from 0."""

    def script(scan: int, _: Any) -> str | None:
        if scan == number:
            process.send_signal(SIGINT)
        return "hang" if scan >= number else None

    with serve(instant(2000, script=script)) as lab:
        command = ["--page-size", "300", "--total-segments", "2", *flags]
        process = subprocess.Popen(
            [sys.executable, BUNDLE / "compare.py", *command],
            env=lab_environment(lab.endpoint_url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        output, errors = process.communicate(timeout=60)
    return Ended(flags, process.returncode, output, errors)


# The sequential scan needs 7 pages, and the one in 2 segments 8.
def test_an_interrupt_in_the_parallel_scan_leaves_the_sequential_one() -> None:
    ended = interrupted_at(10)
    assert ended.returncode == 130
    assert cells_of(ended.stdout, "Items processed") == ["2,000"]
    assert "Interrupted: the scan in 2 segments had read" in ended.stdout
    assert "times as fast" not in ended.stdout.lower()
    assert "interrupted" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_interrupted_run_is_never_the_median() -> None:
    ended = interrupted_at(3 * 7 + 2 * 8 + 3, "--runs", "3", "--output", "json")
    answer = json.loads(ended.stdout)
    assert ended.returncode == 130
    assert [len(each["runs"]) for each in answer["results"]] == [3, 2]
    assert [each["items"] for each in answer["results"]] == [2000, 2000]
    assert [each["complete"] for each in answer["results"]] == [True, True]
    assert [each["speedup"] for each in answer["results"]] == [None, None]
    assert answer["conclusion"].startswith("Interrupted")


def test_an_interrupt_in_the_first_scan_leaves_nothing_to_show() -> None:
    ended = interrupted_at(1)
    assert ended.returncode == 130
    assert "the sequential scan had read 300 items" in in_one_line(ended.stdout)
    assert "Items processed" not in ended.stdout


def in_one_line(text: str) -> str:
    return " ".join(text.split())


# --- On servers: different items


def page(items: int, rcu: float | None = 0.5) -> Reply:
    """A last page with so many items."""
    answer: dict[str, Any] = {"Items": [{}] * items, "Count": items}
    answer["ScannedCount"] = items
    answer["ConsumedCapacity"] = {"CapacityUnits": rcu}
    return Reply(json.dumps(answer))


@pytest.mark.parametrize(
    ("first", "others", "different", "reason"),
    [
        (8, [0], "from 0 to 8", "written to"),
        (8, [4, 0], "from 4 to 8", "written to"),
        (8, [12, 0], "from 8 to 12", "written to"),
        (0, [4, 0], "from 0 to 4", "written to"),
        (8, [16, 0], "from 8 to 16", "exactly 2 times as many"),
        (100, [100], "from 100 to 800", "endpoint seems to ignore segments"),
    ],
)
def test_scans_of_different_items_have_no_speed(
    invoke: Invoke,
    canned: Canned,
    first: int,
    others: list[int],
    different: str,
    reason: str,
) -> None:
    canned.answer(page(first), *[page(items) for items in others])
    ended = invoke("compare", "--total-segments", "8", "--output", "json", at=canned)
    answer = json.loads(ended.stdout)
    said = answer["conclusion"]
    assert ended.returncode == 0
    assert said.startswith("The scans read different numbers of items, " + different)
    assert reason in said
    assert "times as fast" not in said
    assert "one page" not in said
    assert "RCU" not in said
    assert [each["speedup"] for each in answer["results"]] == [None, None]


# --- On servers: causes


def test_capacity_that_one_scan_did_not_report_is_not_compared(
    invoke: Invoke, canned: Canned
) -> None:
    canned.answer(page(4), page(1), page(1), page(1, rcu=None))
    ended = invoke("compare", "--output", "json", at=canned)
    answer = json.loads(ended.stdout)
    assert [each["consumed_rcu"] for each in answer["results"]] == [0.5, None]
    assert "RCU" not in answer["conclusion"]


def test_four_hot_segments_of_16_do_not_blame_the_table(invoke: Invoke) -> None:
    hot = {0, 1, 2, 3}

    def script(_: int, params: Any) -> str | None:
        if params.get("Segment") not in hot:
            return None
        hot.remove(params["Segment"])
        return "throttle"

    flags = ("--total-segments", "16", "--output", "json")
    with serve(instant(2000, script=script)) as lab:
        answer = json.loads(invoke("compare", *flags, at=lab).stdout)
    said = answer["conclusion"]
    assert [each["throttled_requests"] for each in answer["results"]] == [0, 4]
    assert said.startswith("The scan in 16 segments was throttled 4 times.")
    assert "The table's capacity" not in said


def test_where_the_sequential_scan_is_throttled_the_table_is_the_cause(
    invoke: Invoke,
) -> None:
    def first_scan(number: int, _: Any) -> str | None:
        return "throttle" if number == 0 else None

    with serve(instant(500, script=first_scan)) as spent:
        answer = json.loads(invoke("compare", "--output", "json", at=spent).stdout)
    said = answer["conclusion"]
    assert said.startswith("The sequential scan was throttled once.")
    assert "The scan in 4 segments was throttled" not in said
    assert "The table's capacity limited even the sequential scan." in said


# The 25 games of a single player are in one segment, whatever the number of segments.
def test_the_segment_that_holds_all_items_is_named(invoke: Invoke) -> None:
    flags = ("--total-segments", "8", "--page-size", "1", "--output", "json")
    with serve(instant(25, latency_ms=10)) as one_player:
        answer = json.loads(invoke("compare", *flags, at=one_player).stdout)
    segments = answer["results"][1]["segments"]
    (full,) = [each["segment"] for each in segments if each["items"]]
    assert f"Segment {full} alone took" in answer["conclusion"]
    assert "more segments" not in answer["conclusion"]


def test_a_table_of_one_page_is_named(invoke: Invoke, engine: Engine) -> None:
    ended = invoke("compare", at=engine)
    words = in_one_line(ended.stdout)
    assert cells_of(ended.stdout, "Pages") == ["1", "4"]
    assert "The whole table fits in one page." in words
    # 50 RCU in one page, 51 in four (facts about DynamoDB scans)
    assert "1.0 RCU more than the sequential scan: the cost" in words


def test_only_plain_boto3_lets_botocore_parse_the_items(
    invoke: Invoke, canned: Canned
) -> None:
    # DynamoDB sends no value without a type. botocore's parser stumbles over it.
    canned.answer('{"Items": [{"score": 5}], "Count": 1, "ScannedCount": 1}')
    ours = invoke("compare", at=canned)
    plain = invoke("compare", "--plain-boto3", at=canned)
    assert (ours.returncode, plain.returncode) == (0, 1)
    assert "does not answer as DynamoDB does" in plain.stderr


def test_plain_boto3_reads_the_same(invoke: Invoke, lab: Lab) -> None:
    ours = invoke("compare", "--page-size", "300", at=lab).stdout
    plain = invoke("compare", "--page-size", "300", "--plain-boto3", at=lab).stdout
    for name in ("Items processed", "Consumed RCU", "Pages"):
        assert cells_of(plain, name) == cells_of(ours, name)


# --- On servers: the order of the scans, the result, and the cost


def test_scans_go_forth_and_back(invoke: Invoke) -> None:
    with serve(instant(100)) as lab:
        invoke("compare", "--total-segments", "3", "2", "2", "--runs", "3", at=lab)
        segments = [entry["segment"] for entry in scans_of(lab)]
    # S is the sequential scan, and a dot a segment of a parallel one.
    shape = "".join("S" if each is None else "." for each in segments)
    assert shape == "S" + ".." + "..." + "..." + ".." + "SS" + ".." + "..."
    assert sorted(segments[1:3]) == [0, 1]
    assert sorted(segments[3:6]) == sorted(segments[6:9]) == [0, 1, 2]


def test_the_result_is_on_standard_output_and_the_cost_is_not(
    invoke: Invoke, lab: Lab
) -> None:
    flags = ("--total-segments", "2", "4", "8", "16", "--runs", "2")
    ended = invoke("compare", *flags, "--consistent-read", at=lab)
    facts, _, conclusion_text, bars = ended.stdout.split("\n\n")
    # 10 scans of 406,000 bytes in units of 4 KB, an RCU each
    cost = r"10 scans .* about 99\d RCU\. It is on demand: each request is billed\."
    assert re.fullmatch(cost, in_one_line(ended.stderr))
    assert facts == "GameLeaderboard: about 2,000 items, 0.4 MB, on demand"
    assert len(cells_of(ended.stdout, "Fastest run")) == 5
    assert conclusion_text.startswith("The whole table fits in one page")
    assert list(bars_of(bars))[:2] == ["sequential", "segment 0"]
    assert widest(ended.stdout) <= 80
    assert widest(ended.stderr) <= 80


def test_json_is_the_servers_own_account(invoke: Invoke) -> None:
    with serve(instant(2000, read_capacity=7)) as lab:
        flags = ("--total-segments", "2", "3", "--workers", "2", "--output", "json")
        ended = invoke("compare", *flags, at=lab)
        log = scans_of(lab)
        size = lab.table.sizes[-1]
    answer = json.loads(ended.stdout)
    results = answer["results"]
    assert answer.keys() == {"table", "results", "conclusion"}
    assert answer["table"] == {
        "name": "GameLeaderboard",
        "item_count": 2000,
        "size_bytes": size,
        "read_capacity": 7,
    }
    modes = ["sequential", "parallel", "parallel"]
    assert [each["mode"] for each in results] == modes
    assert [each["total_segments"] for each in results] == [1, 2, 3]
    assert [each["workers"] for each in results] == [1, 2, 2]
    assert [len(each["segments"]) for each in results] == [1, 2, 3]
    assert_as_logged(results[0], log[:1])
    assert_as_logged(results[1], log[1:3])
    assert_as_logged(results[2], log[3:6])
    assert "The table has 7 RCU a second." in in_one_line(ended.stderr)


def test_json_has_every_run_and_the_median(
    invoke: Invoke, canned: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = iter(sequential(2.0, 4.0, 3.0).runs)
    after = iter(parallel(4, 0.5, 1.5, 1.0).runs)
    monkeypatch.setattr(compare, "sequential_scan", lambda *_: next(before))
    monkeypatch.setattr(compare, "parallel_scan", lambda *_: next(after))
    ended = invoke("compare", "--runs", "3", "--output", "json", at=canned)
    results = json.loads(ended.stdout)["results"]
    assert [each["runs"] for each in results] == [[2.0, 4.0, 3.0], [0.5, 1.5, 1.0]]
    assert [each["seconds"] for each in results] == [3.0, 1.0]
    assert [each["speedup"] for each in results] == [1.0, 3.0]


def test_the_size_of_an_index_is_not_guessed(invoke: Invoke, real: Engine) -> None:
    flags = ("--index-name", "game-mode-index", "--output", "json")
    ended = invoke("compare", *flags, at=real)
    answer = json.loads(ended.stdout)
    assert [each["items"] for each in answer["results"]] == [2000, 2000]
    assert ended.stderr == ""


# --- On a terminal that is narrow, or that knows few characters


def test_20_columns_break_nothing(
    invoke: Invoke, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    ended = invoke("compare", "--total-segments", "2", "16", at=lab)
    assert ended.returncode == 0
    assert cells_of(ended.stdout, "Items processed") == ["2,000"] * 3
    assert "The whole table fits" in in_one_line(ended.stdout)
    assert len(bars_of(ended.stdout)["sequential"]) <= 10
    assert widest(ended.stderr) <= 20


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_few_characters_still_tell_reading_from_throttled(encoding: str) -> None:
    def throttle_page_2(number: int, _: Any) -> str | None:
        return "throttle" if number in (1, 2) else None

    with serve(instant(500, script=throttle_page_2)) as lab:
        flags = ("compare.py", "--page-size", "100")
        ended = run(lab.endpoint_url, *flags, PYTHONIOENCODING=encoding)
    assert ended.returncode == 0
    assert "# reading  - throttled" in ended.stdout
    assert set(bars_of(ended.stdout)["sequential"]) == {"#", "-"}
    assert ended.stdout.isascii()
