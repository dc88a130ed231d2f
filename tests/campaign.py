"""The fault campaign: whatever happens on the way, is every item there, once, and accounted for?

python tests/campaign.py [--seeds 50] [--fault-rate 0.2]

Every seed is a scan for each way of scanning: one worker, 4 and 16, in threads and in processes;
a few go through the command line with --executor process. A local lab answers a Scan with a fault
at that rate. Items are compared by content with the table's own, and the scan's metrics with the
server's log. Ends with 1 if anything is lost, is there twice, or is not as the log has it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import queue
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from local_dynamodb import HIDDEN, TABLE_NAME, GameTable, Lab, Settings, serve, settings_for_aws
from running import result
from tabulate import tabulate

from common import Connection, Scan, ScanError, json_lines
from parallel_scan import parallel_scan
from sequential_scan import sequential_scan

ITEMS, PAGE = 500, 25  # some twenty pages, so some five faults, in the smallest scan
WORKERS = (1, 4, 16)
LANES, PROCESSES = 8, 4  # scans at a time: most of their time is waiting to try again
COMMANDS = 1  # seeds that go through the command line, where each scan starts its own processes
RETRIED = ("500", "reset", "truncated", "bad-crc")  # by botocore; the last three after payment
THROTTLE = "ProvisionedThroughputExceededException"


@dataclass
class Findings:
    """What scans came to. `differences` are between a scan's metrics and the server's log."""

    scans: int = 0
    items: int = 0
    lost: int = 0
    twice: int = 0
    paid_rcu: float = 0.0
    lost_rcu: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.twice or self.differences)

    def add(self, other: Findings) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def table(self) -> str:
        kinds = ", ".join(f"{kind}: {self.faults[kind]:,}" for kind in sorted(self.faults))
        return tabulate(
            [
                ("Faults injected", f"{self.faults.total():,} ({kinds})"),
                ("Scans run", f"{self.scans:,}"),
                ("Items compared", f"{self.items:,}"),
                ("Items lost", f"{self.lost:,}"),
                ("Items twice", f"{self.twice:,}"),
                ("RCU paid", f"{self.paid_rcu:,.1f}"),
                ("of that, for pages lost on the way", f"{self.lost_rcu:,.1f}"),
                ("Metrics not as in the server's log", f"{len(self.differences):,}"),
            ],
            disable_numparse=True,
        )


# --- What came, and what should have --------------------------------------------------------------


def contents(items: Iterable[Any]) -> Counter[str]:
    """How often each item is there, told by its content."""
    return Counter(json.dumps(item, sort_keys=True) for item in items)


def saved_items(lines: bytes) -> list[Any]:
    """The items of what --save writes."""
    return [json.loads(line)["Item"] for line in lines.splitlines()]


def own_items(table: GameTable) -> list[Any]:
    """All of the table's items, in its order, without a scan."""
    whole = bytes(table.text[: table.offsets[-1]])
    items: list[Any] = json.loads(b"[" + whole.rstrip(b",") + b"]")
    return items


def findings(
    name: str,
    own: Counter[str],
    log: Sequence[dict[str, Any]],
    metrics: dict[str, Any],
    saved: bytes,
) -> Findings:
    """Hold one scan against the table's own items and against the server's log of it."""
    requests = [entry for entry in log if entry["operation"] == "Scan"]
    outcomes = Counter(entry["outcome"] for entry in requests)
    paid = {
        outcome: sum(entry["rcu"] for entry in requests if entry["outcome"] == outcome)
        for outcome in outcomes
    }
    got = contents(saved_items(saved))
    expected = {
        "complete": True,
        "pages": outcomes["ok"],
        "items": sum(entry["items"] for entry in requests if entry["outcome"] == "ok"),
        "consumed_rcu": paid.get("ok", 0),
        "throttled_requests": outcomes[THROTTLE],
        "retried_requests": sum(outcomes[fault] for fault in RETRIED),
    }
    received_and_lost = metrics["consumed_rcu"] + sum(paid.get(fault, 0) for fault in RETRIED)
    differences = [
        f"{name}: {key} is {metrics[key]}, by the log {value}"
        for key, value in (*expected.items(), ("paid_rcu", sum(paid.values())))
        if metrics.get(key, received_and_lost) != value
    ]
    return Findings(
        scans=1,
        items=got.total(),
        lost=(own - got).total(),
        twice=(got - own).total(),
        paid_rcu=sum(paid.values()),
        lost_rcu=sum(paid.values()) - metrics["consumed_rcu"],
        faults=Counter({fault: outcomes[fault] for fault in (THROTTLE, *RETRIED)}),
        differences=differences,
    )


