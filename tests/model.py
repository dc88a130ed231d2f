"""The model behind the local lab: a table under load, without any network.

A request goes to Lab.answer(). What the table does then (its pages, its time, its
capacity, its faults) is explained by `python tests/local_dynamodb.py --help`.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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


def parse(body: bytes) -> Json:
    try:
        params = json.loads(body)
    except ValueError:  # such as half a body, from a client that was killed
        params = None
    if not isinstance(params, dict):
        raise Refusal("SerializationException", "The body is not a JSON object.")
    return params


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
        # With less than a second's worth, nothing would ever be admitted.
        self.burst_seconds = max(1.0, settings.burst_seconds)
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
        """Pay for a page, if anything is left. Afterwards, less than 0 may be left."""
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
        # Both units have to be given: a missing one counts as 0, and is refused.
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
    rcu: float = 0  # what the request paid
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
                params = parse(body)
                answer = self.handle(operation, params, now)
            except Refusal as error:
                answer = Answer(400, error_body(error.name, str(error)), error.name)
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
        """Find the page, choose a fault, let the request pay, and answer."""
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
