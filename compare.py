#!/usr/bin/env python3
"""Scan a DynamoDB table sequentially and in parallel, and compare the two.

    python compare.py --total-segments 2 4 8 --runs 3

It prints the metrics side by side, and a conclusion: `conclusion` says how it is
reached.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

import tabulate

import common
from common import Client, Metrics, Request
from parallel_scan import DEFAULT_WORKERS, add_workers_flag, parallel_scan, timeline
from sequential_scan import sequential_scan

# ---------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """What DescribeTable says. The counts are estimates, up to six hours old."""

    name: str
    item_count: int
    size_bytes: int
    read_capacity: int | None  # None: on demand


def describe(client: Client, table_name: str) -> Table:
    """Describe a table. Raises ScanError, or an error of botocore's."""
    try:
        table = client.describe_table(TableName=table_name)["Table"]
        throughput = table.get("ProvisionedThroughput", {})
        return Table(
            name=table_name,
            item_count=int(table.get("ItemCount", 0)),
            size_bytes=int(table.get("TableSizeBytes", 0)),
            # A table on demand has 0. (API reference, DescribeTable)
            read_capacity=int(throughput.get("ReadCapacityUnits", 0)) or None,
        )
    except common.NOT_AN_ANSWER as error:
        raise common.not_dynamodb(client) from error


def cost_text(table: Table, scans: int, consistent: bool) -> str:
    """What the scans will cost. It is said before they start."""
    # Half an RCU for each 4 KB, or a whole one. (Developer Guide, read consistency)
    rcu = scans * table.size_bytes / 4096 * (1.0 if consistent else 0.5)
    text = f"{scans} scans of this table consume about {rcu:,.0f} RCU."
    if table.read_capacity is None:
        return f"{text} It is on demand: each request is billed."
    return (
        f"{text} The table has {table.read_capacity:,} RCU a second. "
        f"Up to {300 * table.read_capacity:,} RCU that it did not use in the last "
        "five minutes may be saved. How many are left is not known. "
        f"With none left, the scans take about {rcu / table.read_capacity:,.0f} s."
    )


# ---------------------------------------------------------------------------
# The scans
# ---------------------------------------------------------------------------


