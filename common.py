"""What the scripts share: table access, timing, and consumed-capacity accounting.

Read `Scan.pages`, the page loop; `fetch`, one request; `split_items`, the items in its answer;
`ScanMetrics`, which adds up; `Pace`, when the next request may go out. The command line comes last.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from argparse import ArgumentParser, Namespace
from base64 import b64decode, b64encode
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from math import inf
from pathlib import Path
from random import getrandbits, uniform
from shutil import copymode
from threading import Lock
from time import monotonic, perf_counter, process_time, sleep
from typing import Any, Optional

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from tabulate import tabulate

Json = dict[str, Any]
Function = Callable[..., Any]
OnPage = Optional[Function]
Pages = Generator["Page", None, None]
STANDARD_OUTPUT = ("-", "/dev/stdout", "/dev/fd/1")
client_lock = Lock()  # creating clients is not thread-safe


class ScanError(RuntimeError):
    """A failure in words for the user."""


class Interrupted(SystemExit, KeyboardInterrupt):
    """Ends a script from wherever it is, without a traceback; its argument: the exit status."""


class Throttled(Exception):
    """DynamoDB refused a request for lack of capacity; its argument: attempts lost before that."""


@dataclass(frozen=True)
class Scan:
    """What to scan, with which of Scan's parameters, how fast; it may be run more than once.

    `each_page` is called where a page is read, with its items: the JSON texts that came, such as
    {"score": {"N": "42"}}, binary ones in base64. With an `executor`, pages are fetched there."""
    connection: Connection
    request: Json
    pace: Pace = field(default_factory=lambda: Pace(None))
    each_page: OnPage = None
    executor: Any = None  # of concurrent.futures

    def pages(self, **segment: int) -> Pages:
        """Every page of the table, or of the segment that `Segment` and `TotalSegments` name.

        Only a missing LastEvaluatedKey tells the end: a page may be empty and not the last one
        (Developer Guide, Scan). A throttled request is yielded too, its `pages` being 0, and sent
        again. Raises ScanError, BotoCoreError and ClientError."""
        request = {**self.request, **segment, "ReturnConsumedCapacity": "TOTAL"}
        refusals = 0
        while True:
            page = self.ask(request)
            yield page
            if page.throttled_requests:
                refusals += 1
                self.pace.back_off(refusals)
            elif page.last_evaluated_key:
                refusals = 0
                request["ExclusiveStartKey"] = page.last_evaluated_key
            else:
                return

    def ask(self, request: Json) -> Page:
        """Send one request when its turn has come. Raises as `pages` does."""
        with self.pace.turn(request) as admitted:
            started = perf_counter()
            job = partial(fetch, self.connection, admitted, self.each_page)
            page = self.executor.submit(job).result() if self.executor else job()
            self.pace.pay(page)
        page.segment = request.get("Segment", 0)
        page.started = started
        page.seconds = perf_counter() - started
        return page

    def opening(self) -> Iterator[str]:
        """Open a connection, at no RCU. What DynamoDB says no to, it will tell the scan."""
        with self.connection.client() as client, suppress(ClientError):
            client.describe_table(TableName=self.request["TableName"])
        yield "open"


def fetch(connection: Connection, request: Json, each_page: OnPage) -> Page:
    """Send one Scan request, and give its items to `each_page`. Raises as `Scan.pages` does."""
    with connection.client() as client:
        try:
            answer = client.scan(**request)
        except Throttled as throttled:
            return Page(throttled_requests=1, retried_requests=throttled.args[0])
        if "Body" not in answer:  # a botocore that does not call keep_body
            answer["Body"] = json.dumps(answer, default=lambda b: b64encode(b).decode()).encode()
        retried = answer["ResponseMetadata"]["RetryAttempts"]
        texts, rest = split_items(answer["Body"])
        answer = json_value(rest)
        page = Page(items=answer["Count"], scanned=answer["ScannedCount"], pages=1,
                    consumed_rcu=answer.get("ConsumedCapacity", {}).get("CapacityUnits"),
                    retried_requests=retried,
                    last_evaluated_key={**answer.get("LastEvaluatedKey", {})})  # fmt: skip
        rcu = 0 if page.consumed_rcu is None else page.consumed_rcu
        expected = 0 if request.get("Select") == "COUNT" else page.items
        # Something is left of Items if it was no item; it is missing if the items were not in it.
        if (len(texts) != expected or answer.get("Items", texts and None) != []
                or not 0 <= page.items <= page.scanned < 1e9 > rcu >= 0):  # fmt: skip
            raise ValueError
    page.result = each_page(texts) if each_page else None
    return page


FIRST_ITEM = re.compile(r'"Items"\s*:\s*\[\s*(?=\{)')
NEXT_ITEM = re.compile(r"\s*,\s*(?=\{)")
decode_value = json.JSONDecoder().raw_decode


def split_items(body: bytes) -> tuple[list[str], bytes]:
    """The text of each item in an answer to Scan, and the answer without its items.

    The array called Items is theirs: an attribute of that name has an object for a value, and in a
    string quotes are escaped. Decoding an item checks it. Raises ValueError and RecursionError."""
    # In Latin-1 a byte is a character. UTF-8 grows while it is decoded, which fragments memory.
    answer = body.decode("latin-1")
    before = first = FIRST_ITEM.search(answer)
    if not first:
        return [], body
    texts = []
    while before:
        start = before.end()
        end = decode_value(answer, start)[1]
        texts.append(body[start:end].decode().replace("\n", " "))  # each is to be one line
        before = NEXT_ITEM.match(answer, end)
    return texts, body[: first.end()] + body[end:]


def json_value(text: Any) -> Any:
    """JSON, in which binary values are base64. Raises ValueError, also for sets of them."""
    return json.loads(text, object_hook=with_bytes)


def with_bytes(value: Json) -> Json:
    if isinstance(value.get("B"), str):
        value["B"] = b64decode(value["B"], validate=True)
    if isinstance(value.get("BS"), list):
        raise ValueError("BS")
    return value


@dataclass(frozen=True)
class Connection:
    """How to reach DynamoDB; what is None, boto3 resolves. It may travel to another process."""
    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None

    @contextmanager
    def client(self) -> Iterator[Any]:
        """This process's client; inside, an answer that DynamoDB would not give is a ScanError."""
        with client_lock:
            client = new_client(self, os.getpid())
        try:
            yield client
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            endpoint_url = client.meta.endpoint_url
            raise ScanError(f"{endpoint_url} does not answer as DynamoDB does") from error


