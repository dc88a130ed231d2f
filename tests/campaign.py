"""Scan through faults, and hold each scan against the table and the server's log.

    python tests/campaign.py --runs 20

The local lab answers a fifth of the Scans with a fault. Each run scans in threads
with 1, 4 and 16 workers, in processes, and through the command line. Every item has
to arrive once, and the metrics have to be those of the server's log. The first scan
where they are not ends the campaign. --seed repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from items import (
    Kept,
    assert_as_logged,
    contents,
    instant,
    lab_items,
    outcomes,
    saved_items,
    scans_of,
)
from local_dynamodb import TABLE_NAME, lab_environment, serve
from running import result

import common
from common import Client, Metrics, connect
from parallel_scan import parallel_scan, scan_segment

Json = dict[str, Any]
Scanned = tuple[Json, list[Any]]  # the counts of a scan, and its items

ITEMS = 500
PAGE = 25
SEGMENTS = 16
REQUEST = {"TableName": TABLE_NAME, "Limit": PAGE}


@lru_cache
def client_for(url: str) -> Client:
    """A client for all scans of this process."""
    return connect(endpoint_url=url)


def scan_in_threads(workers: int, url: str) -> Scanned:
    kept = Kept()
    metrics = parallel_scan(
        client_for(url),
        REQUEST,
        SEGMENTS,
        workers,
        open_output=kept,
    )
    return common.counts_json(metrics), kept.items()


def read_segment(url: str, segment: int) -> tuple[Metrics, list[Any]]:
    """Read one segment, in a process of the pool."""
    metrics = Metrics()
    items = []
    for page in scan_segment(client_for(url), REQUEST, segment, SEGMENTS, metrics):
        items += [json.loads(item) for item in page["Items"]]
    return metrics, items


def scan_in_processes(url: str) -> Scanned:
    total = Metrics()
    items: list[Any] = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawn) as pool:
        read = pool.map(partial(read_segment, url), range(SEGMENTS))
        for segment, (metrics, of_segment) in enumerate(read):
            total.add_segment(segment, metrics)
            items += of_segment
    return common.counts_json(total), items


def scan_by_command(url: str) -> Scanned:
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--page-size {PAGE} --total-segments {SEGMENTS} --save {folder}"
        counts = result(url, "parallel_scan.py", *flags.split())
        files = Path(folder).glob("segment-*.jsonl")
        lines = b"".join(file.read_bytes() for file in files)
    return counts, saved_items(lines)


WAYS: dict[str, Callable[[str], Scanned]] = {
    "1 worker": partial(scan_in_threads, 1),
    "4 workers": partial(scan_in_threads, 4),
    "16 workers": partial(scan_in_threads, 16),
    "2 processes": scan_in_processes,
    "--save": scan_by_command,
}


def campaign(seed: int, fault_rate: float) -> Counter[str]:
    """Scan in all ways. Return how often the server answered with each outcome.

    Raises AssertionError if an item was lost, came twice or was changed, or if the
    metrics are not those of the server's log.
    """
    total: Counter[str] = Counter()
    expected = contents(lab_items(ITEMS))
    for number, (name, scan) in enumerate(WAYS.items()):
        other_faults = seed * len(WAYS) + number
        settings = instant(ITEMS, fault_rate=fault_rate, seed=other_faults)
        with serve(settings) as lab:
            counts, items = scan(lab.endpoint_url)
        assert contents(items) == expected, f"seed {seed}, {name}: other items"
        assert_as_logged(counts, scans_of(lab))
        total += outcomes(lab)
    return total


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, help="of the first run; default: drawn")
    parser.add_argument("--fault-rate", type=float, default=0.2, metavar="P")
    args = parser.parse_args()
    first = random.randrange(1_000_000) if args.seed is None else args.seed
    # dummy credentials and a region, and nothing of the user's
    environment = lab_environment("http://127.0.0.1:9")
    os.environ.clear()
    os.environ.update(environment)
    for seed in range(first, first + args.runs):
        print(f"--seed {seed}: ", end="", flush=True)
        with contextlib.redirect_stderr(io.StringIO()):  # without progress
            total = campaign(seed, args.fault_rate)
        answers = [f"{outcome} {count}" for outcome, count in sorted(total.items())]
        print(", ".join(answers))
    print(f"{args.runs * len(WAYS)} scans: every item once, metrics as in the log")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
