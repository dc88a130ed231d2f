"""The lab's table GameLeaderboard on this machine, without an AWS account.

    python tests/local_dynamodb.py --items 200000 --read-capacity 0 compare.py

This serves the table on 127.0.0.1, in DynamoDB's own protocol. It runs the
COMMAND that follows the options, and exits with COMMAND's exit status.
COMMAND's environment leads boto3 and the AWS CLI to the table: endpoint, region
and dummy credentials are set, and your own AWS_* variables are removed.
"python", or a COMMAND that ends in .py, runs with this very interpreter.
Without COMMAND, the lines to export are printed, and the table is served until
Ctrl-C.

It is a model of a table under load, not a database. It answers DescribeTable,
UpdateTable and Scan. It refuses what it does not model, for instance filters.

Data      Games of players, 25 a player, the same on every start. A scan of
          2,000 items costs 50.0 RCU, a strongly consistent one 100.0.
Order     By the MD5 of the partition key, as in dynalite. A segment is a range
          of these hashes.
Pages     A page ends with the item that reaches 1 MB, or after Limit items.
Time      Every answer takes --latency-ms. A page takes --ms-per-mb more for
          each MB it reads. A partition of DynamoDB serves at most 3,000 RCU a
          second. That ceiling is not modelled.
Capacity  The table has --read-capacity RCU a second. It saves what is not used,
          for up to --burst-seconds. It starts with all of that saved. A Scan is
          admitted while any capacity is left, even if its page costs more than
          that (an assumption). With 0 the table is on demand, and a request is
          throttled only by --fault-rate. UpdateTable takes --update-seconds.
Faults    With probability --fault-rate, a Scan meets a fault: it is throttled,
          it gets status 500, its connection is reset, its page is cut short, or
          its x-amz-crc32 is wrong. The last three lose a page that is paid for,
          as in life. The same --seed and requests give the same faults.
Log       --request-log gets a line of JSON for each request: time (seconds
          since the start), operation, segment (null without one), items, rcu
          (what the table paid, 0 if refused) and outcome ("ok", the error's
          name, or the fault).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from games import MB, Json, Page, game_table, hash_of, lowest_hash, to_json

TABLE_NAME = "GameLeaderboard"
FAULTS = ("throttle", "500", "reset", "truncated", "bad-crc")

Clock = Callable[[], float]
Script = Callable[[int, Json], "str | None"]


@dataclass(frozen=True)
class Settings:
    """What the lab models: the options of the command line, and three for tests.

    `script` is called with a Scan's number (valid Scans, from 0) and its parameters. It
    returns the name of a fault or None. It may also say "hang": no answer comes.
    `padding` adds an attribute of so many bytes to every item. Without
    `report_capacity`, no answer has a ConsumedCapacity.
    """

    items: int = 20_000
    latency_ms: float = 10.0
    ms_per_mb: float = 100.0
    read_capacity: int = 5
    burst_seconds: float = 300.0
    update_seconds: float = 1.5
    fault_rate: float = 0.0
    seed: int = 0
    port: int = 0
    request_log: Path | None = None
    script: Script | None = None
    padding: int = 0
    report_capacity: bool = True


# --- Capacity -------------------------------------------------------------------------


class Bucket:
    """The RCU that are left: `rate` more each second, at most `burst_seconds` of it."""

    def __init__(self, rate: float, burst_seconds: float, clock: Clock) -> None:
        self.rate = rate
        self.burst_seconds = burst_seconds
        self.clock = clock
        self.balance = rate * burst_seconds
        self.filled = clock()  # when it was last brought up to date

    def fill(self, now: float) -> None:
        """Add what has come in since the last time."""
        self.balance += self.rate * (now - self.filled)
        self.balance = min(self.balance, self.rate * self.burst_seconds)
        self.filled = now

    def take(self, rcu: float) -> bool:
        """Pay for a page, if anything is left. The balance may go below zero."""
        self.fill(self.clock())
        if self.balance <= 0:
            return False
        self.balance -= rcu
        return True

    def change_rate(self, rate: float, when: float) -> None:
        """From `when` on, fill at another rate. Keep what is saved, up to the limit."""
        self.fill(when)
        self.rate = rate
        self.fill(when)


def rcu_of(page: Page, consistent: bool) -> float:
    """Half an RCU for each 4 KB begun, a whole one if strongly consistent."""
    blocks = math.ceil(page.size / 4096)
    return blocks * 1.0 if consistent else blocks * 0.5


# --- Requests that DynamoDB would refuse, or that the lab does not model --------------


class Refusal(Exception):
    """An error that is the answer to a request. Its name is DynamoDB's own."""

    def __init__(self, name: str, message: str, status: int = 400) -> None:
        super().__init__(name, message)
        self.status = status
        self.outcome = name if status == 400 else str(status)
        kind = f"com.amazonaws.dynamodb.v20120810#{name}"
        self.document: Json = {"__type": kind, "message": message}


