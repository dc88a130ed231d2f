"""Measure this lab's scans beside boto3, its peers and the floor: python tests/benchmark.py

    pip install -r requirements.txt -r tests/benchmark-requirements.txt
    python tests/benchmark.py --workers 1 4 8 16 --runs 2

A row for each contender and number of workers (as many segments as workers), and below them the
ratios this lab aims at: all measured in one run, against tests/local_dynamodb.py in a process of
its own, where a page takes --page-ms whatever its size, and nothing is throttled.

  ours, ours-count, ours-save, ours-larger
                  this lab (one worker: sequential_scan): all items, --select COUNT, --save FILE,
                  and all items of a table four times as large
  boto3-resource  Table.scan, a session and a thread a segment, all items in one list: how it is
                  mostly written
  boto3-client    Client.scan, a thread a segment, pages dropped once counted
  aws-dynamodb-parallel-scan, awswrangler (items, no DataFrame), pydynox (Rust)
                  packages from PyPI, each by its own parallel scan
  aws-dynamodb-parallel-scan-save
                  its own command with --output-items, its standard output a file: the entry point
                  is called in the measured process, with sys.argv set
  floor           http.client and json.loads, a thread a segment, unsigned, no garbage collector
  wire            the floor without decoding items: what the local lab and the network take

Each measurement is a process of its own. The clock starts after imports, when a client has sent a
first request. Our workers then ask for one answer each, to open connections, which takes a page's
time: it is taken off (`connect_seconds`). The others open theirs on the clock, in no time as it is
127.0.0.1 without TLS; awswrangler and the command make another client on it, in milliseconds, as
boto3 is loaded. Who does not return exactly the table's items is an error. The contenders take
turns, --runs times, and a row shows the medians, and the highest peak of resident memory; what
took over 5 seconds is not run again. CPU time is of all threads.
"""

from __future__ import annotations

import argparse
import contextlib
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
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

TABLE = "GameLeaderboard"
PEERS = ("aws-dynamodb-parallel-scan", "awswrangler", "pydynox")
LARGER = "ours-larger"
SAVED = Path("items.json")  # in a measurement's own directory
SLOW = 5.0  # seconds, from which on a measurement is not repeated
MAXRSS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10  # getrusage(2): bytes there, else KB


class Outcome(NamedTuple):
    """What a scan says of itself; who writes to SAVED has its items counted there."""

    items: int = 0
    pages: int = 0
    connect_seconds: float = 0.0


# A contender prepares, and returns the scan that is timed. It imports its modules itself: a process
# holds its own only, and the parent stays small, with whose peak memory a child starts (Linux).
Contender = Callable[[int], Callable[[], Outcome]]
load = importlib.import_module


def pages(scan: Callable[..., Any], **request: Any) -> Iterator[Any]:
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
    config = load("botocore.config").Config(max_pool_connections=workers)
    client = load("boto3").client("dynamodb", config=config)
    client.describe_table(TableName=TABLE)
    return client


def ours(workers: int, save: bool = False, **request: str) -> Callable[[], Outcome]:
    common = load("common")
    each_page = common.json_lines if save else len  # len counts the items that came
    scan = common.Scan(common.Connection(), {"TableName": TABLE, **request}, each_page=each_page)
    run = partial(load("sequential_scan").sequential_scan, scan)
    if workers > 1:
        run = partial(load("parallel_scan").parallel_scan, scan, workers, workers, None)
    counts: list[int] = []

    def timed() -> Outcome:
        metrics = common.saved(str(SAVED), run) if save else run(counts.append)
        items = metrics.items if "Select" in request else sum(counts)
        return Outcome(items, metrics.pages, metrics.connect_seconds)

    list(scan.opening())
    return timed


def boto3_resource(workers: int) -> Callable[[], Outcome]:
    session = load("boto3").Session  # one a thread: they are not to be shared
    tables = [session().resource("dynamodb").Table(TABLE) for _ in range(workers)]
    for table in tables:
        table.load()
    items: list[Any] = []

    def read(segment: int) -> int:
        answers = pages(tables[segment].scan, Segment=segment, TotalSegments=workers)
        found = [item for page in answers for item in page]
        items.extend(found)
        return len(found)

    return lambda: in_threads(read, workers)


def boto3_client(workers: int) -> Callable[[], Outcome]:
    scan = partial(pages, new_client(workers).scan, TableName=TABLE, TotalSegments=workers)
    return lambda: in_threads(lambda segment: sum(map(len, scan(Segment=segment))), workers)


def aws_dynamodb_parallel_scan(workers: int) -> Callable[[], Outcome]:
    scan = load("aws_dynamodb_parallel_scan").get_paginator(new_client(workers)).paginate
    found = scan(TableName=TABLE, TotalSegments=workers)  # starts when iterated
    return lambda: Outcome(sum(len(page["Items"]) for page in found))


