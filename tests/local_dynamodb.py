"""The lab's DynamoDB table on this machine: python tests/local_dynamodb.py [options] [COMMAND ...]

Serves the table GameLeaderboard on 127.0.0.1 in DynamoDB's own protocol, runs COMMAND with
AWS_ENDPOINT_URL_DYNAMODB, a region and dummy credentials in its environment (profile, session token
and configuration files of yours are hidden from it), passes on COMMAND's exit status, and stops:

    python tests/local_dynamodb.py --items 200000 --read-capacity 0 python compare.py

"python", or a COMMAND that ends in .py, runs with this very interpreter. Without COMMAND the lines
to export are printed, and the table is served until Ctrl-C.

It is a model of a table under load, not a database, and answers DescribeTable, UpdateTable and Scan
(without index, filter or projection) only.

Data      Games of players, 25 a player, the same on every start. At 2,000 items one scan costs
          50.0 RCU eventually consistent, 100.0 strongly consistent.
Order     By the MD5 of the partition key, as dynalite has it; a segment is a range of that hash.
Pages     End with the item that reaches 1 MB, or after Limit items.
Time      --latency-ms for any answer and --ms-per-mb of items read; --bandwidth-mbit is one link
          that all connections share.
Capacity  --read-capacity RCU a second; what is not used is kept for up to --burst-seconds, and the
          bucket is full at the start. A Scan is admitted while the balance is above zero and pays
          its page afterwards, so that the last one overdraws. (That a page may overdraw is an
          assumption.) With --read-capacity 0 the table is on demand and never throttles.
          UpdateTable changes the capacity after --update-seconds.
Faults    With probability --fault-rate a Scan is answered by a throttle, a 500, a reset connection,
          a body cut short or a wrong x-amz-crc32. The same --seed and the same sequence of requests
          give the same faults. The last three lose a page that was paid for, as in life.
Log       --request-log FILE: one JSON line a request, when it is admitted or refused: time (seconds
          since the start), operation, segment (null without), items, rcu (what the table paid, 0 if
          refused), outcome ("ok", the error's name, or the fault).

In tests: with serve(Settings(items=2000, latency_ms=0)) as lab: lab.endpoint_url, lab.requests
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import os
import random
import shlex
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import lru_cache, reduce
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

TABLE_NAME = "GameLeaderboard"
TABLE_ARN = f"arn:aws:dynamodb:us-east-1:000000000000:table/{TABLE_NAME}"
KEYS = ("player_id", "game_id")
CREATED = 1_735_689_600  # 2025-01-01
GAMES_PER_PLAYER = 25
MB = 1024 * 1024
FAULTS = ("throttle", "500", "reset", "truncated", "bad-crc")

Clock = Callable[[], float]
Params = dict[str, Any]
Script = Callable[[int, Params], "str | None"]


@dataclass(frozen=True)
class Settings:
    """What the lab models; the command line's options of the same names.

    `script` is for tests: called with a Scan's ordinal (valid Scans, from 0) and its parameters, it
    names the fault to answer with, or None. Beyond FAULTS it may say "not-json" (a proxy's HTML
    page), "expired-token", "hang" (no answer until the server stops) or "deleted" (the table is
    gone from then on).
    """

    items: int = 20_000
    latency_ms: float = 10
    ms_per_mb: float = 100
    bandwidth_mbit: float = 0
    read_capacity: int = 5
    write_capacity: int = 5
    burst_seconds: float = 300
    update_seconds: float = 1.5
    fault_rate: float = 0
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
    """Bytes of one attribute value, e.g. {"S": "x"} (Developer Guide, as item_size)."""
    ((kind, content),) = value.items()
    match kind:
        case "S":
            size = len(content.encode())
        case "N":
            size = number_size(content)
        case "B":
            size = len(base64.b64decode(content))
        case "SS" | "NS" | "BS":
            size = sum(value_size({kind[0]: member}) for member in content)
        case "L":
            size = 3 + sum(1 + value_size(element) for element in content)
        case "M":
            size = 3 + len(content) + item_size(content)
        case _:  # BOOL, NULL
            size = 1
    return size


def number_size(text: str) -> int:
    """One byte and one for every two significant digits, one more below zero.

    The guide says "approximately". The pairs are digits to the base 100, so that 120 (01 20) takes
    a byte more than 12 does: that refinement is dynalite's.
    """
    sign, digits, exponent = Decimal(text).normalize(Context(prec=40)).as_tuple()
    if digits == (0,):
        return 1
    return 1 + math.ceil((len(digits) + int(exponent) % 2) / 2) + sign


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
    """A segment's lowest hash and the next one's: to 12 bits as in dynalite, 24 above 4,096."""
    grain = 4096 if total_segments <= 4096 else 1
    low, high = (-(-(2**24 // grain) * n // total_segments) * grain for n in (segment, segment + 1))
    return low, high


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
        text, offsets, sizes, starts = bytearray(), array("Q", [0]), array("Q", [0]), [0]
        for _, _, number in order:
            start, size = compact(players[number])[:-1], item_size(players[number])
            for game, game_size in games[number % SEASONS][: items - number * GAMES_PER_PLAYER]:
                text += start
                text += game
                offsets.append(len(text))
                sizes.append(sizes[-1] + size + game_size)
            starts.append(len(offsets) - 1)
        self.players = [(hash_, id_) for hash_, id_, _ in order]
        self.starts = starts  # position of each player's first item
        self.text, self.offsets, self.sizes = memoryview(text), offsets, sizes

    def bounds(self, segment: int, total_segments: int) -> tuple[int, int]:
        """The positions of a segment's first item and of the one after its last."""
        low, high = (bisect_left(self.players, (h,)) for h in hash_range(segment, total_segments))
        return self.starts[low], self.starts[high]

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
        return {"player_id": {"S": self.players[index][1]}, "game_id": {"S": game_id}}

    def page(self, first: int, end: int, limit: int | None) -> Page:
        """The page from `first`, at most to `end`: the item that reaches 1 MB is its last."""
        full = bisect_left(self.sizes, self.sizes[first] + MB, first)
        end = min(end, full, end if limit is None else first + limit)
        size = self.sizes[end] - self.sizes[first]
        return Page(first, end, size, size >= MB or end - first == limit)

    def json(self, page: Page) -> memoryview:
        """The page's items as JSON, comma-separated, without a copy."""
        start, end = self.offsets[page.first], self.offsets[page.end]
        return self.text[start : max(start, end - 1)]


