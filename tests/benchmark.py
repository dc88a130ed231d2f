"""Measure the scans of this lab beside plain boto3, other packages, and the floor.

    pip install -r requirements.txt -r tests/benchmark-requirements.txt
    python tests/benchmark.py --runs 3

    ours          sequential_scan (1 worker), and parallel_scan (as many segments as
                  workers)
    ours-count    the same with Select=COUNT
    ours-save     parallel_scan with --save FOLDER
    ours-larger   the same as ours, of a table four times as large
    ours-plain    parallel_scan with connect(plain=True): botocore parses the items
    boto3-resource
                  Table.scan in threads that collect all items: as most people write it
    boto3-client  Client.scan in threads that only count
    aws-dynamodb-parallel-scan, awswrangler, pydynox
                  packages from PyPI, each with its own parallel scan
    floor         http.client and json.loads in threads, without garbage collection

The local lab answers each page after 50 ms and never throttles. Each measurement is a
process of its own. It imports, connects and sends a first request before the clock
starts. A row has the medians of all runs, and the highest peak of memory. CPU time is
of all threads. --python PATH measures our scans with another interpreter, too.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import boto3
from botocore.config import Config
from local_dynamodb import TABLE_NAME, lab_environment
from tabulate import tabulate

from common import connect
from parallel_scan import SaveFolder, parallel_scan
from sequential_scan import sequential_scan

PAGE_MS = 50
LARGER = 4  # so many times the items, for ours-larger

# --- Contenders -----------------------------------------------------------------------
# Each function connects, and returns the scan to be measured. The scan returns how many
# items it read, and how many pages if it knows.

Scan = Callable[[], "tuple[int, int]"]


def ours(workers: int, plain: bool = False, **more: Any) -> Scan:
    client = connect(plain=plain)
    client.describe_table(TableName=TABLE_NAME)
    request = {"TableName": TABLE_NAME, **more}

    def scan() -> tuple[int, int]:
        if workers == 1:
            metrics = sequential_scan(client, request)
        else:
            metrics = parallel_scan(client, request, workers, workers)
        return metrics.items, metrics.pages

    return scan


def ours_count(workers: int) -> Scan:
    return ours(workers, Select="COUNT")


def ours_plain(workers: int) -> Scan:
    return ours(workers, plain=True)


def ours_save(workers: int) -> Scan:
    client = connect()
    client.describe_table(TableName=TABLE_NAME)
    request = {"TableName": TABLE_NAME}
    folder = SaveFolder(tempfile.mkdtemp(dir="."), workers)
    folder.prepare(client, request)

    def scan() -> tuple[int, int]:
        metrics = parallel_scan(
            client, request, workers, workers, open_output=folder.open_segment
        )
        return metrics.items, metrics.pages

    return scan


def boto3_resource(workers: int) -> Scan:
    # Resources and sessions may not be shared by threads.
    tables = [
        boto3.Session().resource("dynamodb").Table(TABLE_NAME) for _ in range(workers)
    ]
    for table in tables:
        table.load()
    items: list[Any] = []

    def read_segment(segment: int) -> None:
        request = {"Segment": segment, "TotalSegments": workers}
        for page in pages(tables[segment].scan, request):
            items.extend(page["Items"])

    def scan() -> tuple[int, int]:
        in_threads(read_segment, workers)
        return len(items), 0

    return scan


def boto3_client(workers: int) -> Scan:
    client = new_client(workers)

    def count_segment(segment: int) -> int:
        request = {
            "TableName": TABLE_NAME,
            "Segment": segment,
            "TotalSegments": workers,
        }
        return sum(len(page["Items"]) for page in pages(client.scan, request))

    return lambda: (sum(in_threads(count_segment, workers)), 0)


def aws_dynamodb_parallel_scan(workers: int) -> Scan:
    peer = importlib.import_module("aws_dynamodb_parallel_scan")
    paginator = peer.get_paginator(new_client(workers))

    def scan() -> tuple[int, int]:
        found = paginator.paginate(TableName=TABLE_NAME, TotalSegments=workers)
        return sum(len(page["Items"]) for page in found), 0

    return scan


def awswrangler(workers: int) -> Scan:
    peer = importlib.import_module("awswrangler")
    new_client(workers)

    def scan() -> tuple[int, int]:
        items = peer.dynamodb.read_items(
            TABLE_NAME, allow_full_scan=True, as_dataframe=False, use_threads=workers
        )
        return len(items), 0

    return scan


def pydynox(workers: int) -> Scan:
    peer = importlib.import_module("pydynox")
    client = peer.DynamoDBClient(
        region=os.environ["AWS_REGION"],
        endpoint_url=os.environ["AWS_ENDPOINT_URL_DYNAMODB"],
    )
    client.sync_table_exists(TABLE_NAME)

    def scan() -> tuple[int, int]:
        items, _ = client.sync_parallel_scan(TABLE_NAME, total_segments=workers)
        return len(items), 0

    return scan


def floor(workers: int) -> Scan:
    host = os.environ["AWS_ENDPOINT_URL_DYNAMODB"].replace("http://", "")
    headers = {"X-Amz-Target": "DynamoDB_20120810.Scan"}
    gc.disable()

    def count_segment(segment: int) -> int:
        connection = HTTPConnection(host)

        def scan_page(**request: Any) -> Any:
            connection.request("POST", "/", json.dumps(request), headers)
            return json.loads(connection.getresponse().read())

        request = {
            "TableName": TABLE_NAME,
            "Segment": segment,
            "TotalSegments": workers,
        }
        return sum(len(page["Items"]) for page in pages(scan_page, request))

    return lambda: (sum(in_threads(count_segment, workers)), 0)


def new_client(workers: int) -> Any:
    """boto3's own client, after its first request."""
    config = Config(max_pool_connections=workers)
    client = boto3.client("dynamodb", config=config)
    client.describe_table(TableName=TABLE_NAME)
    return client


