"""The lab's table GameLeaderboard on this machine, without an account.

    python tests/local_dynamodb.py --items 200000 --read-capacity 0 compare.py

serves the table on 127.0.0.1 in DynamoDB's own protocol, runs the COMMAND
behind the options with AWS_ENDPOINT_URL_DYNAMODB, a region and dummy
credentials set (your profile, session token and AWS configuration files are
hidden from it), passes on its exit status, and stops. "python", or a COMMAND
that ends in .py, runs with this very interpreter. Without COMMAND the lines to
export are printed, and the table is served until Ctrl-C.

It is a model of a table under load, not a database: it answers DescribeTable,
UpdateTable and Scan, the latter without index, filter or projection.

Data      Games of players, 25 a player, the same on every start. At 2,000
          items a scan costs 50.0 RCU, strongly consistent 100.0.
Order     By the MD5 of the partition key, as dynalite has it; a segment is a
          range of that hash.
Pages     End with the item that reaches 1 MB, or after Limit items.
Time      --latency-ms for any answer and --ms-per-mb of items read. What one
          partition of DynamoDB serves at most, 3,000 RCU a second, is not
          modelled.
Capacity  --read-capacity RCU a second. What is not used is kept for up to
          --burst-seconds, and that bucket is full at the start. A Scan is
          admitted while it holds anything and pays for its page afterwards, so
          that the last one overdraws (an assumption). With 0 the table is on
          demand and never throttles. UpdateTable takes --update-seconds.
Faults    With probability --fault-rate a Scan is answered by a throttle, a
          500, a reset connection, a body cut short or a wrong x-amz-crc32; by
          the last three a page is lost that was paid for, as in life. The same
          --seed and the same sequence of requests give the same faults.
Log       --request-log has one JSON line a request: time (seconds since the
          start), operation, segment (null without), items, rcu (what the table
          paid, 0 if refused), outcome ("ok", the error's name, or the fault).
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import math
import os
import random
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

TABLE_NAME = "GameLeaderboard"
TABLE_ARN = f"arn:aws:dynamodb:us-east-1:000000000000:table/{TABLE_NAME}"
KEYS = ("player_id", "game_id")
CREATED = 1_735_689_600  # 2025-01-01
GAMES_PER_PLAYER = 25
WRITE_CAPACITY = 5  # of the table at the start
MB = 1024 * 1024
FAULTS = ("throttle", "500", "reset", "truncated", "bad-crc")

Clock = Callable[[], float]
Params = dict[str, Any]
Script = Callable[[int, Params], "str | None"]


@dataclass(frozen=True)
class Settings:
    """What the lab models; the command line's options of the same names.

    `script` is for tests: called with a Scan's ordinal (valid Scans, from 0) and its parameters, it
    names the fault to answer with, or None. Beyond FAULTS it may say "hang" (no answer until the
    server stops).
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
    script: Script = field(default=lambda ordinal, params: None)


# --- Data -----------------------------------------------------------------------------------------


def item_size(item: dict[str, Any]) -> int:
    """Bytes of an item in DynamoDB JSON: attribute names and values in UTF-8.

    Source: Developer Guide, "DynamoDB item sizes and formats".
    """
    return sum(len(name.encode()) + value_size(value) for name, value in item.items())


def value_size(value: dict[str, Any]) -> int:
    """Bytes of one attribute value: a string, a whole number or a list is all that games have."""
    ((kind, content),) = value.items()
    if kind == "S":
        return len(content.encode())
    if kind == "N":
        return number_size(content)
    return 3 + sum(1 + value_size(element) for element in content)


def number_size(text: str) -> int:
    """One byte and one for every two significant digits of a whole number.

    The guide says "approximately". The pairs are digits to the base 100, so that 120 (01 20) takes
    a byte more than 12 does: that refinement is dynalite's.
    """
    digits = text.rstrip("0")
    if not digits:
        return 1
    zeros = len(text) - len(digits)
    return 1 + math.ceil((len(digits) + zeros % 2) / 2)