# --- The scans ------------------------------------------------------------------------------------


def scan_in(lab: Lab, workers: int, executor: Executor | None) -> tuple[dict[str, Any], bytes]:
    """A scan in this process, or fetched in `executor`: its metrics, and its items as saved."""
    lines: list[bytes] = []
    connection = Connection(endpoint_url=lab.endpoint_url, connections=max(WORKERS))
    request = {"TableName": TABLE_NAME, "Limit": PAGE}
    scan = Scan(connection, request, each_page=json_lines, collect=lines.append, executor=executor)
    metrics = sequential_scan(scan) if workers == 1 else parallel_scan(scan, workers, workers)
    return metrics.as_json(), b"".join(lines)


def scan_by_command(lab: Lab, workers: int) -> tuple[dict[str, Any], bytes]:
    """The same through the command line, in processes of its own."""
    segments = ("--total-segments", str(workers), "--workers", str(min(workers, PROCESSES)))
    with tempfile.TemporaryDirectory() as folder:
        save = Path(folder) / "items"
        flags = ("--executor", "process", "--page-size", str(PAGE), "--save", str(save))
        return result(lab.endpoint_url, "parallel_scan.py", *segments, *flags), save.read_bytes()


def campaign(seeds: int, fault_rate: float) -> Findings:
    """Run it all, several scans at a time. Raises ScanError if a scan fails."""
    settings = Settings(
        items=ITEMS, latency_ms=0, ms_per_mb=0, read_capacity=0, fault_rate=fault_rate
    )
    ways = ["thread"] * seeds + ["process"] * seeds + ["command"] * min(seeds, COMMANDS)
    with contextlib.ExitStack() as running:
        labs: queue.SimpleQueue[Lab] = queue.SimpleQueue()
        for _ in range(LANES):
            labs.put(running.enter_context(serve(settings)))
        own = contents(own_items(GameTable(ITEMS)))
        context = multiprocessing.get_context("spawn")
        processes = running.enter_context(ProcessPoolExecutor(PROCESSES, context))

        def one(way: str, seed: int, workers: int) -> Findings:
            lab = labs.get()
            lab.chance.seed(seed * 1000 + workers)
            lab.requests.clear()
            if way == "command":
                metrics, saved = scan_by_command(lab, workers)
            else:
                metrics, saved = scan_in(lab, workers, processes if way == "process" else None)
            log = list(lab.requests)
            labs.put(lab)
            return findings(f"seed {seed}, {workers} workers, {way}", own, log, metrics, saved)

        lanes = running.enter_context(ThreadPoolExecutor(LANES))
        jobs = [
            lanes.submit(one, way, number % seeds, workers)
            for number, way in enumerate(ways)
            for workers in WORKERS
        ]
        total = Findings()
        for job in jobs:
            total.add(job.result())
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description="Scan through faults, and compare every item.")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--fault-rate", type=float, default=0.2)
    args = parser.parse_args()
    for name in HIDDEN:
        os.environ.pop(name, None)
    os.environ.update(settings_for_aws("http://127.0.0.1:9"))  # each scan names its own endpoint
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # or each scan would draw its progress
            total = campaign(args.seeds, args.fault_rate)
    except ScanError as error:
        print(f"error: a scan failed: {error.message}", file=sys.stderr)
        return 1
    print(total.table())
    print(*total.differences, sep="\n")
    return 0 if total.clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
