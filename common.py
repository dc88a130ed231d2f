"""What the scripts of this lab share.

It has four parts. The lesson comes first:

1. The scan: `scan_pages` is the page loop, `scan_page` gets one page.
2. Timing and accounting: `Metrics` adds up what the pages say, `timed` measures.
3. The connection: `connect` makes the client, `take_items_out` makes it fast.
4. The command line: flags, results, errors, and Ctrl-C.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import getpass
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, TextIO, TypedDict

import boto3
import botocore.exceptions
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tabulate import tabulate

# ---------------------------------------------------------------------------
# 1. The scan
# ---------------------------------------------------------------------------

Client = Any  # what `connect` returns: a boto3 client for DynamoDB
Request = dict[str, Any]  # parameters of Scan, such as {"TableName": "GameLeaderboard"}


class Page(TypedDict, total=False):
    """DynamoDB's answer to one Scan request.

    It is what boto3 returns, with one difference: each of the `Items` is JSON text,
    such as b'{"score": {"N": "42"}}'. json.loads(item) makes it a dict, in which
    binary values are in base64. (With `connect(plain=True)` there is no difference.)
    """

    Items: list[Any]
    Count: int
    ScannedCount: int
    LastEvaluatedKey: dict[str, Any]
    ConsumedCapacity: dict[str, Any]


def scan_pages(client: Client, request: Request, metrics: Metrics) -> Iterator[Page]:
    """Yield the pages of a table one by one, and count them in `metrics`.

    `request` holds the parameters of Scan. With `Segment` and `TotalSegments` in
    it, these are the pages of that segment.

    A page without a LastEvaluatedKey is the last one. Nothing else tells the end:
    a page may be empty, and more pages may follow it. (API reference, Scan)

    Raises ScanError, or an error of botocore's.
    """
    request = {**request, "ReturnConsumedCapacity": "TOTAL"}
    while True:
        page = scan_page(client, request, metrics)
        metrics.add_page(page)
        yield page
        last_key = page.get("LastEvaluatedKey")
        if not last_key:
            return
        if last_key == request.get("ExclusiveStartKey"):
            # Such an endpoint would send the same page for ever.
            raise ScanError("the endpoint sent the same LastEvaluatedKey twice")
        request["ExclusiveStartKey"] = last_key


MAX_LOST_ANSWERS = 8  # for one page
PATIENCE = 30 * 60  # seconds of waiting for one page while DynamoDB throttles it
FIRST_DELAY = 0.05  # seconds; each delay is twice as long as the one before
LONGEST_DELAY = 5.0


def scan_page(client: Client, request: Request, metrics: Metrics) -> Page:
    """Get one page. Send the request again if it is throttled or its answer is lost.

    DynamoDB throttles a request when the table has no capacity left: it answers with
    an error, and the request costs nothing. An answer is lost if it does not arrive,
    if it arrives damaged, or if DynamoDB itself failed. The page may have cost
    capacity all the same.

    Any other error is raised at once.
    """
    lost_answers = 0
    waited = 0.0
    delay = FIRST_DELAY
    while True:
        try:
            return request_page(client, request)
        except (BotoCoreError, ClientError) as error:
            if is_throttled(error):
                metrics.throttled_requests += 1
                if waited > PATIENCE:
                    raise ScanError(
                        "DynamoDB throttled a page for half an hour",
                        "raise the table's capacity, or read more slowly: "
                        "parallel_scan.py --max-rcu",
                    ) from error
                started, ended = wait(delay)
                metrics.waits.append((started, ended))
                waited += ended - started
            elif is_lost(error):
                metrics.retried_requests += 1
                lost_answers += 1
                if lost_answers == MAX_LOST_ANSWERS:
                    raise
                wait(delay)
            else:
                raise
            delay = min(2 * delay, LONGEST_DELAY)


def wait(delay: float) -> tuple[float, float]:
    """Sleep for about so many seconds. Return when that started, and when it ended.

    The time is random, so that workers who were throttled together do not all send
    their next request at the same moment.
    """
    started = time.perf_counter()
    time.sleep(delay * random.uniform(0.5, 1.0))
    return started, time.perf_counter()


# What botocore's parser and `check_page` raise for an answer that is not DynamoDB's.
NOT_AN_ANSWER = (AttributeError, LookupError, RecursionError, TypeError, ValueError)


def request_page(client: Client, request: Request) -> Page:
    """Send one request. Raise ScanError if the answer cannot be DynamoDB's."""
    try:
        page: Page = client.scan(**request)
        check_page(page, counts_only=request.get("Select") == "COUNT")
    except NOT_AN_ANSWER as error:
        raise not_dynamodb(client) from error
    return page