GAME_IDS = [f"game_{number:06d}" for number in range(1, GAMES_PER_PLAYER + 1)]
SEASONS = 97  # so many sets of 25 games are made; a player's number says which one is played
FIRST = ("Ada", "Grace", "Zoë", "Linus", "Barbara", "Alan", "Søren", "Radia", "Ken", "Margaret")
LAST = ("Hopper", "Ng", "Lovelace", "Turing", "Perlman", "Thompson", "Liskov")
MODES = ("solo", "duo", "squad", "ranked", "tournament")
ACHIEVEMENTS = ("first_blood", "flawless", "comeback", "sharpshooter", "speed_run", "collector")


def player_attributes(player: int) -> dict[str, Any]:
    """The attributes that all games of a player share."""
    name = f"{FIRST[player % len(FIRST)]} {LAST[player * 3 % len(LAST)]}"
    return {"player_id": {"S": f"player_{player:06d}"}, "player_name": {"S": name}}


def game_attributes(number: int, below: Callable[[int], int]) -> dict[str, Any]:
    """The other attributes: a player's game of one week, with a chance."""
    played = CREATED + number * 604_800 + below(604_800)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(played))
    first = below(len(ACHIEVEMENTS))
    return {
        "game_id": {"S": GAME_IDS[number]},
        "game_date": {"S": stamp[:10]},
        "score": {"N": str(below(100_000))},
        "game_duration": {"N": str(60 + below(3_540))},
        "achievements": {"L": [{"S": name} for name in ACHIEVEMENTS[first : first + below(4)]]},
        "game_mode": {"S": MODES[below(len(MODES))]},
        "expiration_time": {"N": str(played + 31_536_000)},
        "last_updated": {"S": stamp},
    }


def seasons() -> list[list[dict[str, Any]]]:
    """SEASONS lists of 25 games; random() alone gives the same numbers in every Python."""
    chance = random.Random(25).random

    def below(limit: int) -> int:
        return int(chance() * limit)

    weeks = range(GAMES_PER_PLAYER)
    return [[game_attributes(week, below) for week in weeks] for _ in range(SEASONS)]


def hash_of(player_id: str) -> int:
    """The 24 bits that place a partition key: the first six hex digits of dynalite's MD5."""
    digest = hashlib.md5(b"Outliers" + player_id.encode(), usedforsecurity=False)
    return int(digest.hexdigest()[:6], 16)