@cache
def new_client(connection: Connection, process: int) -> Any:
    """A client for one process: it may not cross to another, a fork's child included."""
    # Newer retry modes have a quota that many workers run dry, and hand on what has a wrong CRC.
    config = Config(retries={"mode": "legacy", "total_max_attempts": 8}, connect_timeout=5,
                    read_timeout=10, max_pool_connections=1000)  # fmt: skip
    session = boto3.Session(profile_name=connection.profile, region_name=connection.region)
    client = session.client("dynamodb", endpoint_url=connection.endpoint_url, config=config)
    client.meta.events.register("before-parse.dynamodb.Scan", keep_body)
    client.meta.events.register("needs-retry.dynamodb.Scan", raise_throttled)
    return client


def keep_body(response_dict: Json, customized_response_dict: Json, **_: Any) -> None:
    """before-parse hook: keep a page from botocore's parser, for `fetch` to split.

    It visits each attribute in Python, under the GIL: that is why threads gain little in plain
    boto3. Signing, retries and the CRC check, of the bytes as they came, stay botocore's."""
    if response_dict["status_code"] == 200:
        customized_response_dict["Body"] = response_dict["body"]
        response_dict["body"] = b"{}"


def raise_throttled(response: Any, attempts: int, **_: Any) -> None:
    """needs-retry hook: take throttling out of botocore's hands; `Scan.pages` waits it out."""
    code = response[1].get("Error", {}).get("Code", "") if response else ""
    if re.search("Throttl|(Throughput|Limit)Exceeded|TooManyRequests|SlowDown|429", code):
        raise Throttled(attempts - 1)


@dataclass
class Counts:
    """What requests come to. `consumed_rcu` is None if the engine does not say, which is not 0."""
    items: int = 0
    scanned: int = 0
    pages: int = 0
    consumed_rcu: float | None = 0.0
    throttled_requests: int = 0
    retried_requests: int = 0

    def add(self, page: Page) -> None:
        """Count a page in. If what it consumed is not known, neither is the sum."""
        for name in ("items", "scanned", "pages", "throttled_requests", "retried_requests"):
            setattr(self, name, getattr(self, name) + getattr(page, name))
        if self.consumed_rcu is None or page.consumed_rcu is None:
            self.consumed_rcu = None
        else:
            self.consumed_rcu += page.consumed_rcu


@dataclass
class Page(Counts):
    """What one request brought; `started` is in seconds of time.perf_counter, `seconds` long."""
    last_evaluated_key: Any = None
    result: Any = None
    segment: int = 0
    started: float = 0.0
    seconds: float = 0.0


