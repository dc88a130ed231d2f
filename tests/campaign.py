"""Scan through faults, and hold each scan against the table and the server's log.

    python tests/campaign.py --runs 20

The local lab answers a fifth of the Scans with a fault. Each run scans with 16 workers,
once in this process and once through the command line. Every item has to arrive once,
and the metrics have to be those of the server's log. The first scan where they are not
ends the campaign. --seed draws the same faults again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from items import (
    contents,
    counts_in,
    instant,
    lab_items,
    outcomes,
    read_segments,
    saved_items,
    scans_of,
)
from local_dynamodb import lab_environment, serve
from model import Lab
from running import shell

from common import counts_json

ITEMS = 500
PAGE = 25
SEGMENTS = 16
Scanned = tuple[dict[str, Any], list[Any]]  # the counts of a scan, and its items


def scan_in_threads(lab: Lab) -> Scanned:
    metrics, items = read_segments(lab, SEGMENTS, Limit=PAGE)
    return counts_json(metrics), items


def scan_by_command(lab: Lab) -> Scanned:
    flags = f"--page-size {PAGE} --total-segments {SEGMENTS} --output json --save -"
    ended = shell(f"python parallel_scan.py {flags}", at=lab)
    return json.loads(ended.err), saved_items(ended.out)


WAYS: dict[str, Callable[[Lab], Scanned]] = {
    "a call": scan_in_threads,
    "a command": scan_by_command,
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
        with serve(instant(ITEMS, fault_rate=fault_rate, seed=other_faults)) as lab:
            counts, items = scan(lab)
        assert contents(items) == expected, f"seed {seed}, {name}: other items"
        logged = counts_in(scans_of(lab))
        counted = {count: counts[count] for count in logged}
        assert counted == logged, f"seed {seed}, {name}: {counted}, but {logged}"
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
    # Dummy credentials and a region, and no setting of the user's.
    environment = lab_environment("http://127.0.0.1:9")
    os.environ.clear()
    os.environ.update(environment)
    for seed in range(first, first + args.runs):
        with contextlib.redirect_stderr(io.StringIO()):  # without progress
            total = campaign(seed, args.fault_rate)
        answers = [f"{outcome} {count}" for outcome, count in sorted(total.items())]
        print(f"--seed {seed}: {', '.join(answers)}")
    print(f"{args.runs * len(WAYS)} scans: every item once, metrics as in the log")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
