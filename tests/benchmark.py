"""Measure this lab's scans beside boto3, its peers and the floor: python tests/benchmark.py

    pip install -r requirements.txt -r tests/benchmark-requirements.txt
    python tests/benchmark.py --items 200000 --page-ms 50

One table, a row for each contender and number of workers (as many segments as workers), and below
it the ratios this lab aims at: all measured in one run, against tests/local_dynamodb.py in a
process of its own, with --latency-ms as --page-ms and --ms-per-mb 0, so that a page takes the same
time whatever its size, and --read-capacity 0, so that nothing is throttled.

  ours, ours-count, ours-processes
                  this lab: all items (with one worker sequential_scan), --select COUNT, and
                  --executor process
  boto3-resource  Table.scan, a thread a segment, all items in one list: how it is mostly written
  boto3-client    Client.scan, a thread a segment, pages dropped once counted
  aws-dynamodb-parallel-scan, awswrangler (items, no DataFrame), pydynox (Rust)
                  packages from PyPI, each by its own parallel scan
  floor           http.client and json.loads, a thread a segment, unsigned, no garbage collector

Each measurement is a process of its own. The clock starts after imports, when clients and worker
processes exist; who does not return exactly the table's items is an error. The contenders take
turns, --runs times, and a row shows the medians; what took over 5 seconds the first time is not
run again. CPU time is of all threads (ours-processes: and of fetching in the workers). Peak memory
is the resident set, for ours-processes with the largest worker's times their number: an upper
bound, as what processes share is counted in each.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

TABLE = "GameLeaderboard"
SLOW = 5.0  # seconds, from which on a measurement is not repeated
MAXRSS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10  # getrusage(2): bytes there, else KB


class Outcome(NamedTuple):
    """What a scan says of itself; without `cpu_seconds`, its process's CPU time counts."""

    items: int
    pages: int = 0
    cpu_seconds: float | None = None


# --- The contenders ---------------------------------------------------------------------------
# Each prepares, and yields the scan that is timed. It imports its modules itself: a process holds
# its own contender only, and the parent stays small, with whose peak memory a child starts (Linux).

Contender = Callable[[int], Iterator[Callable[[], Outcome]]]


def pages(scan: Callable[..., Any], **request: Any) -> Iterator[list[Any]]:
    """The items of each page, by boto3's `scan` or one like it."""
    while True:
        page = scan(**request)
        yield page["Items"]
        if "LastEvaluatedKey" not in page:
            return
        request["ExclusiveStartKey"] = page["LastEvaluatedKey"]


def in_threads(count_segment: Callable[[int], int], workers: int) -> Outcome:
    with ThreadPoolExecutor(workers) as pool:
        return Outcome(sum(pool.map(count_segment, range(workers))))


def new_client(workers: int) -> Any:
    config = importlib.import_module("botocore.config").Config(max_pool_connections=workers)
    return importlib.import_module("boto3").client("dynamodb", config=config)


def ours(workers: int, kind: str = "thread", **request: str) -> Iterator[Callable[[], Outcome]]:
    modules = ("common", "sequential_scan", "parallel_scan")
    common, sequential, parallel = map(importlib.import_module, modules)
    connection = common.Connection(connections=workers)
    counts: list[int] = []
    each_page = None if request else len  # counts what was decoded; COUNT has nothing to decode
    scan = common.Scan(connection, {"TableName": TABLE, **request}, each_page=each_page,
                       collect=counts.append if each_page else None)

    def run() -> Outcome:
        if workers == 1 and kind == "thread":
            metrics = sequential.sequential_scan(scan)
        else:
            metrics = parallel.parallel_scan(scan, workers, workers)
        items = sum(counts) if each_page else metrics.items
        return Outcome(items, metrics.pages, metrics.cpu_seconds)

    connection.client()
    with parallel.ready(scan, workers, kind) if kind == "process" else nullcontext():
        yield run