def invalid(message: str) -> Refusal:
    return Refusal("ValidationException", message)


def throttled() -> Refusal:
    name = "ProvisionedThroughputExceededException"
    return Refusal(name, "The table's read capacity is exceeded.")


def parse(body: bytes) -> Json:
    with suppress(ValueError):
        params = json.loads(body)
        if isinstance(params, dict):
            return params
    raise Refusal("SerializationException", "The request is not a JSON object.")


def check_table(operation: str, params: Json) -> None:
    if operation not in ("DescribeTable", "UpdateTable", "Scan"):
        message = f"the local lab does not model {operation}"
        raise Refusal("UnknownOperationException", message)
    if params.get("TableName") != TABLE_NAME:
        raise Refusal("ResourceNotFoundException", "There is no such table.")


def check_names(params: Json, *modelled: str) -> None:
    """Refuse a parameter that the lab would otherwise ignore."""
    for name in params:
        if name not in modelled:
            raise invalid(f"the local lab does not model {name}")


def check_number(params: Json, name: str, low: int, high: int = 2**31 - 1) -> None:
    """Refuse what is not a whole number in this range. The parameter may be missing."""
    value = params.get(name, low)
    if type(value) is not int:
        raise Refusal("SerializationException", f"{name} is not a whole number.")
    if not low <= value <= high:
        raise invalid(f"{name} must be from {low} to {high}.")


def check_scan(params: Json) -> None:
    check_names(
        params,
        *("TableName", "Segment", "TotalSegments", "Limit", "ExclusiveStartKey"),
        *("ConsistentRead", "Select", "ReturnConsumedCapacity"),
    )
    check_number(params, "Limit", 1)
    check_number(params, "Segment", 0, 999_999)
    check_number(params, "TotalSegments", 1, 1_000_000)
    if ("Segment" in params) != ("TotalSegments" in params):
        raise invalid("Segment and TotalSegments need each other.")
    if params.get("Segment", 0) >= params.get("TotalSegments", 1):
        raise invalid("Segment must be less than TotalSegments.")


# --- The lab: every request is answered here, without the network ---------------------


class Answer(NamedTuple):
    """What goes back to the client, and how many seconds that takes in the model."""

    status: int
    body: bytes
    seconds: float
    fault: str | None = None


