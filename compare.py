"""Scan a DynamoDB table both ways, and show the metrics side by side.

python compare.py [--total-segments N ...] [--runs R] [--output json]; --help lists every flag.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

import common
from common import Connection, ScanMetrics
from parallel_scan import MOST_SEGMENTS, MOST_WORKERS, parallel_scan, ready, timeline, worker_flags
from sequential_scan import sequential_scan

LAB_RCU = 5  # what the lab's table is provisioned with
BURST_SECONDS = 300  # of unused capacity are kept (Developer Guide, burst capacity)
SAME = 1.05  # times within 5 % are as good as each other


# --- The table --------------------------------------------------------------------------------


@dataclass
class Table:
    """DescribeTable's facts; counts and sizes are some six hours old. Capacity None: on demand."""

    name: str
    item_count: int
    size_bytes: int
    read_capacity: int | None
    billing_mode: str

    @classmethod
    def described(cls, connection: Connection, name: str) -> Table:
        """Ask DynamoDB. Raises ScanError."""
        table = connection.describe(name)
        # A table created as provisioned has no summary (API reference, DescribeTable).
        mode = table.get("BillingModeSummary", {}).get("BillingMode", "PROVISIONED")
        rcu = table.get("ProvisionedThroughput", {}).get("ReadCapacityUnits") or None
        return cls(name, table.get("ItemCount", 0), table.get("TableSizeBytes", 0), rcu, mode)

    def facts(self, endpoint: str) -> str:
        """What the table is, in a line."""
        capacity = "on demand" if self.read_capacity is None else f"{self.read_capacity} RCU"
        return (f"{self.name} at {endpoint}: about {self.item_count:,} items, "
                f"{self.size_bytes / 1e6:,.1f} MB; read capacity: {capacity}")

    def cost(self, scans: int, consistent: bool, max_rcu: float | None = None) -> str:
        """What `scans` scans will take from the table, before they do."""
        one = self.size_bytes / 4096 * (1 if consistent else 0.5)
        text = f"{scans} scans of the whole table will consume about {scans * one:,.0f} RCU"
        if max_rcu:
            return f"{text}, at {max_rcu:g} a second in {scans * one / max_rcu:,.0f} s or more"
        if self.read_capacity is None:
            return f"{text}, billed by the request"
        burst = self.read_capacity * BURST_SECONDS
        text = f"{text}; unused capacity of {BURST_SECONDS} s would be {burst:,}"
        if scans * one <= burst:
            return text
        rest = (scans * one - burst) / self.read_capacity
        return f"{text}: throttled from scan {int(burst / one) + 1} on, for up to {rest:,.0f} s"


# --- The scans --------------------------------------------------------------------------------


@dataclass
class Result:
    """The runs of one way to scan. The median one stands for them all."""

    label: str
    runs: list[ScanMetrics] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return statistics.median(run.seconds for run in self.runs)

    @property
    def typical(self) -> ScanMetrics:
        return min(self.runs, key=lambda run: abs(run.seconds - self.seconds))

    @property
    def spread(self) -> tuple[float, float]:
        times = [run.seconds for run in self.runs]
        return min(times), max(times)

    @property
    def mark(self) -> str:
        """Why its time is not comparable, or nothing."""
        if not all(run.complete for run in self.runs):
            return "interrupted"
        return "throttled" if any(run.throttled_requests for run in self.runs) else ""

    def faster_than(self, other: Result) -> float:
        """How many times faster, by the medians."""
        return other.seconds / self.seconds

    def differs_from(self, other: Result) -> bool:
        """Whether they are further apart than the runs of either are from each other; of single
        runs, which show no spread, whether one took over 5 % longer.
        """
        (low, high), (least, most) = self.spread, other.spread
        if len(self.runs) == 1:
            return not 1 / SAME <= self.faster_than(other) <= SAME
        return high < least or most < low

    def as_json(self, sequential: Result) -> dict[str, Any]:
        return self.typical.as_json() | {
            "seconds": self.seconds,
            "items_per_second": self.typical.items / self.seconds,
            "runs": [run.seconds for run in self.runs],
            "speedup": self.faster_than(sequential),
            "difference": pace_in_words(self, sequential),
        }


