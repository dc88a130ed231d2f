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
Order     By a hash of the partition key, the same as in dynalite, the emulator
          that the tests use. A segment is a range of these hashes.
Pages     A page ends with the item that reaches 1 MB, or after Limit items.
Time      Every answer takes --latency-ms. A page takes --ms-per-mb more for
          each MB it reads.
Capacity  The table has --read-capacity RCU a second. It saves what is not used,
          for up to --burst-seconds. It starts with all of that saved. A Scan is
          admitted while any capacity is left, even if its page costs more than
          that (an assumption). UpdateTable takes --update-seconds. A table on
          demand, --read-capacity 0, never throttles.
Faults    With probability --fault-rate, a Scan meets one of five faults.
          "throttle" and "500" refuse it, and it costs nothing. "reset",
          "truncated" and "bad-crc" damage a page that the table is paid for.
          Requests that come in the same order meet the same faults, if --seed
          is the same.
Log       --request-log gets a line of JSON for each request: time (when it was
          admitted or refused, in seconds since the start), operation, segment
          (null without one), items, rcu (what the table paid), and outcome:
          "ok", the name of the error, "500", "reset", "truncated" or "bad-crc".
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from games import MB, Json, Page, game_table, is_in_segment, to_json

TABLE_NAME = "GameLeaderboard"
FAULTS = ("throttle", "500", "reset", "truncated", "bad-crc")
# What the lab models of each operation
PARAMETERS = {
    "DescribeTable": "TableName",
    "UpdateTable": "TableName ProvisionedThroughput",
    "Scan": "TableName Segment TotalSegments Limit ExclusiveStartKey ConsistentRead "
    "Select ReturnConsumedCapacity",
}


@dataclass(frozen=True)
class Settings:
    """What the lab models: the options of the command line, and one for tests.

    `script` chooses the faults. It is called with the number of a Scan (from 0) and its
    parameters, and returns a fault or None. It may also return "hang": no answer comes.
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
    script: Callable[[int, Json], str | None] | None = None


# --- Requests that are refused --------------------------------------------------------


class Refusal(Exception):
    """An error that is the answer to a request. Its name is DynamoDB's own."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def invalid(message: str) -> Refusal:
    return Refusal("ValidationException", message)


def error_body(name: str, message: str) -> bytes:
    kind = f"com.amazonaws.dynamodb.v20120810#{name}"
    return to_json({"__type": kind, "message": message})


def whole_number(params: Json, name: str, default: int, lowest: int) -> int:
    """A parameter that is a whole number, or its default."""
    value = params.get(name, default)
    if not isinstance(value, int) or value < lowest:
        raise invalid(f"{name} has to be a whole number from {lowest} on.")
    return value


# --- Capacity -------------------------------------------------------------------------


class Capacity:
    """What the table may spend: so many RCU a second, and those that it has saved."""

    def __init__(self, settings: Settings, now: float) -> None:
        self.on_demand = settings.read_capacity == 0
        self.burst_seconds = max(1.0, settings.burst_seconds)  # this second counts, too
        self.update_seconds = settings.update_seconds
        # What DescribeTable says
        self.units = {
            "ReadCapacityUnits": settings.read_capacity,
            "WriteCapacityUnits": 0 if self.on_demand else 5,
        }
        self.left = settings.read_capacity * self.burst_seconds  # RCU
        self.refilled = now  # the time for which `left` is right
        self.next_units: Json | None = None  # while the table is being updated
        self.update_ends = 0.0

    def pass_time(self, now: float) -> None:
        """Add what came in since the last time, and end an update that is over."""
        if self.next_units and now >= self.update_ends:
            self.refill(self.update_ends)  # at the old rate
            self.units = self.next_units
            self.next_units = None
        self.refill(now)

    def refill(self, until: float) -> None:
        rate = self.units["ReadCapacityUnits"]
        self.left += rate * (until - self.refilled)
        self.left = min(self.left, rate * self.burst_seconds)
        self.refilled = until

    def pay(self, rcu: float) -> bool:
        """Pay for a page, if anything is left. Then less than nothing may be left."""
        if self.on_demand:
            return True
        if self.left <= 0:
            return False
        self.left -= rcu
        return True

    def update(self, params: Json, now: float) -> None:
        """Begin to change the units. The old ones count until the update ends."""
        if self.on_demand:
            raise invalid("A table on demand has no capacity to change.")
        wanted = params.get("ProvisionedThroughput", {})
        # Both units have to be given: the default is too low.
        units = {name: whole_number(wanted, name, 0, lowest=1) for name in self.units}
        if self.next_units:
            raise Refusal("ResourceInUseException", "The table is being updated.")
        if units == self.units:
            raise invalid("The requested value equals the current value.")
        self.next_units = units
        self.update_ends = now + self.update_seconds