@dataclass
class SegmentMetrics(Counts):
    """One segment; `started` and the waits' starts and ends are seconds since the scan's start."""
    segment: int = 0
    started: float = 0.0
    seconds: float = 0.0
    waits: list[tuple[float, float]] = field(default_factory=list)

    def add_page(self, page: Page, started: float) -> None:
        """Count in a page asked for at `started`; since the last one came, there was a wait."""
        self.started = self.started or started
        if page.pages:
            last_end = self.started + self.seconds
            if started - last_end > 0.001:
                self.waits.append((last_end, started))
            self.seconds = started + page.seconds - self.started
        self.add(page)


@dataclass
class ScanMetrics(Counts):
    """One scan; `seconds` from the first request on until the last page is read, and collected."""
    mode: str = "sequential"
    table_name: str = ""
    total_segments: int = 1
    workers: int = 1
    complete: bool = False
    connect_seconds: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    items_per_second: float = 0.0
    segments: list[SegmentMetrics] = field(default_factory=list)

    def measure(self, opened: Iterator[str], pages: Pages, collect: OnPage) -> None:
        """Open connections, read pages, `collect` their results; if interrupted, not `complete`."""
        started = perf_counter()
        cpu_started = process_time()
        try:
            list(opened)
            self.connect_seconds = perf_counter() - started
            started += self.connect_seconds
            cpu_started = process_time()
            for page in pages:
                self.segments[page.segment - self.segments[0].segment].add_page(
                    page, page.started - started
                )
                self.add(page)
                if collect and page.pages:
                    collect(page.result)
                draw_line(f"{self.items:,} items, {self.consumed_rcu} RCU, "
                          f"{self.throttled_requests} requests throttled")  # fmt: skip
            self.complete = True
        except KeyboardInterrupt:
            pass  # it is not complete
        finally:
            pages.close()
            self.seconds = perf_counter() - started
            self.cpu_seconds = process_time() - cpu_started
            self.items_per_second = self.items / self.seconds
            draw_line("")

    def rows(self) -> dict[str, str]:
        """The metrics in words, the lab's own four first; the last three only if they say much."""
        rcu = self.consumed_rcu
        metrics = [
            ("Total execution time", self.seconds, "{:.2f} s"),
            ("Items processed", self.items, "{:,}"),
            ("Items per second", self.items_per_second, "{:,.0f}"),
            ("Consumed RCU", "n/a" if rcu is None else f"{rcu:,.1f}", "{}"),
            ("Pages", self.pages, "{:,}"),
            ("CPU time", self.cpu_seconds, "{:.2f} s"),
            ("Connecting before", self.connect_seconds, "{:.2f} s"),
            ("Items scanned", self.scanned if self.scanned != self.items else None, "{:,}"),
            ("Throttled requests", self.throttled_requests or None, "{:,}"),
            ("Retried requests", self.retried_requests or None, "{:,}"),
        ]
        return {name: form.format(value) for name, value, form in metrics if value is not None}


def draw_line(text: str) -> None:
    """Put a text in the place of the one before, on standard error, if that is a terminal."""
    if sys.stderr.isatty():
        write(sys.stderr, f"\r\x1b[K{text}".encode())