def check_page(page: Page, counts_only: bool) -> None:
    """Raise ValueError or TypeError if DynamoDB would not send such a page."""
    count = page["Count"]
    scanned = page["ScannedCount"]
    if not isinstance(count, int) or not isinstance(scanned, int):
        raise TypeError("a count is a whole number")
    if count < 0 or count > scanned:
        raise ValueError("Count is at most ScannedCount, because a filter only removes")
    if not counts_only and len(page.get("Items", [])) != count:
        raise ValueError("Count is the number of items")
    rcu = consumed_rcu(page)
    if rcu is not None and not 0 <= rcu < math.inf:
        raise ValueError("consumed capacity is a number of RCU")


def consumed_rcu(page: Page) -> float | None:
    """The read capacity units that a page cost. None if the endpoint does not say."""
    return page.get("ConsumedCapacity", {}).get("CapacityUnits")


# Developer Guide, "Error handling with DynamoDB"
THROTTLED = {
    "ProvisionedThroughputExceededException",  # a provisioned table
    "ThrottlingException",  # a table on demand
    "RequestLimitExceeded",  # all tables of the account together
}


def is_throttled(error: Exception) -> bool:
    """Whether DynamoDB refused the request for lack of capacity."""
    if not isinstance(error, ClientError):
        return False
    # 429 means "too many requests". A proxy may say only that.
    return error_name(error) in THROTTLED or http_status(error) == 429


def is_lost(error: Exception) -> bool:
    """Whether the answer got lost. Then the same request may succeed."""
    if isinstance(error, ClientError):
        return http_status(error) >= 500  # DynamoDB failed to answer
    if isinstance(error, botocore.exceptions.SSLError):
        return False  # most often a certificate, which stays as it is
    # No connection, no answer or half of one, and a wrong checksum.
    return isinstance(
        error,
        (
            botocore.exceptions.ConnectionError,
            botocore.exceptions.HTTPClientError,
            botocore.exceptions.ChecksumError,
        ),
    )


def error_name(error: BaseException) -> str:
    """The name of an error: DynamoDB's own, or the one of its Python class."""
    if isinstance(error, ClientError):
        return str(error.response["Error"]["Code"])
    return type(error).__name__


def http_status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