# --- Capacity and time ----------------------------------------------------------------------------


class Bucket:
    """Read capacity: refilled at `rate` RCU a second, holding at most `burst_seconds` of it."""

    def __init__(self, rate: float, burst_seconds: float, clock: Clock) -> None:
        self.rate, self.burst_seconds, self.clock = rate, burst_seconds, clock
        self.balance, self.filled = rate * burst_seconds, clock()

    def fill(self, now: float) -> None:
        self.balance = min(
            self.rate * self.burst_seconds, self.balance + self.rate * (now - self.filled)
        )
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


class Link:
    """One link of `mbit` Mbit/s shared by all connections; sends wait for their turn on it."""

    CHUNK = 64 * 1024
    CATCH_UP = 0.005  # seconds a sender may be late, as sleeping is never exact

    def __init__(self, mbit: float) -> None:
        self.bytes_per_second = mbit * 1e6 / 8
        self.free, self.lock = 0.0, threading.Lock()

    def send(self, connection: socket.socket, data: memoryview) -> None:
        for start in range(0, len(data), self.CHUNK):
            chunk = data[start : start + self.CHUNK]
            with self.lock:
                self.free = max(self.free, time.monotonic() - self.CATCH_UP)
                self.free += len(chunk) / self.bytes_per_second
                turn = self.free
            time.sleep(max(0.0, turn - time.monotonic()))
            connection.sendall(chunk)


# --- Requests and answers -------------------------------------------------------------------------


class Answer(NamedTuple):
    """What goes back: the body in parts, and the seconds the model says it takes."""

    parts: tuple[bytes | memoryview, ...]
    crc: int | None = None
    status: int = 200
    seconds: float = 0.0
    gzip: bool = False
    fault: str | None = None

    def length(self) -> int:
        return sum(map(len, self.parts))


def crc32_of(parts: Sequence[bytes | memoryview]) -> int:
    return reduce(lambda crc, part: zlib.crc32(part, crc), parts, 0)


NAMESPACES = {
    "ValidationException": "com.amazon.coral.validate",
    "UnknownOperationException": "com.amazon.coral.service",
    "SerializationException": "com.amazon.coral.service",
    "ExpiredTokenException": "com.amazon.coral.service",
}


class Refusal(Exception):
    """An error as DynamoDB answers it; `outcome` is what the request log says of it."""

    def __init__(self, name: str, message: str, status: int = 400, **more: object) -> None:
        super().__init__(name, message)
        self.status, self.outcome = status, name if status < 500 else str(status)
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