def aws_dynamodb_parallel_scan_save(workers: int) -> Callable[[], Outcome]:
    command = load("aws_dynamodb_parallel_scan").cli
    flags = f"--table-name {TABLE} --total-segments {workers} --output-items"
    sys.argv[1:] = flags.split()
    new_client(workers)

    def timed() -> Outcome:
        with SAVED.open("w") as stream, contextlib.redirect_stdout(stream):
            command()
        return Outcome()

    return timed


def awswrangler(workers: int) -> Callable[[], Outcome]:
    read = partial(load("awswrangler").dynamodb.read_items, TABLE, allow_full_scan=True)
    new_client(workers)
    return lambda: Outcome(len(read(as_dataframe=False, use_threads=workers)))


def pydynox(workers: int) -> Callable[[], Outcome]:
    client = load("pydynox").DynamoDBClient(
        region=os.environ["AWS_REGION"], endpoint_url=os.environ["AWS_ENDPOINT_URL_DYNAMODB"])
    client.sync_table_exists(TABLE)
    return lambda: Outcome(len(client.sync_parallel_scan(TABLE, total_segments=workers)[0]))


def floor(workers: int, decode: Callable[[bytes], Any] = json.loads) -> Callable[[], Outcome]:
    host = os.environ["AWS_ENDPOINT_URL_DYNAMODB"].removeprefix("http://")
    headers = {"X-Amz-Target": "DynamoDB_20120810.Scan"}

    def read(segment: int) -> int:
        connection = HTTPConnection(host)

        def scan(**request: Any) -> Any:
            connection.request("POST", "/", json.dumps(request).encode(), headers)
            return decode(connection.getresponse().read())

        request = {"TableName": TABLE, "Segment": segment, "TotalSegments": workers}
        return sum(map(len, pages(scan, **request)))

    gc.disable()
    return lambda: in_threads(read, workers)


def without_items(page: bytes) -> Any:
    """What the local lab writes before the items, for which as many numbers stand."""
    head = json.loads(page.partition(b',"Items":[')[0] + b"}")
    return {**head, "Items": range(head["Count"])}


CONTENDERS: dict[str, Contender] = {
    "ours": ours, "ours-count": partial(ours, Select="COUNT"), LARGER: ours,
    "ours-save": partial(ours, save=True),
    "boto3-resource": boto3_resource, "boto3-client": boto3_client,
    "aws-dynamodb-parallel-scan": aws_dynamodb_parallel_scan,
    "aws-dynamodb-parallel-scan-save": aws_dynamodb_parallel_scan_save,
    "awswrangler": awswrangler, "pydynox": pydynox,
    "floor": floor, "wire": partial(floor, decode=without_items),
}


class Measurement(NamedTuple):
    items: float
    pages: float
    seconds: float
    cpu_seconds: float
    peak_mb: float


Cell = tuple[str, int]  # a contender's name, and workers
Results = dict[Cell, Measurement]
NOT_MEASURED = Measurement(*[math.nan] * 5)


def measured_here(name: str, workers: int) -> Measurement:
    """Measure one contender in this process, which did nothing else before."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    scan = CONTENDERS[name](workers)
    started = time.perf_counter()
    cpu_started = time.process_time()
    items, pages, connect_seconds = scan()
    seconds = time.perf_counter() - started - connect_seconds
    cpu_seconds = time.process_time() - cpu_started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MAXRSS_PER_MB
    if SAVED.exists():
        items = SAVED.read_bytes().count(b"\n")
    return Measurement(items, pages, seconds, cpu_seconds, peak)


def measured(cell: Cell, items: int, environment: dict[str, str]) -> Measurement:
    """Measure in a fresh process. Raises SystemExit if that fails or items are missing."""
    name, workers = cell
    command = [sys.executable, str(Path(__file__).resolve()), "--measure", name, str(workers)]
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True,
                               check=False)
    found = Measurement(*json.loads(child.stdout or "[0, 0, 0, 0, 0]"))
    if found.items != items:
        message = f"error: {name}, workers {workers}: {found.items:,} of {items:,} items"
        raise SystemExit(child.stderr + message)
    return found


@contextlib.contextmanager
def serving(items: int, page_ms: float) -> Iterator[dict[str, str]]:
    """Serve the table in another process; yields the environment that leads there."""
    command = [sys.executable, str(Path(__file__).with_name("local_dynamodb.py"))]
    command += f"--items {items} --latency-ms {page_ms} --ms-per-mb 0 --read-capacity 0".split()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout
            first_line = server.stdout.readline()  # export AWS_ENDPOINT_URL_DYNAMODB=http://...
            yield load("running").environment(first_line.strip().partition("=")[2])
        finally:
            server.terminate()


def benchmark(cells: list[Cell], items: int, page_ms: float, runs: int) -> Results:
    """Every cell's medians over `runs` rounds, and its highest peak of memory."""
    found: dict[Cell, list[Measurement]] = {cell: [] for cell in cells}
    with serving(items, page_ms) as environment:
        for run in range(1, runs + 1):
            for cell, done in found.items():
                if not done or done[0].seconds < SLOW:
                    print(f"{items:,} items, round {run}/{runs}:", *cell, file=sys.stderr)
                    done.append(measured(cell, items, environment))
    return {cell: Measurement(*map(statistics.median, zip(*done)))._replace(
        peak_mb=max(one.peak_mb for one in done)) for cell, done in found.items()}


