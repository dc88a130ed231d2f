"""The fault campaign: whatever happens on the way, is every item there, once, and accounted for?

python tests/campaign.py [--seeds 50] [--fault-rate 0.2]

Every seed is a scan with one worker, one with 4 and one with 16, in threads; every fifth seed also
fetches its pages in processes, and one goes through the command line, with --save. A local lab
answers a Scan with a fault at that rate. Items are compared by content with the table's own, and
the scan's metrics with the server's log. Ends with 1 if anything is lost, is there twice, or is not
as the log has it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import multiprocessing
import os
import queue
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from botocore.exceptions import BotoCoreError, ClientError
from items import THROTTLE, contents, instant, lab_items, saved_items
from local_dynamodb import HIDDEN, TABLE_NAME, Lab, serve, settings_for_aws
from running import result
from tabulate import tabulate

from common import Connection, Json, Scan, ScanError, json_lines
from parallel_scan import parallel_scan
from sequential_scan import sequential_scan

ITEMS = 500
PAGE = 25  # some twenty pages, so some five faults, in the smallest scan
WORKERS = (1, 4, 16)
LANES = 8  # scans at a time: most of their time is waiting to try again
PROCESSES = 2
RETRIED = ("500", "reset", "truncated", "bad-crc")  # by botocore; the last three after payment
Way = Callable[[Lab, int], tuple[Json, bytes]]  # a scan's metrics, and its items as saved


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
        rows = {
            "Faults injected": f"{sum(self.faults.values()):,} ({kinds})",
            "Scans run": f"{self.scans:,}",
            "Items compared": f"{self.items:,}",
            "Items lost": f"{self.lost:,}",
            "Items twice": f"{self.twice:,}",
            "RCU paid": f"{self.paid_rcu:,.1f}",
            "of that, for pages lost on the way": f"{self.lost_rcu:,.1f}",
            "Metrics not as in the server's log": f"{len(self.differences):,}",
        }
        return tabulate(rows.items(), disable_numparse=True)


# --- What came, and what should have --------------------------------------------------------------


def findings(
    name: str, own: Counter[str], log: list[Json], metrics: Json, saved: bytes
) -> Findings:
    """Hold one scan against the table's own items and against the server's log of it."""
    outcomes: Counter[str] = Counter()
    items: Counter[str] = Counter()
    paid: dict[str, float] = dict.fromkeys(("ok", THROTTLE, *RETRIED), 0.0)
    for entry in log:
        if entry["operation"] == "Scan":
            outcomes[entry["outcome"]] += 1
            items[entry["outcome"]] += entry["items"]
            paid[entry["outcome"]] += entry["rcu"]
    expected = {
        "complete": True,
        "pages": outcomes["ok"],
        "items": items["ok"],
        "consumed_rcu": paid["ok"],
        "throttled_requests": outcomes[THROTTLE],
        "retried_requests": sum(outcomes[fault] for fault in RETRIED),
    }
    got = contents(saved_items(saved))
    return Findings(
        scans=1,
        items=sum(got.values()),
        lost=sum((own - got).values()),
        twice=sum((got - own).values()),
        paid_rcu=sum(paid.values()),
        lost_rcu=sum(paid.values()) - paid["ok"],
        faults=Counter({fault: outcomes[fault] for fault in (THROTTLE, *RETRIED)}),
        differences=[
            f"{name}: {key} is {metrics[key]}, by the log {value}"
            for key, value in expected.items()
            if metrics[key] != value
        ],
    )


# --- The scans ------------------------------------------------------------------------------------


def scan_here(executor: Executor | None, lab: Lab, workers: int) -> tuple[Json, bytes]:
    """In threads, which fetch in the executor if there is one."""
    request = {"TableName": TABLE_NAME, "Limit": PAGE}
    connection = Connection(endpoint_url=lab.endpoint_url)
    scan = Scan(connection, request, each_page=json_lines, executor=executor)
    lines: list[bytes] = []
    if workers == 1:
        metrics = sequential_scan(scan, lines.append)
    else:
        metrics = parallel_scan(scan, workers, workers, collect=lines.append)
    return asdict(metrics), b"".join(lines)


def scan_by_command(lab: Lab, workers: int) -> tuple[Json, bytes]:
    """Through the command line, into a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "items"
        flags = ["--page-size", str(PAGE), "--save", str(file)]
        if workers == 1:
            metrics = result(lab.endpoint_url, "sequential_scan.py", *flags)
        else:
            flags += ["--total-segments", str(workers)]
            metrics = result(lab.endpoint_url, "parallel_scan.py", *flags)
        return metrics, file.read_bytes()


def campaign(seeds: int, fault_rate: float) -> Findings:
    """Run it all, several scans at a time. Raises what a scan raises."""
    model = instant(ITEMS, fault_rate=fault_rate)
    own = contents(lab_items(ITEMS))
    with contextlib.ExitStack() as running:
        labs: queue.SimpleQueue[Lab] = queue.SimpleQueue()
        for _ in range(LANES):
            labs.put(running.enter_context(serve(model)))
        spawn = multiprocessing.get_context("spawn")
        processes = running.enter_context(ProcessPoolExecutor(PROCESSES, spawn))
        ways: dict[str, tuple[Way, range]] = {
            "threads": (functools.partial(scan_here, None), range(seeds)),
            "processes": (functools.partial(scan_here, processes), range(0, seeds, 5)),
            "command": (scan_by_command, range(1)),
        }

        def one(name: str, seed: int, workers: int) -> Findings:
            lab = labs.get()
            lab.chance.seed(seed * 1000 + workers)
            lab.requests.clear()
            try:
                metrics, saved = ways[name][0](lab, workers)
                log = list(lab.requests)
            finally:
                labs.put(lab)
            return findings(f"seed {seed}, {workers} workers, {name}", own, log, metrics, saved)

        lanes = running.enter_context(ThreadPoolExecutor(LANES))
        jobs = [
            lanes.submit(one, name, seed, workers)
            for name, (_, some_seeds) in ways.items()
            for seed in some_seeds
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
    except (ScanError, BotoCoreError, ClientError) as error:
        print(f"error: a scan failed: {error}", file=sys.stderr)
        return 1
    print(total.table())
    print(*total.differences, sep="\n")
    return 0 if total.clean else 1


if __name__ == "__main__":
    raise SystemExit(main())