@dataclass
class Way:
    """One way to scan the table, and the runs that were complete."""

    total_segments: int | None  # None: a sequential scan
    runs: list[Metrics] = field(default_factory=list)

    @property
    def segment_count(self) -> int:
        """The number of segments. A sequential scan is one."""
        return self.total_segments or 1

    @property
    def name(self) -> str:
        if self.total_segments is None:
            return "sequential scan"
        return f"scan in {segments_text(self.total_segments)}"

    @property
    def by_time(self) -> list[Metrics]:
        """The runs, the fastest first."""
        return sorted(self.runs, key=lambda run: run.seconds)

    @property
    def median(self) -> Metrics:
        """The run that stands for all of them. Of two in the middle, the faster."""
        return self.by_time[(len(self.runs) - 1) // 2]

    @property
    def throttled_requests(self) -> int:
        return sum(run.throttled_requests for run in self.runs)

    def run(self, client: Client, request: Request, workers: int | None) -> Metrics:
        # Close the connections of the scan before, so that each scan has to open its
        # own. (boto3 opens new ones for the next request.)
        client.close()
        if self.total_segments is None:
            return sequential_scan(client, request)
        return parallel_scan(client, request, self.total_segments, workers)


@dataclass
class Comparison:
    """A sequential scan, and parallel scans of the same table."""

    sequential: Way
    parallel: list[Way]  # the fewest segments first
    interrupted: Way | None = None
    items_until_then: int = 0

    @property
    def ways(self) -> list[Way]:
        return [self.sequential, *self.parallel]

    @property
    def best(self) -> Way:
        """The fastest parallel scan. Within 5 %, the one with the fewest segments."""
        fastest = min(way.median.seconds for way in self.parallel)
        as_fast = [way for way in self.parallel if way.median.seconds <= 1.05 * fastest]
        return as_fast[0]


def compare(
    client: Client,
    request: Request,
    segment_counts: list[int],
    workers: int | None,
    rounds: int,
) -> Comparison:
    """Scan the table in each way, `rounds` times. Ctrl-C ends it.

    Every other round goes backwards. So a table that warms up, or that runs out of
    saved capacity, does not always favour the same way.
    """
    comparison = Comparison(Way(None), [Way(count) for count in segment_counts])
    for number in range(rounds):
        backwards = number % 2 == 1
        ways = comparison.ways[::-1] if backwards else comparison.ways
        for way in ways:
            metrics = way.run(client, request, workers)
            if not metrics.complete:
                comparison.interrupted = way
                comparison.items_until_then = metrics.items
                return comparison
            way.runs.append(metrics)
    return comparison


# ---------------------------------------------------------------------------
# The conclusion
# ---------------------------------------------------------------------------


def conclusion(comparison: Comparison, plain: bool) -> list[str]:
    """What can be said of the scans: a few sentences, the most important first.

    Each function below adds the sentences about one subject. A new case is a
    condition and a sentence. Nothing is said that was not measured.
    """
    if comparison.interrupted is not None:
        return [
            f"Interrupted: the {comparison.interrupted.name} had read "
            f"{comparison.items_until_then:,} items. No speeds are compared."
        ]
    if read_different_items(comparison):
        return different_items(comparison)
    return [
        *throttling(comparison),
        *speed(comparison),
        *causes(comparison, plain),
        *cost(comparison),
    ]


def read_different_items(comparison: Comparison) -> bool:
    """Whether the scans cannot be compared, because they read different items."""
    runs = [run for way in comparison.ways for run in way.runs]
    return len({(run.items, run.scanned) for run in runs}) > 1


def different_items(comparison: Comparison) -> list[str]:
    """Why no speeds are compared."""
    runs = [run for way in comparison.ways for run in way.runs]
    counts = sorted({run.scanned for run in runs})
    if len(counts) == 1:
        counts = sorted({run.items for run in runs})
    sentences = [
        "The scans read different numbers of items, from "
        f"{counts[0]:,} to {counts[-1]:,}. No speeds are compared."
    ]
    expected = comparison.sequential.median.scanned
    for way in comparison.parallel:
        if expected == 0 or way.median.scanned <= expected:
            continue
        times_as_many, rest = divmod(way.median.scanned, expected)
        if rest == 0:
            return [
                *sentences,
                f"The {way.name} read exactly {times_as_many:,} times as many as the "
                "sequential scan. The endpoint seems to ignore segments.",
            ]
    return [*sentences, "Perhaps the table was written to meanwhile."]


def throttling(comparison: Comparison) -> list[str]:
    """Which scans were throttled, and how often in all of their runs."""
    throttled = [way for way in comparison.ways if way.throttled_requests]
    if not throttled:
        return []
    sentences = []
    for way in throttled:
        often = times_text(way.throttled_requests)
        sentences.append(f"The {way.name} was throttled {often}.")
    sentences.append("The time of a throttled scan includes its waits.")
    if comparison.sequential in throttled:
        sentences.append("The table's capacity limited even the sequential scan.")
    return sentences


def speedup(way: Way, other: Way) -> float | None:
    """How many times as fast one way was as another. None if that cannot be told.

    Timings vary by chance. So there has to be a clear difference: every run of one
    way was faster than every run of the other, and the median by a tenth. A single
    run has to be faster by a quarter, and by a tenth of a second.
    """
    fastest, slowest = way.by_time[0], way.by_time[-1]
    other_fastest, other_slowest = other.by_time[0], other.by_time[-1]
    all_faster = slowest.seconds < other_fastest.seconds
    all_slower = fastest.seconds > other_slowest.seconds
    if not all_faster and not all_slower:
        return None
    ratio = other.median.seconds / way.median.seconds
    clear = 1.1
    if len(way.runs) == 1:
        clear = 1.25
        if abs(way.median.seconds - other.median.seconds) < 0.1:
            return None
    if 1 / clear <= ratio <= clear:
        return None
    return ratio


def speed(comparison: Comparison) -> list[str]:
    """How fast the best parallel scan was, compared with the sequential one."""
    best = comparison.best
    sequential = comparison.sequential
    sentences = []
    # With one page, each segment has one, too. Otherwise the table has grown.
    if sequential.median.pages == 1 and best.median.pages == best.segment_count:
        sentences.append("The whole table fits in one page.")
    ratio = speedup(best, sequential)
    if ratio is None:
        sentences.append(f"The {best.name} was not clearly faster.")
        if len(best.runs) == 1:
            sentences.append("One run cannot show a small difference: try --runs 5.")
    elif ratio > 1:
        sentences.append(f"The {best.name} was {ratio:.1f} times as fast.")
    else:
        sentences.append(
            f"The {best.name} was slower: it took {1 / ratio:.1f} times as long."
        )
    return sentences


def causes(comparison: Comparison, plain: bool) -> list[str]:
    """What kept the best parallel scan from being faster, as far as it was seen."""
    if comparison.best.throttled_requests:
        return []  # `throttling` has said it
    best = comparison.best.median
    sentences = []
    # The CPU is the limit if it was busy for most of the time.
    if best.cpu_seconds > 0.7 * best.seconds:
        sentences.append(
            "This machine's CPU was the limit: it worked for "
            f"{best.cpu_seconds:.2f} s in {best.seconds:.2f} s."
        )
        if plain and best.cpu_seconds < 1.2 * best.seconds:  # about one core
            sentences.append(
                "botocore's parser is Python code, and only one thread at a time can "
                "run Python code (the GIL). So more threads do not parse faster."
            )
    return [*sentences, *slowest_segment(best), *more_segments(comparison)]


def slowest_segment(metrics: Metrics) -> list[str]:
    """Whether one segment took most of the time, and twice as long as any other."""
    if len(metrics.segments) < 2:
        return []
    seconds = {number: each.seconds for number, each in metrics.segments.items()}
    slowest = max(seconds, key=lambda number: seconds[number])
    next_seconds = max(seconds[number] for number in seconds if number != slowest)
    if seconds[slowest] < metrics.seconds / 2 or seconds[slowest] < 2 * next_seconds:
        return []
    return [
        f"Segment {slowest} alone took {seconds[slowest]:.2f} of the "
        f"{metrics.seconds:.2f} s."
    ]


def more_segments(comparison: Comparison) -> list[str]:
    """What a series, such as 2, 4 and 8 segments, tells about more segments."""
    if len(comparison.parallel) < 2:
        return []
    before, last = comparison.parallel[-2:]
    if comparison.best is not last:
        count = segments_text(comparison.best.segment_count)
        return [f"More than {count} gained nothing."]
    step = speedup(last, before)
    if step is None:
        return []
    # Twice as many segments are at best twice as fast. Half of that gain is enough:
    # from 2 to 4 segments, 1.5 times as fast.
    largest_step = last.segment_count / before.segment_count
    if step - 1 < (largest_step - 1) / 2:
        return []
    return [
        f"From {before.segment_count:,} to {last.segment_count:,} segments it became "
        f"{step:.1f} times as fast: try more segments."
    ]


def cost(comparison: Comparison) -> list[str]:
    """How much more capacity the best parallel scan consumed."""
    before = comparison.sequential.median.consumed_rcu
    best = comparison.best.median
    if before is None or best.consumed_rcu is None or best.consumed_rcu <= before:
        return []
    more_rcu = best.consumed_rcu - before
    sentence = (
        f"The {comparison.best.name} consumed {more_rcu:,.1f} RCU more than the "
        "sequential scan"
    )
    # Rounding up to 4 KB adds less than half an RCU to a page. (A consistent read may
    # add twice as much. Then no reason is given.)
    if more_rcu <= best.pages / 2:
        return [f"{sentence}: the cost of each page is rounded up."]
    return [f"{sentence}."]


def segments_text(count: int) -> str:
    return "1 segment" if count == 1 else f"{count:,} segments"


def times_text(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


# ---------------------------------------------------------------------------
# The result
# ---------------------------------------------------------------------------


def compared_speed(comparison: Comparison, way: Way) -> float | None:
    """How many times as fast a way was as the sequential scan, if that can be told."""
    if comparison.interrupted is not None or read_different_items(comparison):
        return None
    if way is comparison.sequential:
        return 1.0
    return speedup(way, comparison.sequential)


def result_text(comparison: Comparison, table: Table, sentences: list[str]) -> str:
    """The result for a person."""
    capacity = "on demand"
    if table.read_capacity is not None:
        capacity = f"{table.read_capacity:,} RCU a second"
    facts = (
        f"{table.name}: about {table.item_count:,} items, "
        f"{table.size_bytes / 2**20:,.1f} MB, {capacity}"
    )
    parts = [wrap(facts)]
    if comparison.sequential.runs:
        parts.append(side_by_side(comparison))
    parts.append("\n".join(wrap(sentence) for sentence in sentences))
    if comparison.interrupted is None:
        parts.append(timeline(comparison.sequential.median, comparison.best.median))
    return "\n\n".join(parts)


def side_by_side(comparison: Comparison) -> str:
    """The metrics: a column for each way, a row for each metric."""
    ways = [way for way in comparison.ways if way.runs]
    columns = [column(way, compared_speed(comparison, way)) for way in ways]
    # Some rows are only in some columns, such as the throttled requests.
    names: list[str] = []
    for each in columns:
        names += [name for name in each if name not in names]
    rows = [[name, *(each.get(name, "") for each in columns)] for name in names]
    headers = ["", "sequential"]
    headers += [segments_text(way.segment_count).replace(" ", "\n") for way in ways[1:]]
    tabulate.MIN_PADDING = 0  # so that five scans fit in 80 columns
    alignment = ["left"] + ["right"] * len(ways)
    return tabulate.tabulate(rows, headers, disable_numparse=True, colalign=alignment)


def column(way: Way, times_as_fast: float | None) -> dict[str, str]:
    """The rows of one way: names and texts."""
    metrics = common.metrics_rows(way.median)
    rows = {"Total execution time": metrics.pop("Total execution time")}
    if len(way.runs) > 1:
        rows["Fastest run"] = f"{way.by_time[0].seconds:.2f} s"
        rows["Slowest run"] = f"{way.by_time[-1].seconds:.2f} s"
    if times_as_fast is not None:
        digits = ".1f" if times_as_fast >= 1 else ".2g"  # such as 2.7, or 0.0046
        rows["Times as fast"] = f"{times_as_fast:{digits}}"
    return {**rows, **metrics}


def wrap(text: str) -> str:
    return textwrap.fill(text, max(20, shutil.get_terminal_size().columns))


def result_json(
    comparison: Comparison, table: Table, sentences: list[str], workers: int | None
) -> dict[str, Any]:
    """The result for a program."""
    results = []
    for way in comparison.ways:
        if not way.runs:
            continue
        metrics = common.metrics_json(
            way.median,
            segments=way.median.segments or {0: way.median},
            mode="sequential" if way.total_segments is None else "parallel",
            table_name=table.name,
            total_segments=way.segment_count,
            workers=min(workers or DEFAULT_WORKERS, way.segment_count),
        )
        metrics["runs"] = [run.seconds for run in way.runs]
        metrics["speedup"] = compared_speed(comparison, way)
        results.append(metrics)
    return {
        "table": asdict(table),
        "results": results,
        "conclusion": " ".join(sentences),
    }


# ---------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Scan a DynamoDB table sequentially and in parallel, and compare.",
        epilog="example: python compare.py --total-segments 2 4 8 --runs 3",
        allow_abbrev=False,
    )
    lab = parser.add_argument_group("the lab")
    lab.add_argument(
        "--total-segments",
        type=common.whole_number(1, 1_000_000),  # API reference, Scan
        nargs="+",
        default=[4],
        metavar="N",
        help="a parallel scan in N segments, for each N (default: 4)",
    )
    add_workers_flag(lab)
    lab.add_argument(
        "--runs",
        type=common.whole_number(1, 1000),
        default=1,
        metavar="R",
        help="scan R times in each way, and show the median run (default: 1)",
    )
    lab.add_argument(
        "--plain-boto3",
        action="store_true",
        help="let botocore parse the items, as other programs do",
    )
    common.add_scan_flags(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    segment_counts = sorted(set(args.total_segments))
    client = common.connect(
        args.region, args.profile, args.endpoint_url, plain=args.plain_boto3
    )
    table = describe(client, args.table_name)
    scans = args.runs * (1 + len(segment_counts))
    if args.index_name is None:  # how large an index is, is not known
        common.say(wrap(cost_text(table, scans, args.consistent_read)), sys.stderr)

    request = common.request_from(args)
    comparison = compare(client, request, segment_counts, args.workers, args.runs)
    sentences = conclusion(comparison, args.plain_boto3)
    if args.output == "json":
        text = json.dumps(result_json(comparison, table, sentences, args.workers))
    else:
        text = result_text(comparison, table, sentences)
    return common.print_result(text, comparison.interrupted is None)


if __name__ == "__main__":
    sys.exit(common.run_script(main))
