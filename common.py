"""What both scans share: table access, the page loop, waiting for capacity, and the accounting.

In the order the data flows: a `Connection` makes the client, `fetch` turns one Scan request into
a `Page`, `Pace` says when the next request may go out, `Scan.pages` follows LastEvaluatedKey from
page to page, and `ScanMetrics` adds the pages up. sequential_scan.py runs that page loop once,
parallel_scan.py once for every segment. The command line's flags are at the end.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import ctypes
import dataclasses
import functools
import gc
import json
import os
import random
import shutil
import signal
import statistics
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tabulate import tabulate

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

Item = dict[str, Any]  # in DynamoDB JSON: {"score": {"N": "42"}, ...}
FULL_PAGE_RCU = 128.5  # 1 MB and the item that reaches it, half an RCU each 4 KB begun
THROTTLES = ("ProvisionedThroughputExceeded", "ThrottlingException", "RequestLimitExceeded")

# --- Errors -----------------------------------------------------------------------------------


class ScanError(Exception):
    """A failure in words for the user, with a hint about its remedy and an exit status."""

    def __init__(self, message: str, hint: str = "", status: int = 1) -> None:
        super().__init__(message, hint, status)  # as args, so that it can be pickled
        self.message, self.hint, self.status = message, hint, status


class Throttled(Exception):
    """DynamoDB refused a request for lack of capacity: it cost nothing and may be repeated."""

    def __init__(self, reason: str, retried: int) -> None:
        super().__init__(reason, retried)
        self.reason, self.retried = reason, retried


class Stopped(Exception):
    """The scan is over for this worker: another one failed, or the user interrupted."""


CREDENTIALS = "check the credentials and this machine's clock, or renew an expired token"
REMEDIES = {  # by how DynamoDB's error code, or the name of botocore's exception, begins
    ("AccessDenied",): "allow dynamodb:{operation} on table {table}",
    ("Expired", "UnrecognizedClient", "Invalid", "UnauthorizedSSO", "SSO"): CREDENTIALS,
    ("NoCredentials",): "run aws configure, or try it without an account: "
                        "python tests/local_dynamodb.py compare.py",
    ("PartialCredentials",): "run aws configure, or complete the AWS_ variables",
    ("ProfileNotFound",): "aws configure list-profiles shows the profiles there are",
    ("NoRegion",): "add --region us-east-1, say; or try it without an account: "
                   "python tests/local_dynamodb.py compare.py",
    ("Endpoint", "Connect", "ReadTimeout", "HTTPClient", "SSL", "Proxy", "Checksum"):
        "check the network, --region and --endpoint-url",
}
NAMES = """names may go into --expression-attribute-names as '{{"#mode": "mode"}}'"""
VALUES = """values go into --expression-attribute-values as '{{":min": {{"N": "100"}}}}'"""
REPAIRS = {  # by words in what DynamoDB or botocore says of a request
    "attribute name": NAMES, "reserved keyword": NAMES, "attribute value": VALUES,
    "parameter ExpressionAttributeValues": VALUES, "in ExpressionAttributeValues": VALUES,
}


def explained(error: ClientError | BotoCoreError, table_name: str) -> ScanError:
    """What boto3 raised, in one line and with its remedy. Exit status 2 if the flags are wrong."""
    operation, text = "", " ".join(str(error).split())
    name = type(error).__name__
    if isinstance(error, ClientError):
        operation, name = error.operation_name, error.response["Error"]["Code"]
        text = name = f"{name}: {error.response['Error'].get('Message', '')}".splitlines()[0]
    remedies = [hint for start, hint in REMEDIES.items() if name.startswith(start)]
    remedies += [hint for words, hint in REPAIRS.items() if words in text]
    hint = remedies[0].format(operation=operation, table=table_name) if remedies else ""
    return ScanError(text, hint, 2 if name.startswith("ParamValidation") else 1)


def missing_table(client: DynamoDBClient, table_name: str) -> ScanError:
    """Why DynamoDB found no such table, and which tables it has, where it may be asked."""
    with contextlib.suppress(ClientError, BotoCoreError):
        status = client.describe_table(TableName=table_name)["Table"]["TableStatus"]
        wait = f"wait for it: aws dynamodb wait table-exists --table-name {table_name}"
        return ScanError(f"table {table_name} is {status}, it cannot be scanned", wait)
    hint = "check --table-name and --region"
    with contextlib.suppress(ClientError, BotoCoreError):
        names = client.list_tables(Limit=10)["TableNames"]
        hint += f"; tables there: {', '.join(names) or 'none'}"
    return ScanError(f"no table {table_name} at {client.meta.endpoint_url}", hint)


# --- The connection, and what hooks into it ---------------------------------------------------


@dataclass(frozen=True)
class Connection:
    """How to reach DynamoDB; what is None, boto3 resolves. It may travel to another process.

    `connections` is how many requests it carries at a time, `read_timeout` is in seconds.
    """

    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None
    connections: int = 1
    compress: bool = False
    read_timeout: float = 10

    def client(self) -> DynamoDBClient:
        """This process's client for the connection, which threads share. Raises ScanError.

        Retries are pinned to "legacy": from 0.05 s on, doubling, and an error if the CRC stays
        wrong. The newer modes have a quota for the client, which throttled workers run dry.
        """
        with _clients_lock:  # creating clients is not thread-safe
            if self not in _clients:
                retries: Any = {"mode": "legacy", "total_max_attempts": 8}
                config = Config(retries=retries, max_pool_connections=self.connections,
                                connect_timeout=5, read_timeout=self.read_timeout)
                try:
                    session = boto3.Session(profile_name=self.profile, region_name=self.region)
                    client = session.client("dynamodb", endpoint_url=self.endpoint_url,
                                            config=config)
                    if urlsplit(client.meta.endpoint_url).port == 0:  # raises above 65535
                        raise ValueError("Port out of range 1-65535")
                except ValueError as error:
                    hint = "check --region, and --endpoint-url, which is like http://host:port"
                    raise ScanError(str(error), hint, 2) from error
                hook = client.meta.events.register
                if self.compress:
                    hook("before-send.dynamodb.Scan", ask_for_gzip)
                hook("before-parse.dynamodb.Scan", take_items)
                hook("response-received.dynamodb.Scan", raise_throttled)
                _clients[self] = client
            return _clients[self]

    @contextlib.contextmanager
    def explaining(self, table_name: str) -> Iterator[DynamoDBClient]:
        """The client; what it raises inside becomes a ScanError."""
        try:
            yield self.client()
        except ClientError as error:
            if error.response["Error"]["Code"] == "ResourceNotFoundException":
                raise missing_table(self.client(), table_name) from error
            raise explained(error, table_name) from error
        except BotoCoreError as error:
            raise explained(error, table_name) from error
        except (KeyError, UnicodeDecodeError) as error:  # no answer of DynamoDB's
            url = self.client().meta.endpoint_url
            raise ScanError(f"{url} does not answer as DynamoDB does",
                            "check --endpoint-url, and any proxy on the way") from error

    def describe(self, table_name: str) -> dict[str, Any]:
        """DescribeTable's answer; its ItemCount and TableSizeBytes are up to six hours old."""
        with self.explaining(table_name) as client:
            return dict(client.describe_table(TableName=table_name)["Table"])

    def open(self, table_name: str) -> tuple[float, int]:
        """Open all connections before any clock starts, at no RCU.

        Returns the seconds it took, and the items that the table is said to have, or 0.
        """
        started, together = time.perf_counter(), threading.Barrier(self.connections, timeout=60)

        def connect(_: int) -> int:
            together.wait()  # or one connection would serve them all
            try:
                table = self.client().describe_table(TableName=table_name)["Table"]
            except ClientError:
                return 0  # the connection is open, and the scan will say what is wrong
            return table.get("ItemCount", 0)

        pool = ThreadPoolExecutor(self.connections)
        try:
            with self.explaining(table_name):
                counts = list(pool.map(connect, range(self.connections)))
        finally:
            pool.shutdown(wait=False)  # an interrupt waits for no answer
        return time.perf_counter() - started, counts[0]