def boto3_resource(workers: int) -> Iterator[Callable[[], Outcome]]:
    session = importlib.import_module("boto3").Session  # one a thread: they are not to be shared
    scans = [session().resource("dynamodb").Table(TABLE).scan for _ in range(workers)]
    items: list[Any] = []

    def read(segment: int) -> int:
        found = 0
        for page in pages(scans[segment], Segment=segment, TotalSegments=workers):
            items.extend(page)
            found += len(page)
        return found

    yield lambda: in_threads(read, workers)


def boto3_client(workers: int) -> Iterator[Callable[[], Outcome]]:
    request = {"TableName": TABLE, "TotalSegments": workers}
    scan = partial(pages, new_client(workers).scan, **request)
    yield lambda: in_threads(lambda segment: sum(map(len, scan(Segment=segment))), workers)


def aws_dynamodb_parallel_scan(workers: int) -> Iterator[Callable[[], Outcome]]:
    peer = importlib.import_module("aws_dynamodb_parallel_scan")
    found = peer.get_paginator(new_client(workers)).paginate(TableName=TABLE, TotalSegments=workers)
    yield lambda: Outcome(sum(len(page["Items"]) for page in found))  # starts when iterated


def awswrangler(workers: int) -> Iterator[Callable[[], Outcome]]:
    read = importlib.import_module("awswrangler").dynamodb.read_items
    session = importlib.import_module("boto3").Session()
    session.client("dynamodb")  # it will make its own, at little cost after this
    yield lambda: Outcome(len(read(TABLE, allow_full_scan=True, as_dataframe=False,
                                   use_threads=workers, boto3_session=session)))


def pydynox(workers: int) -> Iterator[Callable[[], Outcome]]:
    client = importlib.import_module("pydynox").DynamoDBClient(
        region=os.environ["AWS_REGION"], endpoint_url=os.environ["AWS_ENDPOINT_URL_DYNAMODB"])
    yield lambda: Outcome(len(client.sync_parallel_scan(TABLE, total_segments=workers)[0]))


def floor(workers: int) -> Iterator[Callable[[], Outcome]]:
    host = os.environ["AWS_ENDPOINT_URL_DYNAMODB"].removeprefix("http://")
    headers = {"X-Amz-Target": "DynamoDB_20120810.Scan",
               "Content-Type": "application/x-amz-json-1.0"}

    def read(segment: int) -> int:
        connection = HTTPConnection(host)

        def scan(**request: Any) -> Any:
            connection.request("POST", "/", json.dumps(request).encode(), headers)
            return json.loads(connection.getresponse().read())

        request = {"TableName": TABLE, "Segment": segment, "TotalSegments": workers}
        return sum(map(len, pages(scan, **request)))

    gc.disable()
    yield lambda: in_threads(read, workers)


PEERS: dict[str, Contender] = {"aws-dynamodb-parallel-scan": aws_dynamodb_parallel_scan,
                               "awswrangler": awswrangler, "pydynox": pydynox}
CONTENDERS: dict[str, Contender] = {
    "ours": ours, "ours-count": partial(ours, Select="COUNT"),
    "ours-processes": partial(ours, kind="process"),
    "boto3-resource": boto3_resource, "boto3-client": boto3_client, **PEERS, "floor": floor,
}


# --- Measuring --------------------------------------------------------------------------------


class Lab(NamedTuple):
    items: int
    page_ms: float


class Cell(NamedTuple):
    lab: Lab
    name: str
    workers: int


class Measurement(NamedTuple):
    items: int
    pages: int
    seconds: float
    cpu_seconds: float
    peak_mb: float


Results = dict[Cell, Measurement]
NOT_MEASURED = Measurement(0, 0, math.nan, math.nan, math.nan)