@dataclass
class Pace:
    """When a worker may send its next request; all workers of a scan share it.

    In any ten seconds the table pays `max_rcu` times ten and one page at most, unless answers are
    lost on the way. What it paid is a debt, which time makes good at 0.93 of that rate; a request
    under way has a full page set aside. Another goes out while both are half a second's worth at
    most: 0.5 + 9.3 in ten seconds, and the last page; 0.2 are left for overfull pages."""
    max_rcu: int | None = None
    clock: Function = monotonic
    sleep: Function = sleep
    lock: Any = field(default_factory=Lock)
    made_good_at: float = 0.0
    set_aside: float = 0.0  # seconds' worth
    item_rcu: float = 5.0  # what an item of the last page cost; before there is one, a high guess
    throttled_since: float = inf

    @contextmanager
    def turn(self, request: Json) -> Iterator[Json]:
        """Wait for a request's turn; yields it cut, by its Limit, to about a second's worth."""
        if self.max_rcu is None:
            yield request
            return
        # 1 MB and a little more, at half an RCU each 4 KB (Developer Guide, Scan).
        full_page = 128.5 * (2 if request.get("ConsistentRead") else 1) / self.max_rcu
        while True:
            with self.lock:
                if max(0.0, self.made_good_at - self.clock()) + self.set_aside <= 0.5:
                    self.set_aside += full_page
                    break
            self.sleep(0.02)
        # At least 2 RCU: of less, too much would be lost in rounding up to 4 KB.
        limit = max(1, int(max(2, self.max_rcu) / self.item_rcu))
        try:
            yield {**request, "Limit": min(limit, request.get("Limit", limit))}
        finally:
            with self.lock:
                self.set_aside -= full_page

    def pay(self, page: Page) -> None:
        """Enter what a page cost. Raises ScanError if that is not known but has to be."""
        if page.pages:
            self.throttled_since = inf
        if self.max_rcu is None:
            return
        if page.consumed_rcu is None:
            raise ScanError("--max-rcu needs an endpoint that reports consumed capacity")
        with self.lock:
            # A page that was lost on the way and sent again may have been paid for each time.
            paid = page.consumed_rcu * (1 + page.retried_requests)
            self.made_good_at = max(self.made_good_at, self.clock()) + paid / (0.93 * self.max_rcu)
            if page.scanned:
                self.item_rcu = max(0.5, page.consumed_rcu) / page.scanned

    def back_off(self, refusals: int) -> None:
        """Wait after a page's n-th refusal. Raises ScanError after five minutes without a page."""
        self.throttled_since = min(self.throttled_since, self.clock())
        if self.clock() - self.throttled_since > 300:
            self.throttled_since = inf  # the scan may be run again
            raise ScanError("throttled for five minutes, in which no worker got a page")
        self.sleep(uniform(0.5, 1.0) * min(5.0, 0.05 * 2 ** min(refusals, 7)))


def json_lines(texts: list[str]) -> bytes:
    """A page as DynamoDB's export to S3 has it: {"Item": {...}} and a newline for each item."""
    return b"".join(f'{{"Item":{text}}}\n'.encode() for text in texts)


def saved(file: str | None, run: Callable[..., ScanMetrics]) -> ScanMetrics:
    """Have a scan write what it collects to FILE, which is replaced by what is whole; a pipe, a
    device, a descriptor and "-", standard output, are written to as they are. Raises OSError."""
    if file is None or file in STANDARD_OUTPUT:
        return run(file and partial(write, sys.stdout))
    path = Path(os.path.realpath(file))  # a link stays one
    if file.startswith("/dev/fd/") or (Path(file).exists() and not path.is_file()):
        with Path(file).open("ab") as stream:
            return run(partial(write, stream))
    part = path.with_name(f".{getrandbits(64):x}.part")
    try:
        with part.open("xb") as stream:
            with suppress(FileNotFoundError):
                copymode(file, part)
            metrics = run(partial(write, stream))
        if metrics.complete:
            part.replace(path)
        return metrics
    finally:
        part.unlink(missing_ok=True)


def write(stream: Any, data: bytes) -> None:
    """Write it all, without a buffer that would be written after an interrupt. Raises OSError."""
    try:
        while data:
            data = data[os.write(stream.fileno(), data) :]
    except OSError as error:
        error.filename = stream.name
        raise


REMEDIES = {  # the first one counts that is found in an error's name or message
    "ResourceNotFound": "is it there, and ACTIVE? check --table-name, --region, --endpoint-url",
    "AccessDenied": "README.md has the policy that a scan needs",
    "NoCredentials|PartialCred|NoRegion": "run aws configure, or try it without an account: "
    "python tests/local_dynamodb.py compare.py",
    "ProfileNotFound": "aws configure list-profiles shows the profiles there are",
    "Expired|UnrecognizedClient|InvalidSignature|SSO|Token": "renew credentials, check the clock",
    "attribute name|reserved": """use --expression-attribute-names '{"#mode": "game_mode"}'""",
    "attribute value|parameter ExpressionAttributeValues": "values go into "
    """--expression-attribute-values '{":min": {"N": "100"}}'""",
    "Invalid endpoint|region_name": "check --region, and --endpoint-url: http://host:port",
    r"Connect|Timeout|HTTPClient|SSL|ChecksumError|occurred \([0-9]|not answer": "check the "
    "network, --region and --endpoint-url",
    "throttled for": "raise the table's capacity, or read more slowly: --max-rcu",
    "--max-rcu needs": "read small pages instead: --page-size 100",
}