class Lab:
    """The table and its state."""

    def __init__(self, settings: Settings, clock: Clock = time.monotonic) -> None:
        self.settings = settings
        self.clock = clock
        self.started = clock()
        self.endpoint_url = ""  # filled in by serve()
        self.requests: list[Json] = []  # the request log
        self.table = game_table(settings.items, settings.padding)
        read = settings.read_capacity
        self.on_demand = read == 0
        write = 0 if self.on_demand else 5
        self.capacity = {"ReadCapacityUnits": read, "WriteCapacityUnits": write}
        self.next_capacity = self.capacity  # another one while the table is updated
        self.update_ends = 0.0
        self.bucket = Bucket(read, settings.burst_seconds, clock)
        self.scans = 0  # how many were valid
        self.chance = random.Random(settings.seed)
        self.lock = threading.RLock()

    def answer(self, operation: str, body: bytes) -> Answer:
        """Accept or refuse one request, and enter it in the request log."""
        params: Json = {}
        status = 200
        with self.lock:
            try:
                params = parse(body)
                check_table(operation, params)
                self.finish_update()
                if operation == "Scan":
                    return self.scan(params)
                if operation == "UpdateTable":
                    self.start_update(params)
                    document = {"TableDescription": self.description()}
                else:
                    document = {"Table": self.description()}
                self.log(operation, params, "ok")
            except Refusal as refusal:
                status = refusal.status
                document = refusal.document
                self.log(operation, params, refusal.outcome)
        return Answer(status, to_json(document), self.settings.latency_ms / 1000)

    def log(
        self, operation: str, params: Json, outcome: str, items: int = 0, rcu: float = 0
    ) -> None:
        entry = {
            "time": round(self.clock() - self.started, 6),
            "operation": operation,
            "segment": params.get("Segment"),
            "items": items,
            "rcu": rcu,
            "outcome": outcome,
        }
        self.requests.append(entry)
        if self.settings.request_log:
            with self.settings.request_log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    # DescribeTable and UpdateTable

    def updating(self) -> bool:
        return self.next_capacity != self.capacity

    def description(self) -> Json:
        table: Json = {
            "TableName": TABLE_NAME,
            "TableStatus": "UPDATING" if self.updating() else "ACTIVE",
            "KeySchema": [
                {"AttributeName": "player_id", "KeyType": "HASH"},
                {"AttributeName": "game_id", "KeyType": "RANGE"},
            ],
            "ProvisionedThroughput": self.capacity,
            "ItemCount": self.settings.items,
            "TableSizeBytes": self.table.sizes[-1],
        }
        if self.on_demand:
            table["BillingModeSummary"] = {"BillingMode": "PAY_PER_REQUEST"}
        return table

    def start_update(self, params: Json) -> None:
        """Begin to change the capacity. The old one counts until that is finished."""
        check_names(params, "TableName", "ProvisionedThroughput")
        wanted = params.get("ProvisionedThroughput")
        if not isinstance(wanted, dict) or wanted.keys() != self.capacity.keys():
            raise invalid("ReadCapacityUnits and WriteCapacityUnits are required.")
        for name in self.capacity:
            check_number(wanted, name, 1)
        if self.on_demand:
            raise invalid("A table on demand has no capacity to change.")
        if self.updating():
            raise Refusal("ResourceInUseException", "The table is being updated.")
        if wanted == self.capacity:
            raise invalid("The requested value equals the current value.")
        self.next_capacity = wanted
        self.update_ends = self.clock() + self.settings.update_seconds

    def finish_update(self) -> None:
        """Put the new capacity into force, once the time for it has come."""
        if self.updating() and self.clock() >= self.update_ends:
            self.capacity = self.next_capacity
            rate = self.capacity["ReadCapacityUnits"]
            self.bucket.change_rate(rate, self.update_ends)

    # Scan

    def scan(self, params: Json) -> Answer:
        """Find the page, let the request pay for it, and answer with it."""
        check_scan(params)
        page = self.find_page(params)
        count = page.end - page.first
        rcu = rcu_of(page, bool(params.get("ConsistentRead")))

        fault = self.choose_fault(params)
        if fault == "hang":
            self.log("Scan", params, fault)
            return Answer(0, b"", 0.0, fault)
        if fault == "500":
            raise Refusal("InternalServerError", "Internal server error", status=500)
        if fault == "throttle":
            raise throttled()
        if not self.on_demand and not self.bucket.take(rcu):
            raise throttled()
        self.log("Scan", params, fault or "ok", count, rcu)

        document: Json = {"Count": count, "ScannedCount": count}
        if page.limited:
            document["LastEvaluatedKey"] = self.table.key(page.end - 1)
        asked = params.get("ReturnConsumedCapacity", "NONE") != "NONE"
        if asked and self.settings.report_capacity:
            consumed = {"TableName": TABLE_NAME, "CapacityUnits": rcu}
            document["ConsumedCapacity"] = consumed
        answer = to_json(document)
        if params.get("Select") != "COUNT":
            items = b",".join(self.table.items[page.first : page.end])
            answer = answer[:-1] + b',"Items":[' + items + b"]}"
        ms = self.settings.latency_ms + self.settings.ms_per_mb * page.size / MB
        return Answer(200, answer, ms / 1000, fault)

    def find_page(self, params: Json) -> Page:
        segment = params.get("Segment", 0)
        total_segments = params.get("TotalSegments", 1)
        first, end = self.table.bounds(segment, total_segments)
        if "ExclusiveStartKey" in params:
            key = params["ExclusiveStartKey"]
            try:
                player_id = str(key["player_id"]["S"])
                game_id = str(key["game_id"]["S"])
            except (KeyError, TypeError):
                raise invalid("ExclusiveStartKey is no key of this table.") from None
            low = lowest_hash(segment, total_segments)
            high = lowest_hash(segment + 1, total_segments)
            if not low <= hash_of(player_id) < high:
                raise invalid("ExclusiveStartKey is not in this segment.")
            first = self.table.after(player_id, game_id)
        return self.table.page(first, end, params.get("Limit"))

    def choose_fault(self, params: Json) -> str | None:
        """The fault that this Scan meets, if any."""
        number = self.scans
        self.scans += 1
        if self.settings.script:
            return self.settings.script(number, params)
        if self.chance.random() < self.settings.fault_rate:
            return self.chance.choice(FAULTS)
        return None


