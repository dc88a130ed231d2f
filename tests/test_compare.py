"""The comparison: what it claims and what it must not, its numbers, and its look.

First come conclusions from made-up metrics. Then compare.py runs on servers that do
what tables do on bad days.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from signal import SIGINT
from typing import Any

import pytest
from canned import Canned
from conftest import Invoke
from engines import Engine
from items import assert_as_logged, instant, scans_of
from local_dynamodb import Lab, lab_environment, serve
from running import BUNDLE, run

import compare
from common import Metrics
from compare import Comparison, Table, Way, conclusion, cost_text, speedup
from parallel_scan import timeline

TABLE = Table("T", 100, 8 * 2**20, 5)  # 8 MiB: 2,048 units of 4 KB
MADE_UP = Metrics(items=100, scanned=100, pages=8, consumed_rcu=50.0, complete=True)


def sequential(*seconds: float, **more: Any) -> Way:
    """A sequential scan that was run so often, and took so long."""
    return Way(None, [replace(MADE_UP, seconds=each, **more) for each in seconds])


def parallel(total: int, *seconds: float, **more: Any) -> Way:
    """A parallel scan in so many segments."""
    return Way(total, [replace(MADE_UP, seconds=each, **more) for each in seconds])


def said_of(*ways: Way, plain: bool = False) -> str:
    """The conclusion from a sequential scan and parallel ones."""
    return " ".join(conclusion(Comparison(ways[0], list(ways[1:])), plain))


# --- Scans that cannot be compared


def test_no_speed_is_claimed_after_an_interrupt() -> None:
    ways = [parallel(2, 1.0), parallel(4)]  # none of the last was complete
    cut_off = Comparison(sequential(22.4), ways, ways[1], items_until_then=20_000)
    said = conclusion(cut_off, plain=False)
    text = compare.result_text(cut_off, TABLE, said)
    results = compare.result_json(cut_off, TABLE, said, None)["results"]
    assert "Interrupted: the scan in 4 segments had read 20,000 items." in text
    assert "times as fast" not in text.lower()
    assert cells_of(text, "Items processed") == ["100", "100"]
    assert [each["speedup"] for each in results] == [None, None]


def test_an_interrupt_in_the_first_scan_leaves_nothing_to_show() -> None:
    nothing = Comparison(Way(None), [Way(4)], Way(None), items_until_then=300)
    text = compare.result_text(nothing, TABLE, conclusion(nothing, plain=False))
    _, said = text.split("\n\n")  # the table's facts come first
    assert said.startswith("Interrupted: the sequential scan had read 300 items.")


def test_different_items_are_seen_behind_a_filter() -> None:
    filtered = sequential(9.0, items=10)
    changed = parallel(4, 1.0, 1.0, items=10)
    changed.runs[1].scanned = 103
    assert "from 100 to 103. No speeds are compared." in said_of(filtered, changed)
    assert "from 10 to 12." in said_of(filtered, parallel(4, 1.0, items=12))


def test_one_more_item_does_not_blame_the_endpoint() -> None:
    one_more = parallel(4, 1.0, items=101, scanned=101)
    said = said_of(sequential(1.0), parallel(2, 1.0), one_more)
    assert "written to" in said
    assert "exactly" not in said


# --- Speed, its causes, and the cost


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


@pytest.mark.parametrize(
    ("before", "after", "ratio"),
    [
        ([4.0, 4.2, 4.4], [1.0, 2.0, 3.0], 2.1),
        ([1.0, 2.0, 3.0], [4.0, 4.0, 4.2], 0.5),
        ([2.2, 2.2, 2.2], [1.9, 1.9, 1.9], 2.2 / 1.9),  # more than a tenth
        ([2.2, 2.2, 2.2], [2.1, 2.1, 2.1], None),  # less than a tenth
        ([4.0, 4.2, 4.4], [1.0, 1.0, 4.1], None),  # 4.1 is slower than 4.0
        ([1.0, 1.0, 4.1], [4.0, 4.2, 4.4], None),
        ([0.014], [0.010], None),  # less than a tenth of a second
        ([0.014], [0.020], None),
        ([0.500], [0.250], 2.0),
    ],
)
def test_every_run_has_to_be_faster(
    before: list[float], after: list[float], ratio: float | None
) -> None:
    assert speedup(parallel(4, *after), sequential(*before)) == ratio


def test_of_two_runs_the_faster_stands_for_both() -> None:
    assert parallel(2, 3.0, 1.0).median.seconds == 1.0
    said = said_of(sequential(3.0, 1.0), parallel(2, 3.0, 1.0))
    assert said.startswith("The scan in 2 segments was not clearly faster.")
    assert "--runs" not in said


@pytest.mark.parametrize(("before", "after"), [(1, 20), (4, 4)])
def test_a_table_of_more_pages_is_not_one_page(before: int, after: int) -> None:
    said = said_of(sequential(0.2, pages=before), parallel(4, 0.05, pages=after))
    assert "one page" not in said


@pytest.mark.parametrize(
    ("plain", "before", "cpu_seconds", "busy", "gil"),
    [
        (True, 1.1, 0.95, True, True),
        (True, 1.4, 1.1, True, True),
        (True, 4.0, 0.95, True, True),  # they gained while they waited
        (True, 1.1, 1.9, True, False),  # two threads ran side by side: no GIL
        (True, 1.1, 0.5, False, False),  # it waited for the server
        (False, 1.1, 0.95, True, False),
    ],
)
def test_the_cpu_is_a_cause_only_where_it_was_busy(
    plain: bool, before: float, cpu_seconds: float, busy: bool, gil: bool
) -> None:
    busy_scan = parallel(4, 1.0, cpu_seconds=cpu_seconds)
    said = said_of(sequential(before), busy_scan, plain=plain)
    assert ("machine's CPU" in said) == busy
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
        ({2: 2.0, 4: 1.04, 8: 1.0}, "More than 4 segments gained nothing"),
        ({2: 1.06, 4: 1.0, 8: 1.3}, "More than 4 segments gained nothing"),
        ({2: 1.04, 4: 1.0, 8: 1.3}, "More than 2 segments gained nothing"),
        ({1: 1.0, 16: 1.0}, "More than 1 segment gained nothing"),
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
    assert "CPU" not in said
    assert "try more" not in said


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (50.0, 51.0, "consumed 1.0 RCU more than the sequential scan: the cost of"),
        (50.0, 54.0, "rounded up"),  # 8 pages, half an RCU each
        (50.0, 54.5, "4.5 RCU more than the sequential scan."),
        (50.0, 50.0, ""),
        (50.0, 49.0, ""),
        (None, 51.0, ""),
    ],
)
def test_more_capacity_is_rounding_only_up_to_half_an_rcu_a_page(
    before: float | None, after: float, words: str
) -> None:
    scanned = parallel(4, 1.0, consumed_rcu=after)
    said = said_of(sequential(4.0, consumed_rcu=before), scanned)
    assert words in said
    assert ("RCU more" in said) == (words != "")


def test_the_most_important_comes_first() -> None:
    throttled = sequential(4.0, throttled_requests=1)
    said = said_of(throttled, parallel(4, 1.0, consumed_rcu=99.0))
    order = [
        "The sequential scan was throttled once.",
        "The table's capacity limited even the sequential scan.",
        "The scan in 4 segments was 4.0 times as fast.",
        "49.0 RCU more",
    ]
    assert sorted(order, key=said.index) == order
    assert "The scan in 4 segments was throttled" not in said


# A scan of the table costs 1,024 RCU, or 2,048 if consistent.
def test_the_cost_of_a_provisioned_table_promises_no_time() -> None:
    words = cost_text(TABLE, 2, consistent=False)
    assert "2 scans of this table consume about 2,048 RCU." in words
    assert "The table has 5 RCU a second. Up to 1,500 RCU" in words  # of five minutes
    assert "How many are left is not known." in words
    assert words.endswith("With none left, the scans take about 410 s.")  # 2,048 / 5


def test_the_cost_of_an_on_demand_table_has_no_time() -> None:
    words = cost_text(replace(TABLE, read_capacity=None), 3, consistent=True)
    assert "3 scans of this table consume about 6,144 RCU." in words
    assert words.endswith("each request is billed.")


# --- The metrics side by side


def cells_of(text: str, name: str) -> list[str]:
    """The cells of one row, without the empty ones."""
    (row,) = [line for line in text.splitlines() if line.startswith(name)]
    return re.split(" {2,}", row)[1:]


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def widest(text: str) -> int:
    return max(len(line) for line in text.splitlines())


def test_a_column_is_a_scan_and_a_row_a_metric() -> None:
    other = parallel(2, 1.9, 1.5, 3.0, consumed_rcu=None)
    slower = parallel(4, 440.0, throttled_requests=7, retried_requests=2)
    comparison = Comparison(sequential(2.0), [other, slower])
    text = compare.side_by_side(comparison)
    assert re.match(r" +sequential +2 +4\n +segments +segments\n", text)
    assert cells_of(text, "Total execution time") == ["2.00 s", "1.90 s", "440.00 s"]
    assert cells_of(text, "Fastest run") == ["1.50 s"]
    assert cells_of(text, "Slowest run") == ["3.00 s"]
    assert cells_of(text, "Times as fast") == ["1.0", "0.0045"]  # none of 2
    assert cells_of(text, "Consumed RCU") == ["50.0", "n/a", "50.0"]
    assert cells_of(text, "Throttled requests") == ["7"]
    assert cells_of(text, "Retried requests") == ["2"]


def test_five_large_scans_fit_80_columns() -> None:
    names = ("items", "pages", "throttled_requests", "retried_requests")
    large: dict[str, Any] = dict.fromkeys(names, 99_999_999)
    first = sequential(90_000.0, 90_000.0, **large)
    counts = (250_000, 500_000, 999_999, 1_000_000)
    series = [parallel(count, 36_000.0, 36_000.0, **large) for count in counts]
    text = compare.side_by_side(Comparison(first, series))
    assert len(cells_of(text, "Times as fast")) == 5
    assert widest(text) <= 80


def test_json_has_every_run_and_the_median() -> None:
    comparison = Comparison(sequential(2.0, 4.0, 3.0), [parallel(4, 0.5, 1.5, 1.0)])
    results = compare.result_json(comparison, TABLE, [], None)["results"]
    assert [each["runs"] for each in results] == [[2.0, 4.0, 3.0], [0.5, 1.5, 1.0]]
    assert [each["seconds"] for each in results] == [3.0, 1.0]
    assert [each["speedup"] for each in results] == [1.0, 3.0]


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
        # It was still being read, and was throttled, when the scan ended.
        3: Metrics(started=60.5, waits=[(60.75, 61.5)]),
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
    assert bars["segment 1"].count("░") == pytest.approx(full / 8, abs=1)
    assert bars["segment 1"].count("█") == pytest.approx(full / 8, abs=1)
    assert bars["segment 2"] == "█"  # however short
    assert re.fullmatch(" +█+░+", bars["segment 3"])
    assert len(bars["segment 3"]) == len(bars["segment 0"])
    assert text.splitlines()[-2].split() == ["0", "s", "2.00", "s"]
    assert text.splitlines()[-1] == "█ reading  ░ throttled"
    assert widest(text) <= columns


def test_of_many_segments_the_20_that_finished_last_are_drawn() -> None:
    many = Metrics(seconds=10.0)
    for number in range(30):
        many.segments[number] = Metrics(started=number / 30, seconds=9 - number / 15)
    text = timeline(Metrics(seconds=1.0), many)
    drawn = [f"segment {number}" for number in range(20)]
    assert list(bars_of(text)) == ["sequential", *drawn]
    assert text.splitlines()[-3].endswith(" 10.00 s")
    assert "20 segments" in text.splitlines()[-1]
    twenty = Metrics(seconds=1.0, segments=dict.fromkeys(range(20), Metrics()))
    assert "finished last" not in timeline(twenty)


def test_the_fastest_parallel_scan_is_drawn() -> None:
    three = {number: Metrics(seconds=1.0) for number in range(3)}
    ways = [parallel(3, 1.0, segments=three), parallel(8, 3.0)]
    text = compare.result_text(Comparison(sequential(4.0), ways), TABLE, [])
    assert text.startswith("T: about 100 items, 8.0 MB, 5 RCU a second\n")
    assert list(bars_of(text)) == ["sequential", "segment 0", "segment 1", "segment 2"]


# --- On servers


# The sequential scan needs 7 pages, and the one in 2 segments 8.
def test_an_interrupted_run_is_never_the_median() -> None:
    last_run = 3 * 7 + 2 * 8

    def script(number: int, _: Any) -> str | None:
        if number == last_run + 3:
            process.send_signal(SIGINT)
        return "hang" if number >= last_run + 3 else None

    flags = "--page-size 300 --total-segments 2 --runs 3 --output json"
    with serve(instant(2000, script=script)) as lab:
        process = subprocess.Popen(
            [sys.executable, BUNDLE / "compare.py", *flags.split()],
            env=lab_environment(lab.endpoint_url),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        output, _ = process.communicate(timeout=60)
    answer = json.loads(output)
    assert process.returncode == 130
    assert re.match("Interrupted: .* had read [1-9]00 items", answer["conclusion"])
    assert [len(each["runs"]) for each in answer["results"]] == [3, 2]
    assert [each["items"] for each in answer["results"]] == [2000, 2000]
    assert [each["speedup"] for each in answer["results"]] == [None, None]


def page(items: int, rcu: float | None = 0.5) -> str:
    """A last page with so many items."""
    answer = {"Items": [{}] * items, "Count": items, "ScannedCount": items}
    return json.dumps({**answer, "ConsumedCapacity": {"CapacityUnits": rcu}})


# The first page is the sequential scan's. The last one is sent again and again.
@pytest.mark.parametrize(
    ("items", "different", "reason"),
    [
        ([8, 0], "from 0 to 8", "written to"),
        ([8, 4, 0], "from 4 to 8", "written to"),
        ([8, 12, 0], "from 8 to 12", "written to"),
        ([0, 4, 0], "from 0 to 4", "written to"),
        ([8, 16, 0], "from 8 to 16", "exactly 2 times as many"),
        ([100, 100], "from 100 to 800", "endpoint seems to ignore segments"),
    ],
)
def test_a_table_that_changes_has_no_speed(
    invoke: Invoke, canned: Canned, items: list[int], different: str, reason: str
) -> None:
    canned.answer(*[page(count) for count in items])
    ended = invoke("compare", "--total-segments", "8", "--output", "json", at=canned)
    answer = json.loads(ended.stdout)
    said = answer["conclusion"]
    assert said.startswith(f"The scans read different numbers of items, {different}.")
    assert reason in said
    assert "times as fast" not in said
    assert "one page" not in said
    assert "RCU" not in said
    assert [each["speedup"] for each in answer["results"]] == [None, None]


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


# The 25 games of a single player are in one segment, whatever the number of segments.
def test_the_segment_that_holds_all_items_is_named(invoke: Invoke) -> None:
    flags = ("--total-segments", "8", "--page-size", "1", "--output", "json")
    with serve(instant(25, latency_ms=30)) as one_player:
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
    assert [each["mode"] for each in results] == ["sequential"] + ["parallel"] * 2
    assert [each["total_segments"] for each in results] == [1, 2, 3]
    assert [each["workers"] for each in results] == [1, 2, 2]
    assert [len(each["segments"]) for each in results] == [1, 2, 3]
    assert_as_logged(results[0], log[:1])
    assert_as_logged(results[1], log[1:3])
    assert_as_logged(results[2], log[3:6])
    assert "The table has 7 RCU a second." in in_one_line(ended.stderr)


def test_the_size_of_an_index_is_not_guessed(invoke: Invoke, real: Engine) -> None:
    flags = ("--index-name", "game-mode-index", "--output", "json")
    ended = invoke("compare", *flags, at=real)
    answer = json.loads(ended.stdout)
    assert [each["items"] for each in answer["results"]] == [2000, 2000]
    assert ended.stderr == ""


def test_output_is_whole_in_20_columns(
    invoke: Invoke, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    ended = invoke("compare", "--total-segments", "2", "16", at=lab)
    assert ended.returncode == 0
    assert cells_of(ended.stdout, "Items processed") == ["2,000"] * 3
    assert "The whole table fits" in in_one_line(ended.stdout)
    assert len(bars_of(ended.stdout)["sequential"]) <= 10
    assert widest(ended.stderr) <= 20


@pytest.mark.parametrize("stream", ["sys.stdout", "sys.stderr"])
def test_either_stream_may_know_few_characters(
    monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    monkeypatch.setattr(stream, io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert timeline(Metrics(seconds=1.0)).endswith("# reading  - throttled")


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