def refused_by(fault: str | None) -> Refusal | None:
    """The error that a fault answers with, None if the page is read."""
    if fault == "throttle":
        return throttled()
    if fault == "500":
        return Refusal("InternalServerError", "Internal server error", 500)
    if fault == "expired-token":
        message = "The security token included in the request is expired"
        return Refusal("ExpiredTokenException", message)
    return not_found() if fault == "deleted" else None


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
    for name in params.keys() - set(modelled):
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
    match key:
        case None:
            return None
        case {"player_id": {"S": str(player_id)}, "game_id": {"S": str(game_id)}} if len(key) == 2:
            low, high = hash_range(segment, total)
            if low <= hash_of(player_id) < high:
                return player_id, game_id
            raise invalid(
                f"{wrong}Invalid ExclusiveStartKey. Please use ExclusiveStartKey with correct "
                f"Segment. TotalSegments: {total} Segment: {segment}"
            )
    raise invalid(f"{wrong}The provided key element does not match the schema")


class Lab:
    """The table and its state: every request is answered here, without the network."""

    def __init__(self, settings: Settings, clock: Clock = time.monotonic) -> None:
        self.settings, self.clock, self.started = settings, clock, clock()
        self.endpoint_url = ""
        self.requests: list[dict[str, Any]] = []  # the request log, one dict a request
        self.table = GameTable(settings.items)
        on_demand = settings.read_capacity == 0
        self.capacity = (settings.read_capacity, 0 if on_demand else settings.write_capacity)
        self.bucket = Bucket(settings.read_capacity, settings.burst_seconds, clock)
        self.update: tuple[float, tuple[int, int]] | None = None  # when done, and what to
        self.decreases = 0
        self.deleted = False
        self.scans = count()
        self.chance = random.Random(settings.seed)
        self.lock = threading.RLock()
        log = settings.request_log
        self.log_file = log.open("w", buffering=1, encoding="utf-8") if log else None
        self.plain = lru_cache(maxsize=4096)(self.page_body)
        self.gzipped = lru_cache(maxsize=256)(self.gzip_body)  # holds the bytes: some 60 MB

    def answer(self, operation: str, body: bytes, gzip: bool = False) -> Answer:
        """Admit or refuse one request, enter it in the log, and answer it."""
        params: Params = {}
        try:
            params = parsed(body)
            if operation == "Scan":
                return self.scan(params, gzip)
            with self.lock:
                table = self.control(operation, params)
                self.log(operation, params)
        except Refusal as refusal:
            self.log(operation, params, outcome=refusal.outcome)
            parts, status = (refusal.body,), refusal.status
        else:
            parts, status = (compact(table),), 200
        return Answer(parts, crc32_of(parts), status, self.settings.latency_ms / 1000)

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
            if self.log_file:
                self.log_file.write(json.dumps(entry) + "\n")

    def close_log(self) -> None:
        with self.lock:  # a request may be under way still
            if self.log_file:
                self.log_file.close()
            self.log_file = None

    # DescribeTable and UpdateTable

    def control(self, operation: str, params: Params) -> dict[str, Any]:
        if operation not in ("DescribeTable", "UpdateTable"):
            message = f"The local lab knows DescribeTable, UpdateTable and Scan, not {operation!r}"
            raise Refusal("UnknownOperationException", message)
        name = params.get("TableName")
        if name != TABLE_NAME or self.deleted:
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
                "NumberOfDecreasesToday": self.decreases,
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
            self.decreases += capacity[0] < self.capacity[0] or capacity[1] < self.capacity[1]
            self.update, self.capacity = None, capacity
            self.bucket.change_rate(capacity[0], done)

    # Scan

    def scan(self, params: Params, gzip: bool) -> Answer:
        """Read a page: checked, then refused or admitted, then paid and put into the log."""
        with self.lock:
            if params.get("TableName") != TABLE_NAME or self.deleted:
                raise not_found()
            page, rcu, select, capacity = self.read(params)
            fault = self.fault(params)
            if refusal := refused_by(fault):
                self.deleted = fault == "deleted"
                raise refusal
            if fault in ("hang", "not-json"):
                self.log("Scan", params, outcome=fault)
                html = (b"<html><body>Bad gateway</body></html>",)
                return Answer(html, seconds=self.settings.latency_ms / 1000, fault=fault)
            self.finish_update()
            if self.capacity[0] and not self.bucket.take(rcu):
                raise throttled()
            self.log("Scan", params, page.end - page.first, rcu, fault or "ok")
        body = (self.gzipped if gzip else self.plain)(page, rcu, select, capacity)
        milliseconds = self.settings.latency_ms + self.settings.ms_per_mb * page.size / MB
        return body._replace(seconds=milliseconds / 1000, fault=fault)

    def fault(self, params: Params) -> str | None:
        """The fault of this Scan, if any: the script's, or one drawn."""
        scripted = self.settings.script(next(self.scans), params)
        struck, which = self.chance.random() < self.settings.fault_rate, self.chance.random()
        return scripted or (FAULTS[int(which * len(FAULTS))] if struck else None)

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
            one_of(params, "ReturnConsumedCapacity", "NONE", "TOTAL", "INDEXES"),
        )

    def page_body(self, page: Page, rcu: float, select: str, capacity: str) -> Answer:
        """The page as Scan answers it; the items are a view of the table's text."""
        number = page.end - page.first
        head: dict[str, Any] = {"Count": number, "ScannedCount": number}
        if page.limited:
            head["LastEvaluatedKey"] = self.table.key(page.end - 1)
        if capacity != "NONE":
            head["ConsumedCapacity"] = {"TableName": TABLE_NAME, "CapacityUnits": rcu}
        if capacity == "INDEXES":
            head["ConsumedCapacity"]["Table"] = {"CapacityUnits": rcu}
        parts: tuple[bytes | memoryview, ...] = (compact(head),)
        if select != "COUNT":
            parts = (compact(head)[:-1] + b',"Items":[', self.table.json(page), b"]}")
        return Answer(parts, crc32_of(parts))

    def gzip_body(self, page: Page, rcu: float, select: str, capacity: str) -> Answer:
        """The same compressed; the CRC is of the bytes sent, as DynamoDB has it."""
        squeeze = zlib.compressobj(level=1, wbits=31)
        plain = self.plain(page, rcu, select, capacity)
        packed = b"".join([*map(squeeze.compress, plain.parts), squeeze.flush()])
        return Answer((packed,), zlib.crc32(packed), gzip=True)


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
        with suppress(ConnectionError), self.server.registered(self.connection):
            while self.exchange():
                pass

    def exchange(self) -> bool:
        """Answer one request; False when the connection is at its end."""
        request = self.read_request()
        if request is None:
            return False
        headers, body = request
        arrived = time.monotonic()
        operation = headers.get("x-amz-target", "").rpartition(".")[2]
        gzip = "gzip" in headers.get("accept-encoding", "")
        answer = self.server.lab.answer(operation, body, gzip)
        if answer.fault == "hang":
            self.rfile.read(1)  # returns when the client gives up or the server stops
            return False
        time.sleep(max(0.0, arrived + answer.seconds - time.monotonic()))
        if answer.fault in ("reset", "truncated"):
            self.fail(answer)
            return False
        for part in self.wire(answer):
            self.send(part)
        return headers.get("connection", "").lower() != "close"

    def read_request(self) -> tuple[dict[str, str], bytes] | None:
        headers: dict[str, str] = {}
        if not self.rfile.readline().strip():
            return None
        while line := self.rfile.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = int(headers.get("content-length", 0))
        body = self.rfile.read(length)
        return (headers, body) if len(body) == length else None

    def wire(self, answer: Answer) -> list[bytes | memoryview]:
        """The response's bytes: the head goes out together with the first part of the body."""
        kind = "text/html" if answer.crc is None else "application/x-amz-json-1.0"
        reason = {200: "OK", 400: "Bad Request"}.get(answer.status, "Internal Server Error")
        head = [
            f"HTTP/1.1 {answer.status} {reason}",
            f"x-amzn-RequestId: LOCAL{next(self.server.ids):047d}",
            f"Content-Type: {kind}",
            f"Content-Length: {answer.length()}",
        ]
        if answer.crc is not None:
            head.append(f"x-amz-crc32: {answer.crc ^ (answer.fault == 'bad-crc')}")
        if answer.gzip:
            head.append("Content-Encoding: gzip")
        first, *rest = answer.parts
        return [("\r\n".join(head) + "\r\n\r\n").encode() + bytes(first), *rest]

    def fail(self, answer: Answer) -> None:
        """Send half of a page, and then end (truncated) or reset the connection."""
        wire = b"".join(self.wire(answer))
        self.send(memoryview(wire)[: len(wire) - answer.length() // 2 - 1])
        if answer.fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()  # with linger 0: RST instead of FIN

    def send(self, data: bytes | memoryview) -> None:
        if self.server.link:
            self.server.link.send(self.connection, memoryview(data))
        else:
            self.connection.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    """A thread for each connection, on 127.0.0.1 only."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, lab: Lab) -> None:
        super().__init__(("127.0.0.1", lab.settings.port), Connection)
        self.lab = lab
        self.link = Link(lab.settings.bandwidth_mbit) if lab.settings.bandwidth_mbit else None
        self.ids = count(1)
        self.connections: set[socket.socket] = set()
        lab.endpoint_url = f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def registered(self, connection: socket.socket) -> Iterator[None]:
        self.connections.add(connection)
        try:
            yield
        finally:
            self.connections.discard(connection)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve(settings: Settings) -> Iterator[Lab]:
    """Serve the table in this process; the lab has `endpoint_url` and `requests`.

    Raises OSError if the port is taken or the request log cannot be written.
    """
    lab = Lab(settings)
    with ExitStack() as at_end:
        at_end.callback(lab.close_log)
        server = Server(lab)
        at_end.callback(server.stop)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield lab


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
        "NO_PROXY": "127.0.0.1",
    }


def run(command: list[str], endpoint_url: str, prefix: str = "") -> int:
    """Run COMMAND against the lab and return its exit status, 128 + n if a signal ended it.

    LOCAL_LAB in its environment is `prefix`, what to put before a command to run it here too.
    """
    if command[0] == "python":
        command = [sys.executable, *command[1:]]
    elif command[0].endswith(".py"):
        command = [sys.executable, *command]
    mine = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    # Ctrl-C goes to the whole process group: it is the child's to handle, ours is to wait.
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        settings = settings_for_aws(endpoint_url) | {"LOCAL_LAB": prefix}
        child = subprocess.Popen(command, env=mine | settings)
    except OSError as error:
        print(f"error: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    status = child.wait()
    return status if status >= 0 else 128 - status


def wait_for_ctrl_c(endpoint_url: str) -> int:
    """Print what to export, and wait for Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    for name, value in settings_for_aws(endpoint_url).items():
        print(f"export {name}={value}")
    print("unset", *HIDDEN, flush=True)
    print(f"Serving {TABLE_NAME} at {endpoint_url} until Ctrl-C", file=sys.stderr)
    stop.wait()
    return 0


def number(
    kind: type[int] | type[float], low: float = 0, high: float = math.inf
) -> Callable[[str], float]:
    """An argparse type: a number of that kind from `low` to `high`."""

    def value(text: str) -> float:
        found = kind(text)
        if not (low <= found <= high and math.isfinite(found)):
            raise argparse.ArgumentTypeError(f"{text} is out of range")
        return found

    value.__name__ = "number"  # what argparse calls it in its own message
    return value


def parse(argv: Sequence[str] | None) -> tuple[Settings, list[str]]:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] [COMMAND ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, kind, what in (
        ("items", number(int), "items in the table"),
        ("latency-ms", number(float), "the fixed part of an answer's time"),
        ("ms-per-mb", number(float), "the time to read 1 MB of items"),
        ("bandwidth-mbit", number(float), "the link that all connections share; 0: no limit"),
        ("read-capacity", number(int), "RCU a second; 0: on demand"),
        ("write-capacity", number(int, 1), "WCU a second"),
        ("burst-seconds", number(float, 1), "seconds of unused capacity that are kept"),
        ("update-seconds", number(float), "how long UpdateTable takes"),
        ("fault-rate", number(float, 0, 1), "probability that a Scan meets a fault"),
        ("seed", number(int), "which faults are drawn"),
        ("port", number(int, 0, 65_535), "0: any free one"),
    ):
        default = getattr(Settings, name.replace("-", "_"))
        parser.add_argument(
            f"--{name}", metavar="N", type=kind, default=default, help=f"{what} ({default:g})"
        )
    parser.add_argument("--request-log", metavar="FILE", type=Path, help="one JSON line a request")
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = vars(parser.parse_args(argv))
    command = options.pop("command")
    return Settings(**options), command[command[:1] == ["--"] :]


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    settings, command = parse(words)
    mine = words[: len(words) - len(command)]
    try:
        with serve(settings) as lab:
            if not command:
                return wait_for_ctrl_c(lab.endpoint_url)
            return run(command, lab.endpoint_url, shlex.join(["python", sys.argv[0], *mine]) + " ")
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while the items are made: from then on there are handlers
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