class ScanError(Exception):
    """A scan cannot go on. The message, and perhaps a hint, are for the user."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(ScanError):
    """What the user asked for makes no sense."""


def not_dynamodb(client: Client) -> ScanError:
    """The error for an endpoint that answers something else."""
    return ScanError(
        f"{endpoint_of(client)} does not answer as DynamoDB does", CHECK_NETWORK
    )


# ---------------------------------------------------------------------------
# 2. Timing and accounting
# ---------------------------------------------------------------------------


@dataclass
class Metrics:
    """What was measured of one scan, or of one segment.

    `started` and `waits` are readings of time.perf_counter(). `started` is 0 before
    the start. `seconds` and `cpu_seconds` are 0 until the end.
    """

    items: int = 0  # in the pages that arrived (Count)
    scanned: int = 0  # read by DynamoDB, before any filter (ScannedCount)
    pages: int = 0
    consumed_rcu: float | None = 0.0  # None: the endpoint did not say
    throttled_requests: int = 0  # refused for lack of capacity, and sent again
    retried_requests: int = 0  # sent again because the answer was lost
    started: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of the whole process in that time
    complete: bool = False  # a scan read everything; not used for a segment
    waits: list[tuple[float, float]] = field(default_factory=list)  # while throttled
    segments: dict[int, Metrics] = field(default_factory=dict)  # of a parallel scan

    def add_page(self, page: Page) -> None:
        """Count one page."""
        self.items += page["Count"]
        self.scanned += page["ScannedCount"]
        self.pages += 1
        self.add_rcu(consumed_rcu(page))

    def add_segment(self, segment: int, metrics: Metrics) -> None:
        """Count a segment's pages, and keep its metrics."""
        self.segments[segment] = metrics
        self.items += metrics.items
        self.scanned += metrics.scanned
        self.pages += metrics.pages
        self.throttled_requests += metrics.throttled_requests
        self.retried_requests += metrics.retried_requests
        self.add_rcu(metrics.consumed_rcu)

    def add_rcu(self, rcu: float | None) -> None:
        """Add consumed capacity. If one part is not known, the sum is not known."""
        if self.consumed_rcu is None or rcu is None:
            self.consumed_rcu = None
        else:
            self.consumed_rcu += rcu

    def items_per_second(self) -> float:
        return self.items / self.seconds if self.seconds else 0.0


@contextlib.contextmanager
def timed(metrics: Metrics) -> Iterator[None]:
    """Measure the time from here to the end of the `with` block.

    A scan's first request opens its connection. The time for that is included.
    """
    metrics.started = time.perf_counter()
    cpu_started = time.process_time()
    try:
        yield
    finally:
        metrics.seconds = time.perf_counter() - metrics.started
        metrics.cpu_seconds = time.process_time() - cpu_started


# ---------------------------------------------------------------------------
# 3. The connection
# ---------------------------------------------------------------------------

MAX_CONNECTIONS = 1000  # each worker needs one


def connect(
    region: str | None = None,
    profile: str | None = None,
    endpoint_url: str | None = None,
    plain: bool = False,
) -> Client:
    """Return a boto3 client for DynamoDB. boto3 finds out itself what is None.

    The client differs from an ordinary one in two ways:

    - It sends each request only once. `scan_page` sends it again, and counts that.
    - Unless `plain`, items do not pass through botocore's parser. See
      `take_items_out`.

    Raises UsageError for a wrong endpoint or region, ScanError if credentials cannot
    be loaded, and BotoCoreError.
    """
    session = boto3.Session(profile_name=profile, region_name=region)
    # Without a terminal, the prompt for an MFA code warns and then fails.
    warnings.simplefilter("error", getpass.GetPassWarning)
    # Load credentials now, in the main thread, because boto3 may ask for an MFA code.
    load_credentials(session)
    config = Config(
        # "legacy" checks the checksum of each page. With a single attempt,
        # "standard" and "adaptive" return a damaged page as if it were good.
        retries={"mode": "legacy", "total_max_attempts": 1},
        connect_timeout=5,
        read_timeout=10,
        max_pool_connections=MAX_CONNECTIONS,
    )
    try:
        client = session.client("dynamodb", endpoint_url=endpoint_url, config=config)
        check_address(client.meta.endpoint_url)
    except BotoCoreError:
        raise
    except ValueError as error:
        raise UsageError(
            "the endpoint or the region is not valid",
            "an endpoint looks like http://localhost:8000, a region like us-east-1",
        ) from error
    # Credentials may expire during a long scan. So botocore looks at them twice for
    # each request. `load_credentials` looks a moment before botocore, so that a failure
    # is reported as one of the credentials.
    for event in ("provide-client-params", "before-sign"):
        client.meta.events.register(
            f"{event}.dynamodb", lambda **_: load_credentials(session)
        )
    if not plain:
        client.meta.events.register("before-parse.dynamodb.Scan", take_items_out)
    return client