def compare(args: argparse.Namespace, counts: Sequence[int]) -> list[Result]:
    """Run every scan `args.runs` times, forth and back, so that warmth and burst favour none.

    Ends early, with what there is, when the user interrupts. Raises ScanError.
    """
    results = [Result("Sequential"), *(Result(segments_of(each)) for each in counts)]
    ways = list(zip(results, [0, *counts], strict=True))
    for run in range(args.runs):
        for result, segments in reversed(ways) if run % 2 else ways:
            workers = min(args.workers or MOST_WORKERS, max(segments, 1))
            scan = common.scan_from(args, workers)
            with ready(scan, workers, args.executor if segments else "thread"):
                if segments:
                    metrics = parallel_scan(scan, segments, workers)
                else:
                    metrics = sequential_scan(scan)
            result.runs.append(metrics)
            if not metrics.complete:
                return [result for result in results if result.runs]
    return results


def segments_of(count: int) -> str:
    return f"{count:,} segment{'s' * (count != 1)}"


def best(results: Sequence[Result]) -> Result:
    """The fewest segments within 5 % of the fastest."""
    fastest = min(result.seconds for result in results)
    return next(result for result in results if result.seconds <= fastest * SAME)


# --- What they say ----------------------------------------------------------------------------


def change(before: float | None, after: float | None) -> str:
    """A difference in words."""
    if before is None or after is None:
        return "n/a"
    if before == after:
        return "same"
    if not before:
        return f"{after:+,.0f}"
    return "about the same" if abs(after / before - 1) < 0.0005 else f"{after / before - 1:+.1%}"


def pace_in_words(result: Result, sequential: Result) -> str:
    """How much faster or slower, where that can be told."""
    if mark := result.mark or sequential.mark:
        return f"{mark}: not comparable"
    if not result.differs_from(sequential):
        return "no measurable difference"
    times = result.faster_than(sequential)
    return f"{times:.1f}x faster" if times > 1 else f"{1 / times:.1f}x slower"


def side_by_side(results: Sequence[Result]) -> str:
    """The table: a row a metric, a column a scan, and how the best differs from the sequential."""
    sequential, chosen = results[0], best(results[1:] or results)
    rows = []
    for cells in zip(*(result.typical.rows() for result in results), strict=True):
        label, texts = cells[0][0], [text for _, _, text in cells]
        values = {result.label: value for result, (_, value, _) in zip(results, cells, strict=True)}
        words = change(values[sequential.label], values[chosen.label])
        if label == "Total execution time":
            words = pace_in_words(chosen, sequential)
            if len(sequential.runs) > 1:
                texts = ["{:.2f} s ({:.2f} to {:.2f})".format(result.seconds, *result.spread)
                         for result in results]
        rows.append([label, *texts, words][: 2 * len(results)])  # one scan has no difference
    heads = [result.label + (f" ({result.mark})" if result.mark else "") for result in results]
    last = "Difference" if len(results) == 2 else f"{chosen.label}: difference"
    return tabulate(rows, ["", *heads, last][: 2 * len(results)], disable_numparse=True)


def verdict(results: Sequence[Result], executor: str) -> str:
    """One line in plain English."""
    sequential, chosen = results[0], best(results[1:] or results)
    marks = {result.mark for result in results}
    if "interrupted" in marks:
        return "Interrupted: this is what was measured until then."
    if sequential.mark or chosen.mark:
        return "Throttled: the table's capacity set the time, not the way of scanning."
    if sequential.typical.pages == 1:
        saved = sequential.seconds - chosen.seconds
        return ("The whole table fits in one page, which one request reads: there is little to "
                f"gain (here {abs(saved):.2f} s {'less' if saved > 0 else 'more'}), and each "
                "segment costs a request.")
    rcu = change(sequential.typical.consumed_rcu, chosen.typical.consumed_rcu)
    words, limited = pace_in_words(chosen, sequential), limit(chosen.typical, executor)
    return f"{chosen.label}: {words}, consumed capacity {rcu}; the limit now is the {limited}."


def warnings(results: Sequence[Result]) -> list[str]:
    """What to know before trusting the numbers."""
    said, one, best_one = [], results[0].typical, best(results[1:] or results).typical
    found = {(run.items, run.scanned) for result in results for run in result.runs if run.complete}
    if len(found) > 1:
        said.append(f"The scans found from {min(found)[0]:,} to {max(found)[0]:,} items: the table "
                    "changed under them.")
    if any(result.mark == "throttled" for result in results):
        said.append("The time of a throttled scan has its wait for capacity in it.")
    if best_one.complete and change(one.consumed_rcu, best_one.consumed_rcu).endswith("%"):
        empty = sum(not segment.scanned for segment in best_one.segments)
        said.append(f"{best_one.consumed_rcu:,.1f} RCU in {segments_of(best_one.total_segments)}, "
                    f"{one.consumed_rcu:,.1f} in one scan: each page is rounded up to 4 KB, and "
                    f"{best_one.pages:,} pages came, not {one.pages:,} (empty segments: {empty}).")
    return said