_clients: dict[Connection, DynamoDBClient] = {}
_clients_lock = threading.Lock()


def ask_for_gzip(request: Any, **_: Any) -> None:
    """before-send hook: DynamoDB may compress the answer; harmless where it does not."""
    request.headers["Accept-Encoding"] = "gzip"


def take_items(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    """before-parse hook: decode the items here, in C, and leave botocore all the rest.

    botocore visits each attribute in Python, under the GIL: that is what keeps threads from
    being any faster. A 200 that cannot be read becomes an empty answer, which is then rejected
    by botocore's CRC check, made later and on the bytes as they came, or else by `fetch`.
    """
    try:
        if response_dict["headers"].get("Content-Encoding") == "gzip":
            response_dict["body"] = zlib.decompress(response_dict["body"], wbits=31)
        if response_dict["status_code"] == 200:
            answer = json.loads(response_dict["body"])
            customized_response_dict["WireItems"] = answer.pop("Items", [])
            response_dict["body"] = json.dumps(answer).encode()
    except (ValueError, AttributeError, TypeError, zlib.error):
        response_dict["body"] = b"{}"


def raise_throttled(parsed_response: Any, context: dict[str, Any], **_: Any) -> None:
    """response-received hook: take a throttle out of botocore's hands; `Scan` waits it out."""
    code = (parsed_response or {}).get("Error", {}).get("Code", "")
    if code.startswith(THROTTLES):
        given = parsed_response.get("ThrottlingReasons") or parsed_response.get("throttlingReasons")
        reasons = sorted({each["reason"] for each in given or []})
        raise Throttled("+".join(reasons) or code, context.get("retries", {}).get("attempt", 1) - 1)


# --- One request, one page --------------------------------------------------------------------


@dataclass
class Page:
    """What one Scan request brought; `result` is what `each_page` made of its items.

    In seconds: `started` by time.perf_counter, `waited` from then until the request that was
    answered was sent, `seconds` for that request, `cpu_seconds` of its thread in `process`.
    """

    items: int
    scanned: int
    consumed_rcu: float | None
    last_evaluated_key: Item | None
    result: Any
    retried_requests: int
    seconds: float
    cpu_seconds: float
    refusals: list[str] = field(default_factory=list)
    started: float = 0.0
    waited: float = 0.0
    process: int = field(default_factory=os.getpid)


EachPage = Callable[[list[Item]], Any]


def fetch(connection: Connection, request: dict[str, Any], each_page: EachPage | None) -> Page:
    """Send one Scan request, and give its items to `each_page`: all of the CPU's work is here.

    Items are DynamoDB JSON as it came over the wire: numbers are text, binary is base64 text.
    Raises Throttled, or ScanError for what botocore's retries did not mend.
    """
    started, cpu_started = time.perf_counter(), time.thread_time()
    # In this call the hooks above put the items into answer["WireItems"], or raise Throttled.
    with connection.explaining(request["TableName"]) as client:
        answer: Any = client.scan(**request)
        count, scanned = answer["Count"], answer["ScannedCount"]
    if "WireItems" not in answer:  # botocore did not call the hook
        answer["WireItems"] = [wire_form(item) for item in answer.get("Items", [])]
    return Page(
        items=count,
        scanned=scanned,
        consumed_rcu=answer.get("ConsumedCapacity", {}).get("CapacityUnits"),
        last_evaluated_key=answer.get("LastEvaluatedKey"),
        result=each_page(answer.pop("WireItems")) if each_page else None,
        retried_requests=answer["ResponseMetadata"].get("RetryAttempts", 0),
        seconds=time.perf_counter() - started,
        cpu_seconds=time.thread_time() - cpu_started,
    )


def wire_form(value: Any) -> Any:
    """Undo botocore's parsing: binary becomes base64 text again."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {name: wire_form(inner) for name, inner in value.items()}
    return [wire_form(inner) for inner in value] if isinstance(value, list) else value


@contextlib.contextmanager
def patient_collector() -> Iterator[None]:
    """Inside, the garbage collector does not walk each page, which is freed without its help.

    Cycles are still collected, only later. And glibc gives a page's large blocks back at once:
    unless its threshold is set, it raises it, and keeps ever more of such memory.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(-3, 2**20)  # M_MMAP_THRESHOLD
    thresholds, patient = gc.get_threshold(), 10_000_000
    if thresholds[0] == patient:  # another scan in this process has seen to it
        yield
        return
    gc.set_threshold(patient, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


# --- When the next request may go out ---------------------------------------------------------


class Pace:
    """When a worker may send its next request; the workers of one scan share it.

    The scan takes at most `max_rcu` a second (None: no limit), and endures being throttled for
    `patience` seconds in which no worker gets a page. `sleep` returns True if it was woken.
    """

    def __init__(
        self,
        max_rcu: float | None = None,
        patience: float = 300,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], bool] | None = None,
    ) -> None:
        self.patience, self.stop, self.waiting = patience, threading.Event(), 0
        self._rate = max_rcu and max_rcu * 0.98  # a margin for clocks that differ
        self._clock, self._sleep, self._lock = clock, sleep or self.stop.wait, threading.Lock()
        self._due, self._throttled_since = clock(), float("inf")  # due: the next request's turn
        self._rcu, self._scanned = 0.0, 0  # of all pages, to know what an item costs
        self._probing = False  # whether the first page is under way, its cost not yet known
        self.refusals: dict[str, int] = {}

    def wait(self, seconds: float) -> None:
        """Wait for capacity. Raises Stopped as soon as the scan is over."""
        with self._lock:
            self.waiting += 1
        try:
            if self._sleep(seconds):
                raise Stopped
        finally:
            with self._lock:
                self.waiting -= 1

    def reserve(self, request: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """Wait for the page's turn; returns the request, cut to size, and the RCU set aside.

        What a page costs is known only when it has come. So the first is a small one, and each
        later one is cut (Limit) to a second's worth by what items have cost so far.
        """
        if self.stop.is_set():
            raise Stopped
        if not self._rate:
            return request, 0.0
        full_page = FULL_PAGE_RCU * (2 if request.get("ConsistentRead") else 1)
        page_rcu = min(full_page, max(2.0, self._rate))  # less would be lost in rounding to 4 KB
        while True:
            with self._lock:
                now, item_rcu = self._clock(), self._rcu / max(1, self._scanned)
                if self._due <= now and not self._probing:
                    limit = max(1, int(page_rcu / item_rcu)) if item_rcu else 25
                    limit = min(limit, request.get("Limit", limit))
                    aside, self._probing = min(full_page, limit * item_rcu), not item_rcu
                    # Who woke late catches up, by at most a tenth of a second.
                    self._due = max(self._due, now - 0.1) + aside / self._rate
                    return {**request, "Limit": limit}, aside
            # In short steps: a page that cost less than was set aside brings the turn forward.
            self.wait(min(max(self._due - now, 0.005), 0.05))

    def settle(self, aside: float, page: Page | None, refusal: str = "") -> None:
        """Book what the page cost in place of what was set aside, or that it was refused."""
        with self._lock:
            since = min(self._throttled_since, self._clock())
            self._throttled_since = float("inf") if page else since
            if refusal:
                self.refusals[refusal] = self.refusals.get(refusal, 0) + 1
            if self._rate:
                if page and page.consumed_rcu is None:
                    raise ScanError("--max-rcu: this endpoint does not report consumed capacity",
                                    "read small pages instead: --page-size 100")
                cost = (page.consumed_rcu or 0.0) if page else 0.0
                self._due += (cost - aside) / self._rate
                self._rcu += cost
                self._scanned += page.scanned if page else 0
                self._probing = False

    def back_off(self, refusals: int) -> bool:
        """Wait after a page's n-th refusal, longer each time; False when patience has run out."""
        if self._clock() - self._throttled_since > self.patience:
            return False
        self.wait(random.uniform(0.5, 1.0) * min(5.0, 0.05 * 2 ** min(refusals, 7)))
        return True


# --- The page loop ----------------------------------------------------------------------------


@dataclass
class Scan:
    """One run of a scan: where, what to ask for (Scan's parameters), what to do with a page.

    `each_page` gets a page's items where they are decoded, `collect` its results one by one in
    the caller's thread. Pages are decoded in the worker's thread, or in `executor` if there is
    one, any Executor: `each_page` then travels there and its result back.
    """

    connection: Connection
    request: dict[str, Any]
    pace: Pace = field(default_factory=Pace)
    each_page: EachPage | None = None
    collect: Callable[[Any], object] | None = None
    executor: Executor | None = None
    expected_items: int = 0
    connect_seconds: float = 0.0
    complete: bool = False

    def open(self) -> None:
        """Open the connections before the clock starts. Raises ScanError."""
        table_name = self.request["TableName"]
        self.connect_seconds, self.expected_items = self.connection.open(table_name)

    def pages(self, **segment: int) -> Iterator[Page]:
        """The page loop: every page of the table, or of the segment these parameters name.

        Only a missing LastEvaluatedKey tells the end: a page may be empty and not the last
        (Developer Guide, Scan). Raises ScanError, and Stopped.
        """
        request = {**self.request, **segment, "ReturnConsumedCapacity": "TOTAL"}
        while True:
            page = self.page(request)
            yield page
            if not page.last_evaluated_key:
                return
            request["ExclusiveStartKey"] = page.last_evaluated_key

    def page(self, request: dict[str, Any]) -> Page:
        """One page, however often DynamoDB refuses it for lack of capacity."""
        started, refusals, retried = time.perf_counter(), list[str](), 0
        while True:
            cut, aside = self.pace.reserve(request)
            waited = time.perf_counter() - started
            try:
                if self.executor is None:
                    page = fetch(self.connection, cut, self.each_page)
                else:
                    job = self.executor.submit(fetch, self.connection, cut, self.each_page)
                    page = job.result()
            except Throttled as throttled:
                self.pace.settle(aside, None, throttled.reason)
                refusals.append(throttled.reason)
                retried += throttled.retried
                if not self.pace.back_off(len(refusals)):
                    raise self.starvation(throttled.reason) from throttled
            else:
                self.pace.settle(aside, page)
                page.started, page.waited, page.refusals = started, waited, refusals
                page.retried_requests += retried
                return page

    def starvation(self, reason: str) -> ScanError:
        """The error for a table that gave no worker a page for too long."""
        table_name, patience = self.request["TableName"], self.pace.patience
        throughput = self.connection.describe(table_name)["ProvisionedThroughput"]
        return ScanError(
            f"throttled ({reason}): no page for {patience:.0f} s from {table_name}, whose read "
            f"capacity is {throughput['ReadCapacityUnits']} RCU",
            "restore it (./restore_capacity.sh), raise it, or read slower (--max-rcu)",
        )


# --- Accounting -------------------------------------------------------------------------------


@dataclass
class Tally:
    """What pages add up to. `consumed_rcu` is None if the engine does not say, which is not 0."""

    items: int = 0
    scanned: int = 0
    pages: int = 0
    consumed_rcu: float | None = 0.0
    throttled_requests: int = 0
    retried_requests: int = 0

    def add(self, page: Page) -> None:
        """Count a page in; one whose capacity is not known makes the sum unknown."""
        self.items += page.items
        self.scanned += page.scanned
        self.pages += 1
        unknown = self.consumed_rcu is None or page.consumed_rcu is None
        self.consumed_rcu = None if unknown else (self.consumed_rcu or 0) + (page.consumed_rcu or 0)
        self.throttled_requests += len(page.refusals)
        self.retried_requests += page.retried_requests


@dataclass
class SegmentMetrics(Tally):
    """One segment. `started` and `waits` (start, duration) are seconds from the scan's start."""

    segment: int = 0
    worker: int = 0
    started: float = 0.0
    seconds: float = 0.0
    waits: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class ScanMetrics(Tally):
    """One scan. `seconds` is from the first request to the last page, connections being open;
    `cpu_seconds` is this process's CPU time meanwhile, and an executor's for fetching pages.
    """

    mode: str = "sequential"
    table_name: str = ""
    total_segments: int = 1
    workers: int = 1
    complete: bool = False
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    connect_seconds: float = 0.0
    throttling_reasons: dict[str, int] = field(default_factory=dict)
    page_seconds: list[float] = field(default_factory=list)
    segments: list[SegmentMetrics] = field(default_factory=list)

    @contextlib.contextmanager
    def measured(self, scan: Scan) -> Iterator[Callable[[Page, SegmentMetrics], None]]:
        """Time the scan that runs inside, which accounts for its pages with what is yielded.

        An interrupt ends it, and leaves what was measured until then and `complete` False.
        """
        started, cpu_started = time.perf_counter(), time.process_time()

        def account(page: Page, segment: SegmentMetrics) -> None:
            if not segment.pages:
                segment.started = page.started - started
                self.segments.append(segment)
            segment.add(page)
            self.add(page)
            if page.waited > 0.001:
                segment.waits.append((page.started - started, page.waited))
            segment.seconds = page.started + page.waited + page.seconds - started - segment.started
            self.page_seconds.append(page.seconds)
            self.cpu_seconds += page.cpu_seconds if page.process != os.getpid() else 0.0
            if scan.collect:
                scan.collect(page.result)

        try:
            with patient_collector(), progress(self, scan):
                yield account
            self.complete = scan.complete = True
        except KeyboardInterrupt:
            self.complete = False
        finally:
            scan.pace.stop.set()
            # Of all workers, those included whose page was still to come.
            self.throttling_reasons = dict(scan.pace.refusals)
            self.throttled_requests = sum(self.throttling_reasons.values())
            self.connect_seconds = scan.connect_seconds
            self.seconds = time.perf_counter() - started
            self.cpu_seconds += time.process_time() - cpu_started
            self.segments.sort(key=lambda each: each.segment)

    def as_json(self) -> dict[str, Any]:
        """The fields of --output json."""
        fields, pages = dataclasses.asdict(self), self.page_seconds or [0.0]
        fields["items_per_second"] = self.items / self.seconds
        fields["page_seconds"] = {"median": statistics.median(pages), "slowest": max(pages)}
        return fields

    def rows(self) -> list[tuple[str, float | None, str]]:
        """The metrics as label, value and text, the lab's own four first."""
        rate, rcu, pages = self.items / self.seconds, self.consumed_rcu, self.page_seconds or [0.0]
        median, slowest = statistics.median(pages), max(pages)
        return [
            ("Total execution time", self.seconds, f"{self.seconds:.2f} s"),
            ("Items processed", self.items, f"{self.items:,}"),
            ("Items per second", rate, f"{rate:,.0f}"),
            ("Consumed capacity", rcu, "n/a" if rcu is None else f"{rcu:,.1f} RCU"),
            ("Items scanned", self.scanned, f"{self.scanned:,}"),
            ("Pages", self.pages, f"{self.pages:,}"),
            ("Median page", median, f"{median:.3f} s"),
            ("Slowest page", slowest, f"{slowest:.3f} s"),
            ("Workers", self.workers, f"{self.workers:,}"),
            ("Connecting, before", self.connect_seconds, f"{self.connect_seconds:.2f} s"),
            ("CPU time, client", self.cpu_seconds, f"{self.cpu_seconds:.2f} s"),
            ("Throttled requests", self.throttled_requests, f"{self.throttled_requests:,}"),
            ("Retried requests", self.retried_requests, f"{self.retried_requests:,}"),
        ]


@contextlib.contextmanager
def progress(metrics: ScanMetrics, scan: Scan) -> Iterator[None]:
    """While a scan runs, one line on standard error if that is a terminal; gone when done."""
    over, started = threading.Event(), time.perf_counter()

    def line() -> str:
        seconds, rcu = time.perf_counter() - started, metrics.consumed_rcu
        share = min(1.0, metrics.scanned / scan.expected_items) if scan.expected_items else 0.0
        return ", ".join(filter(None, [
            f"{metrics.items:,} items" + (f" ({share:.0%})" if share else ""),
            f"{metrics.items / seconds:,.0f}/s",
            "" if rcu is None else f"{rcu:,.0f} RCU ({rcu / seconds:,.1f}/s)",
            f"{seconds / share - seconds:,.0f} s left" if share and not scan.pace.waiting else "",
            f"{scan.pace.waiting} waiting for capacity" if scan.pace.waiting else "",
        ]))

    def draw() -> None:
        while not over.wait(0.25):
            text = line()[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    drawer = threading.Thread(target=draw, daemon=True)
    if sys.stderr.isatty():
        drawer.start()
    try:
        yield
    finally:
        over.set()
        if drawer.is_alive():
            drawer.join()


# --- Saving the items -------------------------------------------------------------------------


def json_lines(items: list[Item]) -> bytes:
    """A page as DynamoDB's export to S3 has it: {"Item": {...}} and a newline for each item."""
    text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    return "".join(f'{{"Item":{text(item)}}}\n' for item in items).encode()


@contextlib.contextmanager
def saving(scan: Scan, target: str | None) -> Iterator[None]:
    """Have the scan that runs inside written to `target`; "-" is standard output.

    It is written beside the target and takes its place when complete: the target is as it was
    before, or whole. Raises ScanError.
    """
    if target in (None, "-"):
        if target:
            scan.each_page, scan.collect = json_lines, sys.stdout.buffer.write
        yield
        return
    path = Path(str(target)).resolve()
    # A pipe or a device is written to: there is nothing to replace.
    special = path.exists() and not path.is_file()
    part = path if special else path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as stream:
            scan.each_page, scan.collect = json_lines, stream.write
            yield
        if scan.complete and not special:
            part.replace(path)
        elif not scan.complete:
            print(f"{target} was not written: the scan is incomplete", file=sys.stderr)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ScanError(f"cannot write {target}: {error.strerror}") from error
    finally:
        if not special:
            with contextlib.suppress(OSError):  # where a file stands for a folder, say
                part.unlink()


# --- The command line -------------------------------------------------------------------------


def number(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) < 12 and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")

    return parse


def rate(text: str) -> float:
    """An argparse type: a finite number above 0."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def json_object(text: str) -> dict[str, Any]:
    """An argparse type: a JSON object. Binary values are base64 in it, as for the AWS CLI."""

    def binary(value: dict[str, Any]) -> dict[str, Any]:
        if isinstance(value.get("B"), str):
            value["B"] = base64.b64decode(value["B"], validate=True)
        if isinstance(value.get("BS"), list):
            value["BS"] = [base64.b64decode(each, validate=True) for each in value["BS"]]
        return value

    try:
        value = json.loads(text, object_hook=binary)
    except (ValueError, TypeError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"not a JSON object: {text}")
    return value


class Parser(argparse.ArgumentParser):
    """argparse, with wrong usage said as every other failure is."""

    def error(self, message: str) -> NoReturn:
        raise ScanError(message, f"{self.prog} --help lists the flags", 2)


def scan_parser(description: str, save: bool = True) -> Parser:
    """The flags the scripts share. A `dest` that begins with a capital is Scan's parameter."""
    parser = Parser(description=description, allow_abbrev=False)
    flag = parser.add_argument
    flag("--table-name", dest="TableName", default="GameLeaderboard", metavar="NAME",
         help="default: GameLeaderboard")
    flag("--index-name", dest="IndexName", metavar="NAME", help="scan this index instead")
    flag("--consistent-read", dest="ConsistentRead", action="store_true", default=None,
         help="see every write made before; costs twice the capacity")
    flag("--select", dest="Select", choices=["ALL_ATTRIBUTES", "COUNT"],
         help="COUNT: only count, no item crosses the network")
    flag("--filter-expression", dest="FilterExpression", metavar="EXPR",
         help="keep what matches; the rest costs capacity all the same")
    flag("--projection-expression", dest="ProjectionExpression", metavar="EXPR",
         help="the attributes to return; the others are read and paid for too")
    flag("--expression-attribute-names", dest="ExpressionAttributeNames", type=json_object,
         metavar="JSON", help="""such as '{"#mode": "game_mode"}'""")
    flag("--expression-attribute-values", dest="ExpressionAttributeValues", type=json_object,
         metavar="JSON", help="""such as '{":min": {"N": "100"}}'""")
    flag("--page-size", dest="Limit", type=number(1, 2**31 - 1), metavar="N",
         help="items evaluated a page at most (default: as many as 1 MB holds)")
    flag("--max-rcu", type=rate, metavar="R",
         help="take at most R read capacity units a second, all workers together")
    flag("--compress", action="store_true", help="ask for gzip, for a slow link")
    flag("--region", help="default: what boto3 finds")
    flag("--profile", help="default: what boto3 finds")
    flag("--endpoint-url", metavar="URL", help="default: what boto3 finds")
    flag("--output", choices=["table", "json"], default="table",
         help="json: one object, for a program (default: table)")
    if save:
        flag("--save", metavar="FILE", type=lambda file: "-" if file == "/dev/stdout" else file,
             help="write every item, one JSON object a line; - is standard output")
    return parser


def scan_from(args: argparse.Namespace, workers: int = 1) -> Scan:
    """The scan the flags ask for."""
    connection = Connection(args.region, args.profile, args.endpoint_url, workers, args.compress)
    if args.Select == "COUNT" and getattr(args, "save", None) is not None:
        raise ScanError("--save needs the items, and --select COUNT brings none", status=2)
    given = {name: value for name, value in vars(args).items() if value is not None}
    request = {name: value for name, value in given.items() if name[0].isupper()}
    return Scan(connection, request, Pace(args.max_rcu))


def report(metrics: ScanMetrics, args: argparse.Namespace, timeline: str = "") -> int:
    """Print one scan's metrics, on standard error if its items are on standard output; returns
    the exit status.
    """
    stream = sys.stderr if args.save == "-" else sys.stdout
    if args.output == "json":
        print(json.dumps(metrics.as_json()), file=stream)
    else:
        rows = [(label, text) for label, _, text in metrics.rows()]
        print(tabulate(rows, disable_numparse=True), file=stream)
        print(timeline, end="\n" * bool(timeline), file=stream)
        for reason, times in metrics.throttling_reasons.items():
            print(f"Throttled {times} times: {reason}", file=stream)
        if not metrics.complete:
            print("Interrupted: this is what was measured until then; pages still waited for are "
                  "not in it.", file=stream)
    return 0 if metrics.complete else 130


def command(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """The one handler at the top: a failure is an `error:` line, and a `hint:` with its remedy."""

    def interrupt(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one would cut the report off
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    @functools.wraps(main)
    def guarded(argv: list[str] | None = None) -> int:
        signal.signal(signal.SIGTERM, interrupt)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, interrupt)
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed, as by >&-
                setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        try:
            status = main(argv)
            sys.stdout.flush()
            return status
        except ScanError as error:
            hint = f"\nhint: {error.hint}" if error.hint else ""
            print(f"error: {error.message}{hint}", file=sys.stderr)
            return error.status
        except BrokenExecutor:
            print("error: a worker process died\nhint: try fewer --workers", file=sys.stderr)
            return 1
        except BrokenPipeError:  # as `yes | head` ends: nobody reads on, so nothing is left to say
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except OSError as error:
            print(f"error: standard output: {error.strerror}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130

    return guarded


def leave(status: int) -> NoReturn:
    """End the process, without waiting for a worker inside a request that may never end."""
    workers = [each for each in threading.enumerate() if each is not threading.current_thread()]
    for worker in workers:
        worker.join(0.5 / len(workers))
    if any(worker.is_alive() for worker in workers):
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    raise SystemExit(status)