def hash_range(segment: int, total_segments: int) -> tuple[int, int]:
    """A segment's lowest hash and the next one's; their last 12 bits are zero, as in dynalite."""

    def lowest(number: int) -> int:
        return -(-4096 * number // total_segments) * 4096

    return lowest(segment), lowest(segment + 1)


class Page(NamedTuple):
    """A stretch of the table's items: positions, bytes by the sizing rules, and whether it ended
    by its limits, which is when a LastEvaluatedKey follows."""

    first: int
    end: int
    size: int
    limited: bool

    def rcu(self, consistent: bool) -> float:
        """RCU: 0.5 a 4 KB begun, 1 if consistent (Developer Guide, Scan)."""
        return math.ceil(self.size / 4096) * (1.0 if consistent else 0.5)


def key_of(player_id: str, game_id: str) -> dict[str, Any]:
    return {"player_id": {"S": player_id}, "game_id": {"S": game_id}}


def compact(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


class GameTable:
    """The items in the order of a Scan, serialised once."""

    def __init__(self, items: int) -> None:
        games = [
            [(b"," + compact(game)[1:] + b",", item_size(game)) for game in season]
            for season in seasons()
        ]
        players = [player_attributes(number) for number in range(-(-items // GAMES_PER_PLAYER))]
        ids = [player["player_id"]["S"] for player in players]
        order = sorted((hash_of(id_), id_, number) for number, id_ in enumerate(ids))
        text = bytearray()
        self.offsets = array("Q", [0])  # where in the text each item starts
        self.sizes = array("Q", [0])  # of all items before each one
        self.starts = [0]  # position of each player's first item
        for _, _, number in order:
            start = compact(players[number])[:-1]
            size = item_size(players[number])
            for game, game_size in games[number % SEASONS][: items - number * GAMES_PER_PLAYER]:
                text += start + game
                self.offsets.append(len(text))
                self.sizes.append(self.sizes[-1] + size + game_size)
            self.starts.append(len(self.offsets) - 1)
        self.players = [(hash_, id_) for hash_, id_, _ in order]
        self.text = memoryview(text)

    def bounds(self, segment: int, total_segments: int) -> tuple[int, int]:
        """The positions of a segment's first item and of the one after its last."""
        low, high = hash_range(segment, total_segments)
        first = bisect_left(self.players, (low,))
        end = bisect_left(self.players, (high,))
        return self.starts[first], self.starts[end]

    def after(self, player_id: str, game_id: str) -> int:
        """The position of the first item behind a key, which need not exist."""
        place = (hash_of(player_id), player_id)
        index = bisect_left(self.players, place)
        start = self.starts[index]
        if self.players[index : index + 1] != [place]:
            return start
        return min(start + bisect_right(GAME_IDS, game_id), self.starts[index + 1])

    def key(self, position: int) -> dict[str, Any]:
        """The primary key of the item at a position, as LastEvaluatedKey gives it."""
        index = bisect_right(self.starts, position) - 1
        game_id = GAME_IDS[position - self.starts[index]]
        return key_of(self.players[index][1], game_id)

    def page(self, first: int, end: int, limit: int | None) -> Page:
        """The page from `first`, at most to `end`: the item that reaches 1 MB is its last."""
        full = bisect_left(self.sizes, self.sizes[first] + MB, first)
        end = min(end, full, end if limit is None else first + limit)
        size = self.sizes[end] - self.sizes[first]
        return Page(first, end, size, size >= MB or end - first == limit)

    def json(self, page: Page) -> memoryview:
        """The page's items as JSON, comma-separated, without a copy."""
        start = self.offsets[page.first]
        end = self.offsets[page.end] - 1  # less the last comma
        return self.text[start : max(start, end)]


@lru_cache(maxsize=8)
def game_table(items: int) -> GameTable:
    """The table of so many items: it never changes, so whoever serves it may share it."""
    return GameTable(items)


# --- Capacity and time ----------------------------------------------------------------------------


class Bucket:
    """Read capacity: refilled at `rate` RCU a second, holding at most `burst_seconds` of it."""

    def __init__(self, rate: float, burst_seconds: float, clock: Clock) -> None:
        self.rate = rate
        self.burst_seconds = burst_seconds
        self.clock = clock
        self.balance = rate * burst_seconds
        self.filled = clock()

    def fill(self, now: float) -> None:
        self.balance += self.rate * (now - self.filled)
        self.balance = min(self.balance, self.rate * self.burst_seconds)
        self.filled = now

    def take(self, rcu: float) -> bool:
        """Pay and return True while the balance is above zero, else leave it and return False."""
        self.fill(self.clock())
        if self.balance <= 0:
            return False
        self.balance -= rcu
        return True

    def change_rate(self, rate: float, when: float) -> None:
        """Refill at another rate from `when` on; what was saved stays, up to the new maximum."""
        self.fill(when)
        self.rate = rate
        self.fill(when)


# --- Requests and answers -------------------------------------------------------------------------


class Answer(NamedTuple):
    """What goes back: the body in parts, and the seconds the model says it takes."""

    parts: tuple[bytes | memoryview, ...]
    crc: int = 0
    status: int = 200
    seconds: float = 0.0
    fault: str | None = None

    def length(self) -> int:
        return sum(map(len, self.parts))


def crc32_of(parts: Sequence[bytes | memoryview]) -> int:
    return reduce(lambda crc, part: zlib.crc32(part, crc), parts, 0)


NAMESPACES = {
    "ValidationException": "com.amazon.coral.validate",
    "UnknownOperationException": "com.amazon.coral.service",
    "SerializationException": "com.amazon.coral.service",
}


class Refusal(Exception):
    """An error as DynamoDB answers it; `outcome` is what the request log says of it."""

    def __init__(self, name: str, message: str, status: int = 400, **more: object) -> None:
        super().__init__(name, message)
        self.status = status
        self.outcome = name if status < 500 else str(status)
        kind = f"{NAMESPACES.get(name, 'com.amazonaws.dynamodb.v20120810')}#{name}"
        self.body = compact({"__type": kind, "message": message, **more})


def invalid(message: str) -> Refusal:
    return Refusal("ValidationException", message)


def not_found(detail: str = "") -> Refusal:
    return Refusal("ResourceNotFoundException", "Requested resource not found" + detail)


def throttled() -> Refusal:
    reason = {"reason": "TableReadProvisionedThroughputExceeded", "resource": TABLE_ARN}
    message = (
        "The level of configured provisioned throughput for the table was exceeded. "
        "Consider increasing your provisioning level with the UpdateTable API."
    )
    name = "ProvisionedThroughputExceededException"
    return Refusal(name, message, ThrottlingReasons=[reason])


def whole_number(params: Params, name: str, low: int, high: int = 2**63 - 1) -> int | None:
    """A whole-number parameter within its range, None if absent."""
    value = params.get(name)
    if value is None:
        return None
    if type(value) is not int:
        raise Refusal("SerializationException", f"{name} cannot be converted to Integer")
    if not low <= value <= high:
        side, bound = ("greater", low) if value < low else ("less", high)
        raise invalid(
            f"1 validation error detected: Value '{value}' at '{name[0].lower() + name[1:]}' "
            f"failed to satisfy constraint: Member must have value {side} than or equal to {bound}"
        )
    return value


def only(params: Params, *modelled: str) -> None:
    """Refuse parameters that the lab would otherwise ignore."""
    for name in params:
        if name in modelled:
            continue
        raise invalid(f"The local lab does not model {name}: try it on a real engine")


def one_of(params: Params, name: str, *values: str) -> str:
    """A parameter with a choice of values, the first of which is the default."""
    value = params.get(name, values[0])
    if value not in values:
        raise invalid(f"The local lab does not model {name} {value!r}, only {', '.join(values)}")
    return str(value)


def segment_of(params: Params) -> tuple[int, int]:
    """Segment and TotalSegments: both or neither, which means the whole table."""
    segment = whole_number(params, "Segment", 0, 999_999)
    total = whole_number(params, "TotalSegments", 1, 1_000_000)
    if segment is None and total is None:
        return 0, 1
    missing = "The {} parameter is required but was not present in the request when {} is present"
    if segment is None:
        raise invalid(missing.format("Segment", "parameter TotalSegments"))
    if total is None:
        raise invalid(missing.format("TotalSegments", "Segment parameter"))
    if segment >= total:
        raise invalid(
            "The Segment parameter is zero-based and must be less than parameter TotalSegments: "
            f"Segment: {segment} is not less than TotalSegments: {total}"
        )
    return segment, total


def start_key(key: Any, segment: int, total: int) -> tuple[str, str] | None:
    """An ExclusiveStartKey's player_id and game_id; it must lie within the segment."""
    wrong = "The provided starting key is invalid: "
    if key is None:
        return None
    try:
        player_id, game_id = (str(key[name]["S"]) for name in KEYS)
    except (KeyError, TypeError):
        player_id = game_id = ""  # which is not the key given either
    if key != key_of(player_id, game_id):
        raise invalid(f"{wrong}The provided key element does not match the schema")
    low, high = hash_range(segment, total)
    if not low <= hash_of(player_id) < high:
        raise invalid(
            f"{wrong}Invalid ExclusiveStartKey. Please use ExclusiveStartKey with correct Segment. "
            f"TotalSegments: {total} Segment: {segment}"
        )
    return player_id, game_id


class Lab:
    """The table and its state: every request is answered here, without the network."""

    def __init__(self, settings: Settings, clock: Clock = time.monotonic) -> None:
        self.settings = settings
        self.clock = clock
        self.started = clock()
        self.endpoint_url = ""
        self.requests: list[dict[str, Any]] = []  # the request log, one dict a request
        self.table = game_table(settings.items)
        on_demand = settings.read_capacity == 0
        self.capacity = (settings.read_capacity, 0 if on_demand else WRITE_CAPACITY)
        self.bucket = Bucket(settings.read_capacity, settings.burst_seconds, clock)
        self.update: tuple[float, tuple[int, int]] | None = None  # when done, and what to
        self.scans = count()
        self.chance = random.Random(settings.seed)
        self.lock = threading.RLock()
        self.known_page = lru_cache(maxsize=4096)(self.page_body)
        if settings.request_log:
            settings.request_log.write_text("")

    def answer(self, operation: str, body: bytes) -> Answer:
        """Admit or refuse one request, enter it in the log, and answer it."""
        params: Params = {}
        try:
            params = parsed(body)
            if operation == "Scan":
                return self.scan(params)
            with self.lock:
                table = self.control(operation, params)
                self.log(operation, params)
        except Refusal as refusal:
            self.log(operation, params, outcome=refusal.outcome)
            document = refusal.body
            status = refusal.status
        else:
            document = compact(table)
            status = 200
        return Answer((document,), zlib.crc32(document), status, self.settings.latency_ms / 1000)

    def log(
        self, operation: str, params: Params, items: int = 0, rcu: float = 0, outcome: str = "ok"
    ) -> None:
        with self.lock:
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

    def control(self, operation: str, params: Params) -> dict[str, Any]:
        if operation not in ("DescribeTable", "UpdateTable"):
            message = f"The local lab knows DescribeTable, UpdateTable and Scan, not {operation!r}"
            raise Refusal("UnknownOperationException", message)
        name = params.get("TableName")
        if name != TABLE_NAME:
            raise not_found(f": Table: {name} not found")
        self.finish_update()
        if operation == "DescribeTable":
            return {"Table": self.description()}
        self.start_update(params)
        return {"TableDescription": self.description()}

    def description(self) -> dict[str, Any]:
        read, write = self.capacity
        table: dict[str, Any] = {
            "TableName": TABLE_NAME,
            "TableArn": TABLE_ARN,
            "TableStatus": "UPDATING" if self.update else "ACTIVE",
            "CreationDateTime": CREATED,
            "AttributeDefinitions": [{"AttributeName": k, "AttributeType": "S"} for k in KEYS],
            "KeySchema": [
                {"AttributeName": KEYS[0], "KeyType": "HASH"},
                {"AttributeName": KEYS[1], "KeyType": "RANGE"},
            ],
            "ProvisionedThroughput": {
                "NumberOfDecreasesToday": 0,
                "ReadCapacityUnits": read,
                "WriteCapacityUnits": write,
            },
            "ItemCount": self.settings.items,
            "TableSizeBytes": self.table.sizes[-1],
        }
        if not read:
            table["BillingModeSummary"] = {"BillingMode": "PAY_PER_REQUEST"}
        return table

    def start_update(self, params: Params) -> None:
        """Begin UpdateTable; until it is done the old values hold and show."""
        only(params, "TableName", "ProvisionedThroughput")
        given = params.get("ProvisionedThroughput")
        throughput = given if isinstance(given, dict) else {}
        read = whole_number(throughput, "ReadCapacityUnits", 1)
        write = whole_number(throughput, "WriteCapacityUnits", 1)
        if read is None or write is None:
            raise invalid("ReadCapacityUnits and WriteCapacityUnits must not be null")
        if not self.capacity[0]:
            raise invalid(
                "One or more parameter values were invalid: Neither ReadCapacityUnits nor "
                "WriteCapacityUnits can be specified when BillingMode is PAY_PER_REQUEST"
            )
        if self.update:
            message = "Attempt to change a resource which is still in use: Table is being updated: "
            raise Refusal("ResourceInUseException", message + TABLE_NAME)
        if (read, write) == self.capacity:
            raise invalid(
                "The provisioned throughput for the table will not change. "
                "The requested value equals the current value."
            )
        self.update = self.clock() + self.settings.update_seconds, (read, write)

    def finish_update(self) -> None:
        if self.update and self.clock() >= self.update[0]:
            done, capacity = self.update
            self.update = None
            self.capacity = capacity
            self.bucket.change_rate(capacity[0], done)

    # Scan

    def scan(self, params: Params) -> Answer:
        """Read a page: checked, then refused or admitted, then paid and put into the log."""
        with self.lock:
            if params.get("TableName") != TABLE_NAME:
                raise not_found()
            page, rcu, select, capacity = self.read(params)
            fault = self.fault(params)
            if fault == "throttle":
                raise throttled()
            if fault == "500":
                raise Refusal("InternalServerError", "Internal server error", 500)
            if fault == "hang":
                self.log("Scan", params, outcome=fault)
                return Answer((), fault=fault)
            self.finish_update()
            if self.capacity[0] and not self.bucket.take(rcu):
                raise throttled()
            self.log("Scan", params, page.end - page.first, rcu, fault or "ok")
        answer = self.known_page(page, rcu, select, capacity)
        milliseconds = self.settings.latency_ms + self.settings.ms_per_mb * page.size / MB
        return answer._replace(seconds=milliseconds / 1000, fault=fault)

    def fault(self, params: Params) -> str | None:
        """The fault of this Scan, if any: the script's, or one drawn."""
        scripted = self.settings.script(next(self.scans), params)
        struck = self.chance.random() < self.settings.fault_rate
        drawn = FAULTS[int(self.chance.random() * len(FAULTS))]
        return scripted or (drawn if struck else None)

    def read(self, params: Params) -> tuple[Page, float, str, str]:
        """The page asked for, its RCU, Select and ReturnConsumedCapacity, once all is checked."""
        only(params, "TableName", "Segment", "TotalSegments", "Limit", "ExclusiveStartKey",
             "ConsistentRead", "Select", "ReturnConsumedCapacity")  # fmt: skip
        limit = whole_number(params, "Limit", 1)
        segment, total = segment_of(params)
        first, end = self.table.bounds(segment, total)
        if key := start_key(params.get("ExclusiveStartKey"), segment, total):
            first = self.table.after(*key)
        page = self.table.page(first, end, limit)
        return (
            page,
            page.rcu(bool(params.get("ConsistentRead"))),
            one_of(params, "Select", "ALL_ATTRIBUTES", "COUNT"),
            one_of(params, "ReturnConsumedCapacity", "NONE", "TOTAL"),
        )

    def page_body(self, page: Page, rcu: float, select: str, capacity: str) -> Answer:
        """The page as Scan answers it; the items are a view of the table's text."""
        number = page.end - page.first
        head: dict[str, Any] = {"Count": number, "ScannedCount": number}
        if page.limited:
            head["LastEvaluatedKey"] = self.table.key(page.end - 1)
        if capacity != "NONE":
            head["ConsumedCapacity"] = {"TableName": TABLE_NAME, "CapacityUnits": rcu}
        parts: tuple[bytes | memoryview, ...] = (compact(head),)
        if select != "COUNT":
            parts = (compact(head)[:-1] + b',"Items":[', self.table.json(page), b"]}")
        return Answer(parts, crc32_of(parts))


def parsed(body: bytes) -> Params:
    try:
        params = json.loads(body)
    except ValueError:
        params = None
    if not isinstance(params, dict):
        raise Refusal("SerializationException", "The request is not a JSON object")
    return params


# --- Connections ----------------------------------------------------------------------------------


class Connection(socketserver.StreamRequestHandler):
    """One client's connection, kept alive; a small HTTP/1.1 reader costs less than http.server."""

    disable_nagle_algorithm = True
    server: Server

    def handle(self) -> None:
        self.server.connections.add(self.connection)
        with suppress(ConnectionError):
            while self.exchange():
                pass
        self.server.connections.discard(self.connection)

    def exchange(self) -> bool:
        """Answer one request; False when the connection is at its end."""
        request = self.read_request()
        if request is None:
            return False
        headers, body = request
        arrived = time.monotonic()
        operation = headers.get("x-amz-target", "").rpartition(".")[2]
        answer = self.server.lab.answer(operation, body)
        if answer.fault == "hang":
            self.rfile.read(1)  # returns when the client gives up or the server stops
            return False
        time.sleep(max(0.0, arrived + answer.seconds - time.monotonic()))
        if answer.fault in ("reset", "truncated"):
            self.fail(answer)
            return False
        for part in self.wire(answer):
            self.connection.sendall(part)
        return headers.get("connection", "").lower() != "close"

    def read_request(self) -> tuple[dict[str, str], bytes] | None:
        headers: dict[str, str] = {}
        if not self.rfile.readline().strip():
            return None
        while line := self.rfile.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", 0))
        body = self.rfile.read(length)
        return (headers, body) if len(body) == length else None

    def wire(self, answer: Answer) -> list[bytes | memoryview]:
        """The response's bytes: the head goes out together with the first part of the body."""
        reason = {200: "OK", 400: "Bad Request"}.get(answer.status, "Internal Server Error")
        head = [
            f"HTTP/1.1 {answer.status} {reason}",
            f"x-amzn-RequestId: LOCAL{next(self.server.ids):047d}",
            "Content-Type: application/x-amz-json-1.0",
            f"Content-Length: {answer.length()}",
            f"x-amz-crc32: {answer.crc ^ (answer.fault == 'bad-crc')}",
        ]
        first, *rest = answer.parts
        return [("\r\n".join(head) + "\r\n\r\n").encode() + bytes(first), *rest]

    def fail(self, answer: Answer) -> None:
        """Send half of a page, and then end (truncated) or reset the connection."""
        wire = b"".join(self.wire(answer))
        self.connection.sendall(wire[: len(wire) - answer.length() // 2 - 1])
        if answer.fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()  # with linger 0: RST instead of FIN


class Server(socketserver.ThreadingTCPServer):
    """A thread for each connection, on 127.0.0.1 only."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, lab: Lab) -> None:
        try:
            super().__init__(("127.0.0.1", lab.settings.port), Connection)
        except OSError as error:
            error.filename = f"port {lab.settings.port}"
            raise
        self.lab = lab
        self.ids = count(1)
        self.connections: set[socket.socket] = set()
        lab.endpoint_url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say why a request got no answer: it is no HTTP, or the log's disk is full."""
        warn(f"error: a request failed: {sys.exc_info()[1]}")

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve(settings: Settings) -> Iterator[Lab]:
    """Serve the table in this process; the lab has `endpoint_url` and `requests`.

    Raises OSError, which names the culprit, if the port is taken or the request log cannot be
    written.
    """
    lab = Lab(settings)
    server = Server(lab)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield lab
    finally:
        server.stop()


# --- Command line ---------------------------------------------------------------------------------

HIDDEN = (
    "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
)  # fmt: skip


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


def run(command: list[str], endpoint_url: str) -> int:
    """Run COMMAND against the lab and return its exit status, 128 + n if a signal ended it."""
    mine = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    # Ctrl-C goes to the whole process group: it is the child's to handle, ours is to wait.
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        child = subprocess.Popen(to_start(command), env=mine | settings_for_aws(endpoint_url))
    except OSError as error:
        return cannot_run(command[0], error)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    status = child.wait()
    if status == 2:
        point_out_own_option(command)
    return status if status >= 0 else 128 - status


def to_start(command: list[str]) -> list[str]:
    """COMMAND, by this very interpreter if it is Python; an OSError if its script is missing."""
    name, *words = command
    if name == "python":
        return [sys.executable, *words]
    if name.endswith(".py"):
        Path(name).stat()
        return [sys.executable, *command]
    return command


def cannot_run(name: str, error: OSError) -> int:
    """COMMAND cannot be run: say so, and which file may be meant; returns the exit status."""
    near = [file for file in (f"{name}.py", f"./{name}") if Path(file).is_file()]
    hint = f"did you mean {near[0]}?" if near and error.errno == errno.ENOENT else ""
    return failed(f"cannot run {name}: {error.strerror}", hint, 127)


def point_out_own_option(command: list[str]) -> None:
    """COMMAND refused its words: say which of them the lab would have understood."""
    name, *words = command
    for word in words:
        option = word.partition("=")[0]
        if option in OPTIONS:
            warn(f"hint: {option} is an option of the local lab: put it before {name}")
            return


def failed(message: str, hint: str = "", status: int = 1) -> int:
    """Say what went wrong and, if there is something, what to do about it; returns the status."""
    warn(f"error: {message}")
    if hint:
        warn(f"hint: {hint}")
    return status


def warn(line: str) -> None:
    print(line, file=sys.stderr)


def wait_for_ctrl_c(endpoint_url: str) -> int:
    """Print what to export, and wait for Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    for name, value in settings_for_aws(endpoint_url).items():
        print(f"export {name}={value}")
    print("unset", *HIDDEN, flush=True)
    warn(f"Serving {TABLE_NAME} until Ctrl-C: paste the lines above into another terminal")
    stop.wait()
    return 0


MANY = 1_000_000_000
NUMBERS = {
    "items": (0, 10_000_000, "items in the table"),
    "latency-ms": (0, MANY, "the fixed part of an answer's time"),
    "ms-per-mb": (0, MANY, "the time to read 1 MB of items"),
    "read-capacity": (0, MANY, "RCU a second; 0: on demand"),
    "burst-seconds": (1, MANY, "seconds of unused capacity that are kept"),
    "update-seconds": (0, MANY, "how long UpdateTable takes"),
    "fault-rate": (0, 1, "probability that a Scan meets a fault"),
    "seed": (0, MANY, "which faults are drawn"),
    "port": (0, 65_535, "0: any free one"),
}
OPTIONS = {f"--{name}" for name in ("request-log", *NUMBERS)}


def parse(argv: Sequence[str] | None) -> tuple[Settings, list[str]]:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] [COMMAND ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, (_, _, what) in NUMBERS.items():
        usual = getattr(Settings, name.replace("-", "_"))
        text = f"{what} ({usual:g})"
        parser.add_argument(f"--{name}", metavar="N", type=type(usual), default=usual, help=text)
    parser.add_argument("--request-log", metavar="FILE", type=Path, help="one JSON line a request")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = vars(parser.parse_args(argv))
    for name, (low, high, _) in NUMBERS.items():
        if not low <= options[name.replace("-", "_")] <= high:
            parser.error(f"argument --{name}: a number from {low} to {high} is needed")
    command = options.pop("command")
    if command[:1] == ["--"]:
        del command[0]
    return Settings(**options), command


def main(argv: Sequence[str] | None = None) -> int:
    settings, command = parse(argv)
    try:
        with serve(settings) as lab:
            if command:
                return run(command, lab.endpoint_url)
            return wait_for_ctrl_c(lab.endpoint_url)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        hint = "leave --port out: any free one will do" if taken else ""
        return failed(f"{error.filename or 'standard output'}: {error.strerror}", hint)
    except KeyboardInterrupt:  # while the items are made: from then on there are handlers
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