# --- HTTP -----------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """A client's connection. It stays open for the client's next request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # send the end of a page at once
    wbufsize = -1  # a buffer: the head goes out together with the body's first part
    server: Server

    def setup(self) -> None:
        self.server.connections.append(self.request)
        super().setup()

    def do_POST(self) -> None:
        arrived = time.monotonic()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
        answer = self.server.lab.answer(operation, body)
        if answer.fault == "hang":
            self.rfile.read(1)  # until the client gives up, or the server stops
            self.close_connection = True
            return
        crc32 = zlib.crc32(answer.body)
        if answer.fault == "bad-crc":
            crc32 += 1
        time.sleep(max(0.0, arrived + answer.seconds - time.monotonic()))
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("x-amz-crc32", str(crc32))
        self.end_headers()
        if answer.fault in ("reset", "truncated"):
            self.send_half(answer.body, reset=answer.fault == "reset")
        else:
            self.wfile.write(answer.body)

    def send_half(self, body: bytes, reset: bool) -> None:
        """Send half of a page. Then close the connection, or reset it."""
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        self.close_connection = True
        if reset:
            # To linger for 0 seconds means: close with an RST instead of a FIN.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the lab has a log of its own."""


class Server(ThreadingHTTPServer):
    """A thread for each connection, on 127.0.0.1 only."""

    request_queue_size = 1024  # connections that may wait until they are accepted

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.connections: list[socket.socket] = []  # all there ever were
        super().__init__(("127.0.0.1", lab.settings.port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say why a request got no answer. That a client is gone is no error."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            warn(f"error: a request failed: {error}")

    def stop(self) -> None:
        """Stop serving, and end the connections that are still open."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with suppress(OSError):  # it may be closed already
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve(settings: Settings) -> Iterator[Lab]:
    """Serve the table in this process, until the `with` block ends.

    Raises OSError if the port is taken or the request log cannot be written.
    """
    lab = Lab(settings)
    server = Server(lab)
    lab.endpoint_url = f"http://127.0.0.1:{server.server_address[1]}"
    if settings.request_log:
        settings.request_log.write_text("")  # an earlier one is replaced
    poll_interval = 0.05  # seconds until it notices that it is to stop
    thread = threading.Thread(
        target=server.serve_forever, args=(poll_interval,), daemon=True
    )
    thread.start()
    try:
        yield lab
    finally:
        server.stop()


# --- Command line ---------------------------------------------------------------------


def settings_for_aws(endpoint_url: str) -> dict[str, str]:
    """The environment variables that lead boto3 and the AWS CLI to the lab."""
    return {
        "AWS_ENDPOINT_URL_DYNAMODB": endpoint_url,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "no_proxy": "127.0.0.1",  # goes before NO_PROXY wherever both are read
    }


def lab_environment(endpoint_url: str) -> dict[str, str]:
    """The environment of a program that uses the lab: no AWS setting is the user's."""
    environment = dict(os.environ)
    for name in os.environ:
        if name.startswith("AWS_"):
            del environment[name]
    environment.update(settings_for_aws(endpoint_url))
    return environment


# The same rule for sh, bash and zsh. One name is given: zsh's unset needs at least one.
UNSET = r"unset AWS_PROFILE $(env | sed -n 's/^\(AWS_[A-Za-z0-9_]*\)=.*/\1/p')"


def warn(line: str) -> None:
    print(line, file=sys.stderr)


def serve_until_ctrl_c(endpoint_url: str) -> int:
    """Print what to paste into another terminal. Wait for Ctrl-C or SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    print(UNSET)
    for name, value in settings_for_aws(endpoint_url).items():
        print(f"export {name}={value}")
    sys.stdout.flush()
    warn(f"Serving {TABLE_NAME} until Ctrl-C: paste these lines into another terminal")
    stop.wait()
    return 0


def run(command: list[str], endpoint_url: str) -> int:
    """Run COMMAND. Returns its exit status, or 128 + n if signal n ended it."""
    name = command[0]
    words = command
    if name == "python":
        words = [sys.executable, *command[1:]]
    elif name.endswith(".py") and Path(name).is_file():
        words = [sys.executable, *command]
    # Ctrl-C reaches COMMAND, too. What to do is COMMAND's decision, so we go on.
    # (To ignore the signal would not do: COMMAND would inherit that.)
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        child = subprocess.Popen(words, env=lab_environment(endpoint_url))
    except OSError as error:
        warn(f"error: cannot run {name}: {error.strerror}")
        for file in (f"{name}.py", f"./{name}"):
            if Path(file).is_file():
                warn(f"hint: did you mean {file}?")
        return 127
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    if command in (["bash"], ["sh"], ["zsh"]) and sys.stdin.isatty():
        warn(f"this shell uses {TABLE_NAME} at {endpoint_url}; exit ends both")
    status = child.wait()
    if status == 2:
        point_out_own_option(command)
    return status if status >= 0 else 128 - status


def point_out_own_option(command: list[str]) -> None:
    """COMMAND did not understand its options. Perhaps one was meant for the lab."""
    for word in command[1:]:
        option = word.partition("=")[0]
        if option == "--request-log" or option in [f"--{name}" for name in NUMBERS]:
            what = f"{option} is an option of the local lab"
            warn(f"hint: {what}: put it before {command[0]}")
            return


MANY = 1_000_000_000
# The options that take a number: the lowest, the highest, and what it means.
NUMBERS = {
    "items": (0, 10_000_000, "items in the table"),
    "latency-ms": (0, MANY, "the fixed part of an answer's time"),
    "ms-per-mb": (0, MANY, "the time to read 1 MB of items"),
    "read-capacity": (0, MANY, "RCU a second; 0: on demand"),
    "burst-seconds": (1, MANY, "seconds of unused capacity that are saved"),
    "update-seconds": (0, MANY, "how long UpdateTable takes"),
    "fault-rate": (0, 1, "probability that a Scan meets a fault"),
    "seed": (0, MANY, "which faults are drawn"),
    "port": (0, 65_535, "0: any free one"),
}


def parse_arguments(argv: Sequence[str] | None) -> tuple[Settings, list[str]]:
    """The settings, and COMMAND with its own arguments."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] [COMMAND ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    defaults = vars(Settings())
    for name, (_, _, meaning) in NUMBERS.items():
        default = defaults[name.replace("-", "_")]
        text = f"{meaning} ({default:g})"
        add(f"--{name}", metavar="N", type=type(default), default=default, help=text)
    add("--request-log", metavar="FILE", type=Path, help="a line of JSON a request")
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = vars(parser.parse_args(argv))
    for name, (low, high, _) in NUMBERS.items():
        if not low <= options[name.replace("-", "_")] <= high:
            parser.error(f"argument --{name}: a number from {low} to {high} is needed")
    command = options.pop("command")
    if command and command[0] == "--":
        command = command[1:]
    return Settings(**options), command


def main(argv: Sequence[str] | None = None) -> int:
    settings, command = parse_arguments(argv)
    try:
        with serve(settings) as lab:
            if command:
                return run(command, lab.endpoint_url)
            return serve_until_ctrl_c(lab.endpoint_url)
    except OSError as error:
        warn(f"error: {error}")
        return 1
    except KeyboardInterrupt:  # while the items are made
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