def pages(scan: Callable[..., Any], request: dict[str, Any]) -> Iterator[Any]:
    """The pages of a segment, by boto3's scan or one like it."""
    while True:
        page = scan(**request)
        yield page
        if "LastEvaluatedKey" not in page:
            return
        request["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def in_threads(read_segment: Callable[[int], Any], workers: int) -> list[Any]:
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(read_segment, range(workers)))


# What is measured, and with how many workers.
CONTENDERS: dict[str, tuple[Callable[[int], Scan], list[int]]] = {
    "ours": (ours, [1, 4, 8, 16]),
    "ours-count": (ours_count, [1, 4, 8, 16]),
    "ours-save": (ours_save, [1, 4, 8, 16]),
    "ours-larger": (ours, [1, 4, 8, 16]),
    "ours-plain": (ours_plain, [1, 8]),
    "boto3-resource": (boto3_resource, [8]),
    "boto3-client": (boto3_client, [1, 8]),
    "aws-dynamodb-parallel-scan": (aws_dynamodb_parallel_scan, [8]),
    "awswrangler": (awswrangler, [8]),
    "pydynox": (pydynox, [1, 4, 8, 16]),
    "floor": (floor, [1, 8]),
}
PACKAGES = ["aws-dynamodb-parallel-scan", "awswrangler", "pydynox"]

# --- Measurements ---------------------------------------------------------------------


class Measurement(NamedTuple):
    items: int
    pages: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    python: str  # its version, with a t if it is free-threaded


class Cell(NamedTuple):
    """What is measured, and by which interpreter."""

    name: str
    workers: int
    python: str = sys.executable


Results = dict[Cell, Measurement]


def measure_here(name: str, workers: int) -> Measurement:
    """Measure a contender in this process."""
    contender, _ = CONTENDERS[name]
    scan = contender(workers)
    started = time.perf_counter()
    cpu_started = time.process_time()
    items, read_pages = scan()
    seconds = time.perf_counter() - started
    cpu_seconds = time.process_time() - cpu_started
    free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")
    python = platform.python_version() + ("t" if free_threaded else "")
    return Measurement(items, read_pages, seconds, cpu_seconds, peak_mb(), python)


def peak_mb() -> float:
    """The most resident memory that this process had. (Linux)"""
    # getrusage() would not do: its peak begins with that of the parent process.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def measure(cell: Cell, items: int, environment: dict[str, str]) -> Measurement:
    """Measure in a process of its own, and check that it read every item."""
    command = [cell.python, str(Path(__file__).resolve())]
    command += ["--measure", cell.name, str(cell.workers)]
    with tempfile.TemporaryDirectory() as folder:
        output = subprocess.check_output(command, env=environment, cwd=folder)
        measured = Measurement(*json.loads(output))
        files = list(Path(folder).glob("*/segment-*.jsonl"))
        lines = sum(file.read_bytes().count(b"\n") for file in files)
    if measured.items != items or lines not in (0, items):
        raise SystemExit(f"{cell}: {measured.items:,} of {items:,} items")
    return measured


@contextmanager
def serving(items: int) -> Iterator[dict[str, str]]:
    """Serve the table in another process. Yields the environment that leads there."""
    flags = f"--items {items} --latency-ms {PAGE_MS} --ms-per-mb 0 --read-capacity 0"
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("local_dynamodb.py"), *flags.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    try:
        assert server.stdout
        # It prints lines such as: export AWS_ENDPOINT_URL_DYNAMODB=http://...
        for line in server.stdout:
            if "AWS_ENDPOINT_URL_DYNAMODB=" in line:
                yield lab_environment(line.strip().partition("=")[2])
                break
    finally:
        server.terminate()
        server.wait()