def measured_here(name: str, workers: int) -> Measurement:
    """Measure one contender in this process, which did nothing else before."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    with contextmanager(CONTENDERS[name])(workers) as scan:
        started, cpu_started = time.perf_counter(), time.process_time()
        items, pages, cpu_seconds = scan()
        seconds = time.perf_counter() - started
        if cpu_seconds is None:
            cpu_seconds = time.process_time() - cpu_started
    own, largest_child = (resource.getrusage(who).ru_maxrss / MAXRSS_PER_MB
                          for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Measurement(items, pages, seconds, cpu_seconds, own + workers * largest_child)


def measured(cell: Cell, environment: dict[str, str]) -> Measurement:
    """Measure in a fresh process. Raises SystemExit if that fails or items are missing."""
    command = [sys.executable, __file__, "--measure", cell.name, str(cell.workers)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if child.returncode:
        raise SystemExit(f"{child.stderr}error: {cell.name}, workers {cell.workers}: it failed")
    found = Measurement(*json.loads(child.stdout))
    if found.items != cell.lab.items:
        raise SystemExit(f"error: {cell.name}, workers {cell.workers}: it returned "
                         f"{found.items:,} of {cell.lab.items:,} items")
    return found


@contextmanager
def serving(lab: Lab) -> Iterator[dict[str, str]]:
    """Serve the table in another process; yields the environment that leads there."""
    options = {"items": lab.items, "latency-ms": lab.page_ms, "ms-per-mb": 0, "read-capacity": 0}
    command = [sys.executable, str(Path(__file__).with_name("local_dynamodb.py"))]
    command += [f"--{name}={value}" for name, value in options.items()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True) as server:
        environment = dict(os.environ)
        for line in server.stdout or ():  # export NAME=VALUE ..., and at last unset NAME ...
            verb, *words = line.split()
            if verb == "unset":
                environment = {k: v for k, v in environment.items() if k not in words}
                break
            name, _, environment[name] = words[0].partition("=")
        try:
            yield environment
        finally:
            server.terminate()


def benchmark(cells: list[Cell], runs: int) -> Results:
    """Every cell's medians over `runs` rounds, and its peak memory."""
    found: dict[Cell, list[Measurement]] = {cell: [] for cell in cells}
    with ExitStack() as at_end:
        environments = {lab: at_end.enter_context(serving(lab))
                        for lab in dict.fromkeys(cell.lab for cell in cells)}
        for run in range(1, runs + 1):
            todo = [cell for cell in cells if not found[cell] or found[cell][0].seconds < SLOW]
            for done, cell in enumerate(todo):
                progress(f"round {run}/{runs}, {done}/{len(todo)}: {cell.name} {cell.workers}")
                found[cell].append(measured(cell, environments[cell.lab]))
    progress("")
    return {cell: Measurement(*map(statistics.median, zip(*each, strict=True)))._replace(
        peak_mb=max(one.peak_mb for one in each)) for cell, each in found.items()}


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


# --- What it looks like -----------------------------------------------------------------------


def table(results: Results, lab: Lab, missing: list[str]) -> str:
    rows = [(name, str(workers), f"{found.seconds:.2f}", f"{found.items / found.seconds:,.0f}",
             f"{found.cpu_seconds / found.items * 1e6:.1f}", f"{found.peak_mb:.0f}")
            for (where, name, workers), found in results.items() if where == lab]
    rows += [(name, "-", "-", "-", "-", f"not installed: pip install {name}") for name in missing]
    headers = ("contender", "workers", "seconds", "items/s", "CPU µs/item", "peak MB")
    align = ("left", *["right"] * 5)
    return tabulate(rows, headers, disable_numparse=True, colalign=align)


def extra_labs(lab: Lab) -> tuple[Lab, Lab]:
    """The same table without page time, and one four times as large."""
    return lab._replace(page_ms=0), lab._replace(items=4 * lab.items)