def check_address(url: str) -> None:
    """Raise ValueError for a wrong scheme or port. botocore checks the rest."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("DynamoDB speaks HTTP")
    _ = parts.port  # raises ValueError if it is no port


def endpoint_of(client: Client) -> str:
    """The endpoint's URL, without the name and the password that may be in it."""
    parts = urllib.parse.urlsplit(client.meta.endpoint_url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def load_credentials(session: boto3.Session) -> None:
    """Load the user's credentials, or renew them if they are about to expire.

    Raises NoCredentialsError if there are none, and ScanError if that fails.
    """
    try:
        credentials = session.get_credentials()
        if credentials is None:
            raise botocore.exceptions.NoCredentialsError
        keys = credentials.get_frozen_credentials()
        text = "".join([keys.access_key or "", keys.secret_key or "", keys.token or ""])
    except botocore.exceptions.NoCredentialsError:
        raise
    except getpass.GetPassWarning as error:
        raise ScanError(
            "could not load credentials: there is no terminal to enter an MFA code in"
        ) from error
    except Exception as error:  # the user's files and programs can fail in any way
        raise ScanError(
            f"could not load credentials: {type(error).__name__}: {error}",
            "aws sts get-caller-identity shows whether the AWS CLI can load them",
        ) from error
    if not (text.isascii() and text.isprintable()):
        # They go into the headers of a request. The HTTP client would refuse such a
        # header, and print it.
        raise ScanError(
            "could not load credentials: a key or a token contains a line break or "
            "another special character"
        )


SPACE = r"[ \t\r\n]*"  # what may stand between the parts of a JSON text
# The text before the first item, and between two items. (?=\{) means: a { follows.
FIRST_ITEM = re.compile(rf'"Items"{SPACE}:{SPACE}\[{SPACE}(?=\{{)')
NEXT_ITEM = re.compile(rf"{SPACE},{SPACE}(?=\{{)")
json_decoder = json.JSONDecoder()


def take_items_out(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any
) -> None:
    """Take the items out of an answer to Scan before botocore parses the answer.

    botocore's parser visits every attribute of every item in Python code. Only one
    thread at a time can run Python code (the GIL), so more threads do not parse
    faster. Python's JSON decoder is written in C. Here it finds where each item
    ends, and that takes a fifteenth of the time.

    botocore calls this function with the answer in `response_dict`. An example:

        {"Count":2,"Items":[{"score":{"N":"42"}},{"score":{"N":"7"}}],"ScannedCount":2}
                            ^ start                                  ^ end

    The texts of the items go into `customized_response_dict`. botocore adds what is
    in there to the page. (What the decoder made of an item is thrown away.) botocore
    parses only the rest:

        {"Count":2,"Items":[],"ScannedCount":2}

    A body that is not JSON is left as it is. botocore compares the checksum later.
    (The hook is called before-parse. botocore has it since 1.35.16.)
    """
    body: bytes = response_dict["body"]
    # In Latin-1 each byte is one character. So a position in `text` is the same
    # position in `body`.
    text = body.decode("latin-1")
    first_item = FIRST_ITEM.search(text)
    if first_item is None:
        return
    start = item_start = first_item.end()
    items = []
    try:
        while True:
            _, end = json_decoder.raw_decode(text, item_start)
            items.append(body[item_start:end])
            comma = NEXT_ITEM.match(text, end)
            if comma is None:
                break
            item_start = comma.end()
    except (ValueError, RecursionError):
        return  # this is not JSON
    customized_response_dict["Items"] = items
    response_dict["body"] = body[:start] + body[end:]


# ---------------------------------------------------------------------------
# 4. The command line
# ---------------------------------------------------------------------------

DONE = 0
FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = 130  # as shells have it: 128 and the number of SIGINT


def add_scan_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that all scripts share. They are named as in the AWS CLI."""
    reading = parser.add_argument_group("what to read")
    reading.add_argument(
        "--table-name", default="GameLeaderboard", help="default: GameLeaderboard"
    )
    reading.add_argument("--index-name", metavar="NAME", help="scan this index instead")
    reading.add_argument(
        "--consistent-read",
        action="store_true",
        help="see every write that was made before; costs twice the capacity",
    )
    reading.add_argument(
        "--page-size",
        type=whole_number(1, 1_000_000_000),
        metavar="N",
        help="read at most N items for a page (Scan's Limit)",
    )
    reading.add_argument(
        "--select",
        choices=["ALL_ATTRIBUTES", "COUNT"],
        help="COUNT: count the items, do not send them; costs the same capacity",
    )
    reading.add_argument(
        "--filter-expression",
        metavar="EXPR",
        help="send only the items that match; the others cost capacity, too",
    )
    reading.add_argument(
        "--projection-expression",
        metavar="EXPR",
        help="send only these attributes; the others cost capacity, too",
    )
    reading.add_argument(
        "--expression-attribute-names",
        type=json_object,
        metavar="JSON",
        help="""names for the expressions: '{"#mode": "game_mode"}'""",
    )
    reading.add_argument(
        "--expression-attribute-values",
        type=json_object,
        metavar="JSON",
        help="""values for the expressions: '{":min": {"N": "100"}}'""",
    )
    connection = parser.add_argument_group("connection (default: what boto3 finds)")
    connection.add_argument("--region", metavar="REGION", help="such as us-east-1")
    connection.add_argument("--profile", metavar="NAME", help="of your AWS settings")
    connection.add_argument(
        "--endpoint-url", metavar="URL", help="such as http://localhost:8000"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        choices=["table", "json"],
        default="table",
        help="json: for another program",
    )


def request_from(args: argparse.Namespace) -> Request:
    """The parameters of Scan that the flags ask for."""
    request = {
        "TableName": args.table_name,
        "IndexName": args.index_name,
        "ConsistentRead": args.consistent_read or None,
        "Limit": args.page_size,
        "Select": args.select,
        "FilterExpression": args.filter_expression,
        "ProjectionExpression": args.projection_expression,
        "ExpressionAttributeNames": args.expression_attribute_names,
        "ExpressionAttributeValues": args.expression_attribute_values,
    }
    return {name: value for name, value in request.items() if value is not None}


def whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    """A `type` for argparse: a whole number from lowest to highest."""

    def parse(text: str) -> int:
        number = int(text)
        if not lowest <= number <= highest:
            raise argparse.ArgumentTypeError(
                f"{text} is not from {lowest:,} to {highest:,}"
            )
        return number

    parse.__name__ = "whole number"  # argparse shows it: invalid whole number value
    return parse


def json_object(text: str) -> dict[str, Any]:
    """A `type` for argparse: a JSON object. Binary values (B, BS) are in base64."""
    try:
        value = json.loads(text, object_hook=decode_binary)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text} is not a JSON object")
    return value


def decode_binary(value: dict[str, Any]) -> dict[str, Any]:
    """Decode the base64 of a binary attribute value; leave any other as it is."""
    binary = value.get("B")
    if isinstance(binary, str):
        return {"B": base64.b64decode(binary, validate=True)}
    binary_set = value.get("BS")
    if isinstance(binary_set, list):
        return {"BS": [base64.b64decode(one, validate=True) for one in binary_set]}
    return value


def metrics_rows(metrics: Metrics) -> dict[str, str]:
    """The metrics for a person: a name and a text each. The lab's own come first."""
    rcu = "n/a"
    if metrics.consumed_rcu is not None:
        # From a million on, tenths say nothing, and would make the column too wide.
        digits = 1 if metrics.consumed_rcu < 1_000_000 else 0
        rcu = f"{metrics.consumed_rcu:,.{digits}f}"
    rows = {
        "Total execution time": f"{metrics.seconds:.2f} s",
        "Items processed": f"{metrics.items:,}",
        "Items per second": f"{metrics.items_per_second():,.0f}",
        "Consumed RCU": rcu,
        "Pages": f"{metrics.pages:,}",
        "CPU time": f"{metrics.cpu_seconds:.2f} s",
    }
    if metrics.scanned != metrics.items:
        rows["Items scanned"] = f"{metrics.scanned:,}"
    if metrics.throttled_requests:
        rows["Throttled requests"] = f"{metrics.throttled_requests:,}"
    if metrics.retried_requests:
        rows["Retried requests"] = f"{metrics.retried_requests:,}"
    return rows


def metrics_json(
    metrics: Metrics, segments: dict[int, Metrics], **description: Any
) -> dict[str, Any]:
    """The metrics for a program.

    `description` says what was scanned: mode, table_name, total_segments, workers.
    """
    return {
        **description,
        "complete": metrics.complete,
        "seconds": metrics.seconds,
        "cpu_seconds": metrics.cpu_seconds,
        **counts_json(metrics),
        "items_per_second": metrics.items_per_second(),
        "segments": [
            {
                "segment": segment,
                **counts_json(of_segment),
                "started": of_segment.started - metrics.started,
                "seconds": of_segment.seconds,
            }
            for segment, of_segment in segments.items()
        ],
    }


def counts_json(metrics: Metrics) -> dict[str, Any]:
    return {
        "items": metrics.items,
        "scanned": metrics.scanned,
        "pages": metrics.pages,
        "consumed_rcu": metrics.consumed_rcu,
        "throttled_requests": metrics.throttled_requests,
        "retried_requests": metrics.retried_requests,
    }


def metrics_table(metrics: Metrics) -> str:
    return tabulate(metrics_rows(metrics).items(), disable_numparse=True)


def print_result(text: str, complete: bool, stream: TextIO | None = None) -> int:
    """Print the result, on standard output by default. Return the exit status."""
    if not complete:
        # The user wants to leave. If the output is a pipe that nobody reads, printing
        # would wait for ever. So end the program in a second in any case.
        timer = threading.Timer(1, os._exit, [INTERRUPTED])
        timer.daemon = True
        timer.start()
    say(text, stream or sys.stdout)
    if complete:
        return DONE
    say("interrupted: this is what was read until then", sys.stderr)
    return INTERRUPTED


def say(text: str, stream: TextIO) -> None:
    """Print a text and a newline. A line of progress makes room for it."""
    show_line("")
    write_all(stream, f"{text}\n".encode(stream.encoding, "replace"))


def write_all(stream: IO[Any], data: bytes) -> None:
    """Write to a stream at once, and not to a buffer that is written later."""
    while data:
        written = os.write(stream.fileno(), data)
        data = data[written:]


class Progress:
    """A line on the terminal that shows how far a scan has come."""

    def __init__(self) -> None:
        self.next_time = 0.0

    def is_due(self) -> bool:
        """Whether it is time to show it: once a second, and only on a terminal."""
        return sys.stderr.isatty() and time.monotonic() >= self.next_time

    def show(self, metrics: Metrics, how_far: str = "") -> None:
        self.next_time = time.monotonic() + 1
        seconds = time.perf_counter() - metrics.started
        items_per_second = metrics.items / seconds
        line = f"{how_far}{metrics.items:,} items ({items_per_second:,.0f}/s)"
        if metrics.consumed_rcu is not None:
            line += f", {metrics.consumed_rcu / seconds:,.0f} RCU/s"
        if metrics.throttled_requests:
            line += f", {metrics.throttled_requests:,} throttled"
        show_line(line)


def show_line(text: str) -> None:
    """Replace the line of progress on standard error, if that is a terminal."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        write_all(sys.stderr, f"\r\x1b[K{text[:width]}".encode())


CHECK_NETWORK = "check the network, --region and --endpoint-url"
NO_ACCOUNT = (
    "run aws configure, or try it without an account: "
    "python tests/local_dynamodb.py compare.py"
)
# By the name that DynamoDB or botocore gives the error.
HINTS = {
    "AccessDeniedException": "README.md shows the permissions that a scan needs",
    "ConnectTimeoutError": CHECK_NETWORK,
    "ConnectionClosedError": CHECK_NETWORK,
    "EndpointConnectionError": CHECK_NETWORK,
    "ExpiredTokenException": "renew your credentials",
    "InvalidSignatureException": "check this machine's clock and your credentials",
    "InternalServerError": "try again in a minute",
    "InvalidRegionError": "a region looks like us-east-1",
    "NoCredentialsError": NO_ACCOUNT,
    "NoRegionError": NO_ACCOUNT,
    "ProfileNotFound": "aws configure list-profiles shows your profiles",
    "ProxyConnectionError": CHECK_NETWORK,
    "ReadTimeoutError": CHECK_NETWORK,
    "ResourceNotFoundException": "check --table-name, --region and --endpoint-url",
    "SSLError": "check --endpoint-url, and the certificates (AWS_CA_BUNDLE)",
    "ThrottlingException": "try again in a minute",
    "UnrecognizedClientException": "check your credentials and --region",
    "ValidationException": "check the flags; if a name in them is a reserved word, "
    """use a placeholder: --expression-attribute-names '{"#n": "name"}'""",
}


def hint_for(error: BaseException) -> str:
    """What the user can do about an error. Empty if there is nothing to say."""
    if isinstance(error, ScanError):
        return error.hint
    name = error_name(error)
    if name.isdigit():  # only an HTTP status: it is not from DynamoDB itself
        return CHECK_NETWORK
    return HINTS.get(name, "")


FAILURES = (ScanError, BotoCoreError, ClientError, OSError)  # messages for the user
USAGE_ERRORS = (
    UsageError,
    botocore.exceptions.InvalidRegionError,
    botocore.exceptions.ParamValidationError,
)


def run_script(main: Callable[[], int]) -> int:
    """Call a script's main function, and return the exit status.

    A failure is printed as one line, `error: ...`, and perhaps a second one,
    `hint: ...`.
    """
    if sys.stdout is None or sys.stderr is None:
        sys.exit("error: standard output or standard error is closed")
    sys.unraisablehook = end_if_interrupted
    try:
        handle_signals(interrupt)
        try:
            return main_status(main)
        finally:
            # From now on, a signal only ends the program. One that has come until now
            # is handled during this call, as a KeyboardInterrupt.
            handle_signals(end_at_once)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError:
        return FAILED  # the error itself could not be printed
    finally:
        handle_signals(signal.SIG_IGN)  # nothing changes the exit status any more


def main_status(main: Callable[[], int]) -> int:
    """Call a script's main function. If it fails, say so. Return the exit status."""
    try:
        return main()
    except FAILURES as error:
        # A SegmentError, for example, was raised from the error of a worker.
        cause = error.__cause__ or error
        if isinstance(cause, BrokenPipeError):
            return FAILED  # nobody reads the output any more: `| head`
        say_error(error)
        wrong_usage = isinstance(error, USAGE_ERRORS) or isinstance(cause, USAGE_ERRORS)
        return WRONG_USAGE if wrong_usage else FAILED


def handle_signals(handler: Callable[..., None] | signal.Handlers) -> None:
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


def interrupt(*_: object) -> None:
    """Handle Ctrl-C or SIGTERM. The next signal ends the program at once."""
    handle_signals(end_at_once)
    raise KeyboardInterrupt


def end_at_once(*_: object) -> None:
    os._exit(INTERRUPTED)


def end_if_interrupted(unraisable: Any) -> None:
    """Handle an exception that cannot come out of a destructor, such as urllib3's.

    Python would print it and go on. If it is a KeyboardInterrupt, the program ends.
    """
    if unraisable.exc_type is KeyboardInterrupt:
        end_at_once()
    sys.__unraisablehook__(unraisable)


def say_error(error: BaseException) -> None:
    """Print an error on one line, and what to do about it on a second one."""
    say(f"error: {one_line(str(error))[:500]}", sys.stderr)
    hint = hint_for(error)
    if hint:
        say(f"hint: {hint}", sys.stderr)


def one_line(message: str) -> str:
    """Make an error's message fit for a terminal, without a password in it."""
    printable = "".join(c if c.isprintable() else " " for c in message)
    message = " ".join(printable.split())
    message = re.sub(r"//[^/\s]*@", "//", message)  # http://name:password@host
    # botocore counts its own retries. There are none, because `scan_page` retries.
    return message.replace(" (reached max retries: 0)", "")