def benchmark(cells: list[Cell], items: int, runs: int) -> Results:
    """Measure the cells in turn, so many times. Returns the medians."""
    measured: dict[Cell, list[Measurement]] = {cell: [] for cell in cells}
    with serving(items) as environment:
        for run in range(runs):
            for cell in cells:
                print(f"run {run + 1}: {cell.name} {cell.workers}", file=sys.stderr)
                try:
                    measured[cell].append(measure(cell, items, environment))
                except subprocess.CalledProcessError:  # it has shown its traceback
                    print(f"{cell.name} failed and is left out", file=sys.stderr)
    return {cell: median(found) for cell, found in measured.items() if found}


def median(measurements: list[Measurement]) -> Measurement:
    """The medians of the times, and the highest peak of memory."""
    return measurements[0]._replace(
        seconds=statistics.median(one.seconds for one in measurements),
        cpu_seconds=statistics.median(one.cpu_seconds for one in measurements),
        peak_mb=max(one.peak_mb for one in measurements),
    )


# --- Tables ---------------------------------------------------------------------------


def table(results: Results) -> str:
    rows = [
        (
            cell.name,
            cell.workers,
            f"{one.seconds:.2f}",
            f"{one.items / one.seconds:,.0f}",
            f"{one.cpu_seconds / one.items * 1e6:.1f}",
            f"{one.peak_mb:.0f}",
            one.python,
        )
        for cell, one in results.items()
    ]
    headers = ["", "workers", "seconds", "items/s", "CPU µs/item", "peak MB", "Python"]
    align = ["left", *["right"] * 5, "left"]
    return tabulate(rows, headers, disable_numparse=True, colalign=align)


def aims(results: Results) -> str:
    """What this lab aims at, and whether it was reached."""
    rows: list[tuple[str, str, str, str]] = []

    def add(aim: str, most_or_least: str, target: float, ratio: float) -> None:
        reached = ratio <= target if most_or_least == "at most" else ratio >= target
        yes_or_no = "yes" if reached else "no"
        rows.append((aim, f"{most_or_least} {target:g}", f"{ratio:.2f}", yes_or_no))

    def found(name: str) -> dict[int, Measurement]:
        """The measurements of a contender, by the number of workers."""
        return {
            cell.workers: one
            for cell, one in results.items()
            if cell.name == name and cell.python == sys.executable
        }

    ours = found("ours")
    ratio = ours[1].cpu_seconds / found("floor")[1].cpu_seconds
    add("CPU time: ours / floor, 1 worker", "at most", 1.15, ratio)
    ratio = ours[1].seconds / ours[4].seconds
    add("time: ours, 1 worker / 4 workers", "at least", 2.8, ratio)
    ratio = found("boto3-resource")[8].seconds / ours[8].seconds
    add("time: boto3-resource / ours, 8 workers", "at least", 12, ratio)
    if found("pydynox"):
        best = min(one.seconds for one in found("pydynox").values())
        ratio = best / ours[8].seconds
        add("time: pydynox at its best / ours, 8 workers", "at least", 2, ratio)
    ratio = found("ours-save")[8].seconds / ours[8].seconds
    add("time: ours-save / ours, 8 workers", "at most", 1.3, ratio)
    for workers, one in found("ours-count").items():
        ratio = one.seconds / (one.pages * PAGE_MS / 1000 / workers)
        aim = f"time: ours-count / (pages x page time / workers), {workers}"
        add(aim, "at most", 1.25, ratio)
    for workers, one in ours.items():
        ratio = one.peak_mb / (60 + 6 * workers)
        add(f"memory: ours / (60 MB + 6 MB a worker), {workers}", "at most", 1, ratio)
    for workers, one in found("ours-larger").items():
        ratio = one.peak_mb / ours[workers].peak_mb
        add(f"memory: ours-larger / ours, {workers}", "at most", 1.1, ratio)
    headers = ["aim", "target", "here", "reached"]
    return tabulate(rows, headers, disable_numparse=True)


def cells_of(names: Iterable[str], python: str) -> list[Cell]:
    return [
        Cell(name, workers, python) for name in names for workers in CONTENDERS[name][1]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=200_000, metavar="N")
    parser.add_argument("--runs", type=int, default=3, metavar="R")
    parser.add_argument("--python", metavar="PATH", help="another interpreter")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, workers = args.measure
        print(json.dumps(measure_here(name, int(workers))))
        return 0
    names = []
    for name in CONTENDERS:
        module = name.replace("-", "_")
        if name in PACKAGES and importlib.util.find_spec(module) is None:
            print(f"{name} is not installed", file=sys.stderr)
        elif name != "ours-larger":
            names.append(name)
    cells = cells_of(names, sys.executable)
    if args.python:
        cells += cells_of(["ours", "ours-count", "ours-save"], args.python)
    results = benchmark(cells, args.items, args.runs)
    larger = cells_of(["ours-larger"], sys.executable)
    results.update(benchmark(larger, LARGER * args.items, args.runs))
    print(f"{args.items:,} items, {PAGE_MS} ms a page, medians of {args.runs} runs,")
    print(f"{os.cpu_count()} CPUs")
    print(f"\n{table(results)}\n\n{aims(results)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