def aims(results: Results, lab: Lab) -> str:
    """What this lab aims at, and what this run reached; n/a where it was not measured."""
    untimed, larger = extra_labs(lab)

    def get(name: str, workers: int, where: Lab = lab) -> Measurement:
        return results.get(Cell(where, name, workers), NOT_MEASURED)

    def all_of(name: str) -> list[tuple[int, Measurement]]:
        return [(cell.workers, found) for cell, found in results.items() if cell[:2] == (lab, name)]

    def worst_memory(name: str) -> float:
        return max((found.peak_mb / (60 + 25 * w) for w, found in all_of(name)), default=math.nan)

    one, four, eight = (get("ours", workers) for workers in (1, 4, 8))
    pydynox_at_best = min((found.seconds for _, found in all_of("pydynox")), default=math.nan)
    count_at_worst = max((found.seconds / (found.pages * lab.page_ms / 1000 / w or math.nan)
                          for w, found in all_of("ours-count")), default=math.nan)
    two_threads, two_processes = get("ours", 2, untimed), get("ours-processes", 2, untimed)
    rows = []
    for text, value, sign, bound in (
        ("CPU µs an item: ours, 1 worker", one.cpu_seconds / lab.items * 1e6, "<=", 5),
        ("CPU: boto3-client / ours, 1 worker",
         get("boto3-client", 1).cpu_seconds / one.cpu_seconds, ">=", 8),
        ("time: ours, 1 worker / 4", one.seconds / four.seconds, ">=", 2.7),
        ("time: boto3-resource / ours, 8 workers",
         get("boto3-resource", 8).seconds / eight.seconds, ">=", 8),
        ("time: pydynox at its best / ours, 8 workers", pydynox_at_best / eight.seconds, ">=", 2),
        ("time: ours-count / (pages x page time / workers), the worst", count_at_worst, "<=", 1.25),
        ("time: 2 threads / 2 processes, no page time",
         two_threads.seconds / two_processes.seconds, ">=", 1.5),
        ("memory: ours / (60 + 25 a worker) MB, the worst", worst_memory("ours"), "<=", 1),
        ("memory: ours-processes / the same", worst_memory("ours-processes"), "<=", 1),
        (f"memory: ours, 4 workers, {larger.items:,} items / {lab.items:,}",
         get("ours", 4, larger).peak_mb / four.peak_mb, "<=", 1.1),
    ):
        reached = value <= bound if sign == "<=" else value >= bound
        here = ("n/a", "") if math.isnan(value) else (f"{value:.2f}", "yes" if reached else "no")
        rows.append((text, f"{sign} {bound:g}", *here))
    return tabulate(rows, ("aim", "target", "here", "reached"), disable_numparse=True)


def version(package: str) -> str:
    """The installed version, or nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def main() -> int:
    manual = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=manual)
    flag = parser.add_argument
    flag("--items", type=int, default=200_000, metavar="N")
    flag("--page-ms", type=float, default=50, metavar="MS", help="how long a page takes")
    flag("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16], metavar="W")
    flag("--runs", type=int, default=3, metavar="R")
    flag("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    flag("--measure", nargs=2, help=argparse.SUPPRESS)  # this file's own processes
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured_here(args.measure[0], int(args.measure[1]))))
        return 0
    lab = Lab(args.items, args.page_ms)
    untimed, larger = extra_labs(lab)
    missing = [name for name in args.only if name in PEERS and not version(name)]
    cells = [Cell(lab, name, workers) for name in args.only for workers in args.workers]
    cells += [Cell(untimed, "ours", 2), Cell(untimed, "ours-processes", 2), Cell(larger, "ours", 4)]
    wanted = [cell for cell in cells if cell.name in args.only and cell.name not in missing]
    results = benchmark(list(dict.fromkeys(wanted)), args.runs)
    packages = ", ".join(f"{name} {version(name) or '-'}" for name in ("boto3", *PEERS))
    print(f"{lab.items:,} items, {lab.page_ms:g} ms a page, {args.runs} runs; Python "
          f"{platform.python_version()}, {os.cpu_count()} CPUs, {packages}\n")
    print(table(results, lab, missing), aims(results, lab), sep="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