# --- The lab: every request is answered here, without the network ---------------------


def rcu_of(page: Page, consistent: bool) -> float:
    """Half an RCU for each 4 KB begun, a whole one if strongly consistent."""
    blocks = math.ceil(page.size / 4096)
    return blocks * 1.0 if consistent else blocks * 0.5


class Answer(NamedTuple):
    """What goes back to the client, and what the request log says about it."""

    status: int
    body: bytes
    outcome: str = "ok"  # or the fault, or the name of the error
    items: int = 0
    rcu: float = 0  # what the table paid
    size: int = 0  # of the items that were read, in bytes


class Lab:
    """The table and its state."""

    def __init__(
        self, settings: Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings
        self.table = game_table(settings.items)
        self.clock = clock
        self.started = clock()
        self.capacity = Capacity(settings, self.started)
        self.endpoint_url = ""  # filled in by serve()
        self.requests: list[Json] = []  # the request log
        self.scans = 0  # the valid ones
        self.chance = random.Random(settings.seed)
        self.lock = threading.Lock()

    def answer(self, operation: str, body: bytes) -> Answer:
        """Answer one request, and enter it in the request log."""
        with self.lock:
            now = self.clock()
            self.capacity.pass_time(now)
            params: Json = {}
            try:
                params = json.loads(body)
                answer = self.handle(operation, params, now)
            except Refusal as error:
                answer = Answer(400, error_body(error.name, str(error)), error.name)
            except ValueError:  # from json.loads: a client was killed while it sent
                name = "SerializationException"
                answer = Answer(400, error_body(name, "This is not JSON."), name)
            self.log(operation, params, answer, now)
        return answer

    def handle(self, operation: str, params: Json, now: float) -> Answer:
        if operation not in PARAMETERS:
            message = f"the local lab does not model {operation}"
            raise Refusal("UnknownOperationException", message)
        for name in params:
            if name not in PARAMETERS[operation].split():
                raise invalid(f"the local lab does not model {name}")
        if params.get("TableName") != TABLE_NAME:
            raise Refusal("ResourceNotFoundException", "There is no such table.")
        if operation == "Scan":
            return self.scan(params)
        if operation == "DescribeTable":
            return Answer(200, to_json({"Table": self.description()}))
        self.capacity.update(params, now)
        return Answer(200, to_json({"TableDescription": self.description()}))

    def log(self, operation: str, params: Json, answer: Answer, now: float) -> None:
        entry = {
            "time": round(now - self.started, 6),
            "operation": operation,
            "segment": params.get("Segment"),
            "items": answer.items,
            "rcu": answer.rcu,
            "outcome": answer.outcome,
        }
        self.requests.append(entry)
        if self.settings.request_log:
            with self.settings.request_log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def description(self) -> Json:
        table: Json = {
            "TableName": TABLE_NAME,
            "TableStatus": "UPDATING" if self.capacity.next_units else "ACTIVE",
            "KeySchema": [
                {"AttributeName": "player_id", "KeyType": "HASH"},
                {"AttributeName": "game_id", "KeyType": "RANGE"},
            ],
            "ProvisionedThroughput": self.capacity.units,
            "ItemCount": self.settings.items,
            "TableSizeBytes": sum(self.table.sizes),
        }
        if self.capacity.on_demand:
            table["BillingModeSummary"] = {"BillingMode": "PAY_PER_REQUEST"}
        return table

    def scan(self, params: Json) -> Answer:
        """Find the page, let the request pay for it, and answer with it."""
        select = params.get("Select", "ALL_ATTRIBUTES")
        if select not in ("ALL_ATTRIBUTES", "COUNT"):
            raise invalid(f"the local lab does not model {select}")
        page = self.find_page(params)
        rcu = rcu_of(page, params.get("ConsistentRead") is True)
        fault = self.choose_fault(params)
        if fault == "hang":
            return Answer(0, b"", fault)  # nothing of it is sent
        if fault == "500":
            return Answer(500, error_body("InternalServerError", ""), fault)
        # A request that a fault throttles does not pay.
        if fault == "throttle" or not self.capacity.pay(rcu):
            name = "ProvisionedThroughputExceededException"
            raise Refusal(name, "The table's read capacity is exceeded.")
        body = self.page_body(page, params, rcu)
        return Answer(200, body, fault or "ok", page.count, rcu, page.size)

    def find_page(self, params: Json) -> Page:
        if ("Segment" in params) != ("TotalSegments" in params):
            raise invalid("Segment and TotalSegments need each other.")
        segment = whole_number(params, "Segment", 0, lowest=0)
        total_segments = whole_number(params, "TotalSegments", 1, lowest=1)
        no_limit = self.settings.items + 1  # no page has so many items
        limit = whole_number(params, "Limit", no_limit, lowest=1)
        if segment >= total_segments:
            raise invalid("Segment must be less than TotalSegments.")
        first = self.table.start_of(segment, total_segments)
        end = self.table.start_of(segment + 1, total_segments)
        if "ExclusiveStartKey" in params:
            try:
                player_id = params["ExclusiveStartKey"]["player_id"]["S"]
                game_id = params["ExclusiveStartKey"]["game_id"]["S"]
            except KeyError:
                raise invalid("ExclusiveStartKey is no key of this table.") from None
            if not is_in_segment(player_id, segment, total_segments):
                raise invalid("ExclusiveStartKey is not in this segment.")
            first = self.table.after(player_id, game_id)
        return self.table.page(first, end, limit)

    def choose_fault(self, params: Json) -> str | None:
        """The fault that this Scan meets, if any."""
        number = self.scans
        self.scans += 1
        if self.settings.script:
            return self.settings.script(number, params)
        if self.chance.random() < self.settings.fault_rate:
            return self.chance.choice(FAULTS)
        return None

    def page_body(self, page: Page, params: Json, rcu: float) -> bytes:
        document: Json = {"Count": page.count, "ScannedCount": page.count}
        if page.has_last_key:
            document["LastEvaluatedKey"] = self.table.key(page.end - 1)
        if params.get("ReturnConsumedCapacity", "NONE") != "NONE":
            consumed = {"TableName": TABLE_NAME, "CapacityUnits": rcu}
            document["ConsumedCapacity"] = consumed
        body = to_json(document)
        if params.get("Select") == "COUNT":
            return body
        # The items are JSON texts already. They go before the closing brace.
        items = b",".join(self.table.items[page.first : page.end])
        return body[:-1] + b',"Items":[' + items + b"]}"

    def seconds(self, answer: Answer) -> float:
        """How long an answer takes in the model."""
        ms = self.settings.latency_ms + self.settings.ms_per_mb * answer.size / MB
        return ms / 1000


# --- HTTP -----------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """A client's connection. It stays open for the client's next request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # send the end of a page at once
    server: Server

    def do_POST(self) -> None:
        arrived = time.monotonic()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
        answer = self.server.lab.answer(operation, body)
        if answer.outcome == "hang":
            self.rfile.read(1)  # returns when the client closes the connection
            self.close_connection = True
            return
        crc32 = zlib.crc32(answer.body)
        if answer.outcome == "bad-crc":
            crc32 += 1
        ready = arrived + self.server.lab.seconds(answer)
        time.sleep(max(0.0, ready - time.monotonic()))
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("x-amz-crc32", str(crc32))
        self.end_headers()
        if answer.outcome not in ("reset", "truncated"):
            self.wfile.write(answer.body)
            return
        self.wfile.write(answer.body[: len(answer.body) // 2])
        self.close_connection = True
        if answer.outcome == "reset":
            # To linger for 0 seconds means: close with an RST instead of a FIN.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the lab has a log of its own."""


class Server(ThreadingHTTPServer):
    """A thread for each connection, on 127.0.0.1 only."""

    request_queue_size = 1024  # connections that may wait until they are accepted

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        super().__init__(("127.0.0.1", lab.settings.port), Handler)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection. The base class sends a FIN first, even before an RST."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say why a request got no answer. That a client is gone is no error."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            warn(f"error: a request failed: {error!r}")


@contextmanager
def serve(settings: Settings) -> Iterator[Lab]:
    """Serve the table in this process. The `with` block's end closes the port.

    Raises OSError if the port is taken or the request log cannot be written.
    """
    lab = Lab(settings)
    server = Server(lab)
    lab.endpoint_url = f"http://127.0.0.1:{server.server_address[1]}"
    if settings.request_log:
        settings.request_log.write_text("")  # an earlier one is replaced
    # serve_forever looks every 0.05 seconds whether it has to stop.
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    try:
        yield lab
    finally:
        server.shutdown()
        server.server_close()


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
    users = os.environ.items()
    others = {name: value for name, value in users if not name.startswith("AWS_")}
    return {**others, **settings_for_aws(endpoint_url)}


# What removes the user's AWS_* variables in sh, bash and zsh. AWS_PROFILE is named
# because zsh's unset needs a name even if there is no such variable.
UNSET = r"unset AWS_PROFILE $(env | sed -n 's/^\(AWS_[A-Za-z0-9_]*\)=.*/\1/p')"


def warn(line: str) -> None:
    print(line, file=sys.stderr)


def serve_until_ctrl_c(endpoint_url: str) -> int:
    """Print what to paste into another terminal. Wait for Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        print(UNSET)
        for name, value in settings_for_aws(endpoint_url).items():
            print(f"export {name}={value}")
        sys.stdout.flush()
        warn(f"Serving {TABLE_NAME} until Ctrl-C: paste this into another terminal")
        while True:
            time.sleep(60)
    except KeyboardInterrupt:
        return 0


def run(command: list[str], endpoint_url: str) -> int:
    """Run COMMAND. Returns its exit status, or 128 + n if signal n ended it."""
    name = command[0]
    if name == "python":
        command = [sys.executable, *command[1:]]
    elif name.endswith(".py"):
        command = [sys.executable, *command]
    # Ctrl-C reaches COMMAND, too, and COMMAND decides what to do. So wait for it. (This
    # is a handler and not SIG_IGN, because COMMAND would inherit SIG_IGN.)
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        child = subprocess.Popen(command, env=lab_environment(endpoint_url))
    except OSError as error:
        warn(f"error: cannot run {name}: {error.strerror}")
        return 127
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    status = child.wait()
    return status if status >= 0 else 128 - status


def parse_arguments() -> tuple[Settings, list[str]]:
    """The settings, and COMMAND with its own arguments."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] [COMMAND ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(**vars(Settings()))  # also of `script`, which is no option
    add = partial(parser.add_argument, metavar="N")
    default = "(%(default)g)"
    add("--items", type=int, help=f"items in the table {default}")
    add("--latency-ms", type=float, help=f"fixed part of an answer's time {default}")
    add("--ms-per-mb", type=float, help=f"time to read 1 MB of items {default}")
    add("--read-capacity", type=int, help=f"RCU a second, 0: on demand {default}")
    add("--burst-seconds", type=float, help=f"how much unused is saved {default}")
    add("--update-seconds", type=float, help=f"how long UpdateTable takes {default}")
    add("--fault-rate", type=float, help=f"how likely a fault is {default}")
    add("--seed", type=int, help=f"which faults are drawn {default}")
    add("--port", type=int, help=f"0: any free one {default}")
    add("--request-log", type=Path, metavar="FILE", help="a line of JSON a request")
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    command = options.pop("command")
    if command[:1] == ["--"]:
        command = command[1:]
    for name, value in options.items():
        if isinstance(value, (int, float)) and value < 0:
            parser.error(f"{name} is less than 0")
    return Settings(**options), command


def main() -> int:
    settings, command = parse_arguments()
    try:
        with serve(settings) as lab:
            if command:
                return run(command, lab.endpoint_url)
            return serve_until_ctrl_c(lab.endpoint_url)
    except (OSError, OverflowError) as error:  # OverflowError: --port 70000
        warn(f"error: {error}")
        return 1
    except KeyboardInterrupt:  # while the items are made
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