def status_of(main: Callable[[], int]) -> int:
    """Run a script's main; returns the exit status. A failure is `error:`, with its `hint:`."""
    if None in (sys.stdout, sys.stderr):
        raise SystemExit("error: standard output or standard error is closed")
    handle_signals(interrupt)
    try:
        return main()
    except BrokenPipeError:  # as `yes | head` ends: nobody reads on
        return 141
    except (BotoCoreError, ClientError, OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        hints = [hint for words, hint in REMEDIES.items() if re.search(words, repr(error))]
        say("\nhint: ".join([f"error: {said:.500}", *hints[:1]]), sys.stderr)
        return 2 if isinstance(error, (ValueError, ParamValidationError)) else 1
    finally:
        handle_signals(signal.SIG_IGN)  # it is about to end


def handle_signals(handler: Any) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM"):
        number = getattr(signal, name, signal.SIGINT)  # Windows has the first two
        if signal.getsignal(number) is not signal.SIG_IGN:  # as it is under nohup
            signal.signal(number, handler)


def interrupt(*_: object) -> None:
    """A signal's handler. Another one would cut off the report; an alarm does, if that is stuck."""
    handle_signals(lambda *_: None)  # SIG_IGN would complain of a signal that is on its way
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, interrupt)
        signal.alarm(1)
    raise Interrupted(130)


def add_scan_flags(parser: ArgumentParser, save: bool = True) -> None:
    """The flags that the scripts share; a `dest` in capitals is a parameter of Scan's."""
    flag = parser.add_argument_group("what to read").add_argument
    flag("--table-name", dest="TableName", default="GameLeaderboard", help="default: %(default)s")
    flag("--index-name", dest="IndexName", metavar="NAME", help="scan this index instead")
    flag("--consistent-read", dest="ConsistentRead", action="store_true",
         help="see every write made before; costs twice the capacity")
    flag("--select", dest="Select", choices=["ALL_ATTRIBUTES", "COUNT"], help="COUNT: send none")
    flag("--filter-expression", dest="FilterExpression", metavar="EXPR",
         help="keep what matches; the rest costs capacity all the same")
    flag("--projection-expression", dest="ProjectionExpression", metavar="EXPR",
         help="send these attributes; the others cost capacity all the same")
    flag("--expression-attribute-names", dest="ExpressionAttributeNames", type=json_value,
         metavar="JSON", help="""such as '{"#mode": "game_mode"}'""")
    flag("--expression-attribute-values", dest="ExpressionAttributeValues", type=json_value,
         metavar="JSON", help="""such as '{":min": {"N": "100"}}'""")
    flag = parser.add_argument_group("capacity").add_argument
    flag("--page-size", dest="Limit", type=int, help="items read for a page, at most")
    flag("--max-rcu", type=int, metavar="R",
         help="take at most R read capacity units a second, all workers together")
    flag = parser.add_argument_group("connection").add_argument
    for name in ("--region", "--profile", "--endpoint-url"):
        flag(name, help="default: what boto3 finds")
    flag = parser.add_argument_group("output").add_argument
    flag("--output", choices=["table", "json"], default="table", help="json: for a program")
    if save:
        flag("--save", metavar="FILE", help="write every item, one JSON object a line, as "
             "DynamoDB's export to S3 does; - is standard output")  # fmt: skip


def scan_from(args: Namespace) -> Scan:
    """The scan that the flags ask for. Raises ValueError."""
    file = vars(args).get("save")
    if file and args.Select == "COUNT":
        raise ValueError("--save needs the items, and --select COUNT sends none")
    if args.max_rcu is not None and not 1 <= args.max_rcu <= 1_000_000:
        raise ValueError("--max-rcu is a whole number from 1 to 1,000,000")
    flags = vars(args).items()
    request = {name: value for name, value in flags if name[0].isupper() and value is not None}
    connection = Connection(args.region, args.profile, args.endpoint_url)
    return Scan(connection, request, Pace(args.max_rcu), json_lines if file else None)


def report(metrics: ScanMetrics, args: Namespace, chart: str = "") -> int:
    """Print one scan's metrics, not where its items went; returns the exit status."""
    text = json.dumps(asdict(metrics))
    if args.output == "table":
        text = f"{tabulate(metrics.rows().items(), disable_numparse=True)}{chart}"
    say(text, sys.stderr if args.save in STANDARD_OUTPUT else sys.stdout)
    if metrics.complete:
        return 0
    say("Interrupted: these pages came until then; others were under way.", sys.stderr)
    return 130


def say(text: str, stream: Any) -> None:
    """Print a line, at once. Raises OSError."""
    write(stream, f"{text}\n".encode(stream.encoding, "replace"))