def table(results: Results) -> str:
    rows = [(name, str(workers), f"{found.seconds:.2f}", f"{found.items / found.seconds:,.0f}",
             f"{found.cpu_seconds / found.items * 1e6:.1f}", f"{found.peak_mb:.0f}")
            for (name, workers), found in results.items()]
    headers = ("contender", "workers", "seconds", "items/s", "CPU µs/item", "peak MB")
    align = ("left", *["right"] * 5)
    return tabulate(rows, headers, disable_numparse=True, colalign=align)


def aims(results: Results, page_ms: float) -> str:
    """What this lab aims at, and the worst that was measured here; n/a if nothing was."""
    def get(name: str, workers: int = 8) -> Measurement:
        return results.get((name, workers), NOT_MEASURED)

    def all_of(name: str) -> list[tuple[int, Measurement]]:
        return [(workers, found) for (one, workers), found in results.items() if one == name]

    def memory(name: str) -> list[float]:
        return [found.peak_mb / (50 + 6 * workers) for workers, found in all_of(name)]

    cpu = get("ours", 1).cpu_seconds
    seconds = get("ours").seconds
    pydynox = [found.seconds / seconds for _, found in all_of("pydynox")]
    counts = [found.seconds * workers / found.pages * 1000 / (page_ms or math.nan)
              for workers, found in all_of("ours-count")]
    growth = [found.peak_mb / get("ours", workers).peak_mb
              for workers, found in all_of(LARGER)]
    rows = []
    for text, sign, target, ratios in (  # where there are several, the worst one counts
        ("CPU: ours / floor, 1 worker", "<=", 1.15, [cpu / get("floor", 1).cpu_seconds]),
        ("CPU: boto3-client / ours, 1", ">=", 10, [get("boto3-client", 1).cpu_seconds / cpu]),
        ("time: boto3-resource / ours, 8", ">=", 12, [get("boto3-resource").seconds / seconds]),
        ("time: pydynox at its best / ours, 8", ">=", 2, pydynox),
        ("time: ours, 1 / 4", ">=", 2.8, [get("ours", 1).seconds / get("ours", 4).seconds]),
        ("time: ours-save / ours, 8", "<=", 1.3, [get("ours-save").seconds / seconds]),
        ("time: ours-count / (pages x page time / workers)", "<=", 1.25, counts),
        ("memory: ours / (50 MB + 6 MB a worker)", "<=", 1, memory("ours")),
        (f"memory: {LARGER} / ours", "<=", 1.1, growth),
    ):
        worst = (max if sign == "<=" else min)(ratios, default=math.nan)
        reached = worst <= target if sign == "<=" else worst >= target
        here = ("n/a", "") if math.isnan(worst) else (f"{worst:.2f}", "yes" if reached else "no")
        rows.append((text, f"{sign} {target:g}", *here))
    return tabulate(rows, ("aim", "target", "here", "reached"), disable_numparse=True)


def main() -> int:
    manual = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=manual)
    flag = parser.add_argument
    flag("--items", type=int, default=200_000, metavar="N")
    flag("--page-ms", type=float, default=50, metavar="MS", help="how long a page takes")
    flag("--workers", type=int, nargs="+", default=[1, 4, 8, 16], metavar="W")
    flag("--runs", type=int, default=3, metavar="R")
    flag("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    flag("--measure", nargs=2, help=argparse.SUPPRESS)  # this file's own processes
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured_here(args.measure[0], int(args.measure[1]))))
        return 0
    installed = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    packages = {name: installed.get(name) for name in ("boto3", *PEERS)}
    names = [name for name in args.only if packages.get(name.removesuffix("-save"), name)]
    usual = [(name, each) for name in names if name != LARGER for each in args.workers]
    larger = [(name, each) for name in names if name == LARGER for each in args.workers]
    results = benchmark(usual, args.items, args.page_ms, args.runs)
    results.update(benchmark(larger, 4 * args.items, args.page_ms, args.runs))
    print(f"{args.items:,} items, {args.page_ms:g} ms a page, {args.runs} runs; "
          f"{os.cpu_count()} CPUs, Python {platform.python_version()},",
          ", ".join(f"{name} {number or '-'}" for name, number in packages.items()), end="\n\n")
    print(table(results), aims(results, args.page_ms), sep="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