def limit(metrics: ScanMetrics, executor: str) -> str:
    """What set the time: the client, if its cores were computing for most of it, or the table."""
    cores = 1 if executor == "thread" else min(metrics.workers, os.cpu_count() or 1)
    return "client" if metrics.cpu_seconds > 0.8 * metrics.seconds * cores else "table"


def advice(table: Table, results: Sequence[Result], executor: str, flags: str = "") -> list[str]:
    """What to try next, by what was measured: three lines at most, the most telling first.

    `flags` are what the commands need to reach the same table.
    """
    sequential, chosen = results[0].typical, best(results[1:]).typical
    most, count = results[-1].typical.total_segments, chosen.total_segments
    sizes = [segment.scanned for segment in chosen.segments]
    uneven = max(sizes) * len(sizes) / max(1, sum(sizes))
    rcu, lines = table.read_capacity, []
    lab = os.environ.get("LOCAL_LAB", "")  # what the local lab, if it runs this, was started with
    if rcu is not None and rcu < LAB_RCU:
        lines.append(f"The table has {rcu} RCU, the lab's has {LAB_RCU}: "
                     f"{lab}./restore_capacity.sh {shlex.quote(table.name)}")
    if any(result.mark == "throttled" for result in results):
        lines.append("Capacity is the bottleneck; to keep within it, and leave others theirs: "
                     f"{lab}python parallel_scan.py{flags} --max-rcu {rcu or 100}")
    if sequential.pages == 1:
        lines.append("A larger table has something to split: python tests/local_dynamodb.py "
                     "--items 200000 --read-capacity 0 compare.py")
    elif limit(chosen, executor) == "client" and executor == "thread":
        lines.append("The client's CPU is the bottleneck; to use every core: "
                     f"{lab}python compare.py{flags} --executor process "
                     f"--total-segments {count}")
    if uneven > 2 and chosen.workers == len(sizes) > 1 and sequential.pages > 1:
        lines.append(f"The largest segment is {uneven:.1f} times the mean, {sizes.count(0)} of "
                     f"{len(sizes)} are empty; to let free workers take the next of many: "
                     f"{lab}python compare.py{flags} --workers {count} "
                     f"--total-segments {min(count * 8, MOST_SEGMENTS)}")
    if most > count and not any(result.mark for result in results):
        lines.append(f"{segments_of(most)} are no faster than {count}: "
                     f"{lab}python parallel_scan.py{flags} --total-segments {count}")
    return lines[:3]


def table_flags(args: argparse.Namespace) -> str:
    """The flags that lead to the same table, for commands to paste."""
    name = None if args.TableName == "GameLeaderboard" else args.TableName
    given = {"--table-name": name, "--region": args.region, "--profile": args.profile,
             "--endpoint-url": args.endpoint_url}
    return "".join(f" {flag} {shlex.quote(value)}" for flag, value in given.items() if value)


@common.command
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = common.scan_parser("Scan a table both ways, and compare.", save=False)
    flag = parser.add_argument
    flag("--total-segments", type=common.number(1, MOST_SEGMENTS), nargs="+", default=[4],
         metavar="N", help="a parallel scan, and a column, for each (default: 4)")
    flag("--runs", type=common.number(1, 1000), default=1, metavar="R",
         help="run each scan R times, and show the median and the spread")
    worker_flags(parser)
    args = parser.parse_args(argv)
    counts = sorted(set(args.total_segments))
    connection = common.scan_from(args).connection
    table = Table.described(connection, args.TableName)
    scans = args.runs * (1 + len(counts))
    cost = table.cost(scans, bool(args.ConsistentRead), args.max_rcu)
    print(cost, file=sys.stderr)
    results = compare(args, counts)
    whole = len(results) == 1 + len(counts) and all(r.mark != "interrupted" for r in results)
    said, noted = verdict(results, args.executor), warnings(results)
    advised = advice(table, results, args.executor, table_flags(args)) if whole else []
    if args.output == "json":
        print(json.dumps({
            "table": vars(table),
            "endpoint_url": connection.client().meta.endpoint_url,
            "cost": cost,
            "results": [result.as_json(results[0]) for result in results],
            "best": best(results[1:]).typical.total_segments if whole else None,
            "verdict": said,
            "warnings": noted,
            "advice": advised,
        }))
    else:
        print(table.facts(connection.client().meta.endpoint_url), end="\n\n")
        print(side_by_side(results), said, sep="\n\n", end="\n\n")
        print(timeline([results[0].typical, best(results[1:] or results).typical]))
        print(*(f"- {line}" for line in noted + advised), sep="\n")
    return 0 if whole else 130


if __name__ == "__main__":
    common.leave(main())
