"""The local lab against dynalite, against arithmetic by hand, and on the wire."""

from __future__ import annotations

import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import local_dynamodb
import pytest
from conftest import NewLab
from engines import plain_client, scan_plainly
from games import MB, item_size
from items import REQUEST, THROTTLED, instant
from model import Lab, Settings

LAB = [sys.executable, local_dynamodb.__file__, "--items", "100"]
FIRST_KEY = {"player_id": {"S": "player_000000"}, "game_id": {"S": "game_000001"}}
UNITS_5 = {"ReadCapacityUnits": 5, "WriteCapacityUnits": 5}
UNITS_50 = {"ReadCapacityUnits": 50, "WriteCapacityUnits": 7}


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def ask(lab: Lab, operation: str, **params: Any) -> Any:
    """The lab's answer to a request, without a network; "error" is an error's name."""
    request = json.dumps({**REQUEST, **params})
    document = json.loads(lab.answer(operation, request.encode()).body)
    if "__type" in document:
        document["error"] = document["__type"].partition("#")[2]
    return document


def post(endpoint_url: str, **params: Any) -> tuple[int, bytes, int]:
    """One Scan, without boto3. Returns the status, the body, and its checksum."""
    address = endpoint_url.partition("//")[2]
    connection = http.client.HTTPConnection(address, timeout=30)
    headers = {
        "X-Amz-Target": "DynamoDB_20120810.Scan",
        "Content-Type": "application/x-amz-json-1.0",
        "X-Amz-Date": "20250101T000000Z",
        "Authorization": "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=b, Signature=c",
    }
    try:
        connection.request("POST", "/", json.dumps({**REQUEST, **params}), headers)
        reply = connection.getresponse()
        return reply.status, reply.read(), int(reply.headers["x-amz-crc32"] or 0)
    finally:
        connection.close()


# --- Against dynalite -----------------------------------------------------------------


# dynalite counts a string's characters, DynamoDB its bytes: with these limits that does
# not show in the capacity.
@pytest.mark.parametrize(("total", "limit"), [(1, 500), (11, 90)])
def test_pages_are_those_of_dynalite(
    lab: Lab, real: Any, total: int, limit: int
) -> None:
    ours = plain_client(lab.endpoint_url)
    params = {**REQUEST, "Limit": limit, "ReturnConsumedCapacity": "TOTAL"}
    for segment in range(total):
        part = {"Segment": segment, "TotalSegments": total}
        pages = scan_plainly(ours, **params, **part)
        assert pages == scan_plainly(real.client, **params, **part)


@pytest.mark.parametrize(
    "params",
    [
        {"Segment": 2, "TotalSegments": 2},
        {"Limit": 0},
        {"ExclusiveStartKey": {"player_id": {"S": "player_000000"}}},
        {"TotalSegments": 4},
        {"TableName": "NoSuchTable"},
        # A key of the other segment
        {"Segment": 0, "TotalSegments": 2, "ExclusiveStartKey": FIRST_KEY},
    ],
    ids=str,
)
def test_errors_are_named_as_dynalites(lab: Lab, real: Any, params: Any) -> None:
    status, body, _ = post(lab.endpoint_url, **params)
    same_status, their_body, _ = post(real.endpoint_url, **params)
    name = json.loads(body)["__type"].partition("#")[2]
    assert status == same_status
    assert name == json.loads(their_body)["__type"].partition("#")[2]
    assert lab.requests[-1]["outcome"] == name


# --- Sizes, items and pages -----------------------------------------------------------


def test_pages_end_at_1_mb() -> None:
    page = ask(Lab(instant(12_000)), "Scan", ReturnConsumedCapacity="TOTAL")
    sizes = [item_size(item) for item in page["Items"]]
    assert sum(sizes[:-1]) < MB <= sum(sizes)
    assert page["ConsumedCapacity"]["CapacityUnits"] == math.ceil(sum(sizes) / 4096) / 2
    assert page["LastEvaluatedKey"].items() <= page["Items"][-1].items()


def test_refuses_what_it_does_not_model(lab: Lab) -> None:
    refused = ask(lab, "Scan", FilterExpression="score")
    assert refused["error"] == "ValidationException"
    assert refused["message"] == "the local lab does not model FilterExpression"
    assert ask(lab, "PutItem")["error"] == "UnknownOperationException"
    update = {"BillingMode": "PAY_PER_REQUEST"}
    refused = ask(lab, "UpdateTable", **update)
    assert refused["message"] == "the local lab does not model BillingMode"
    refused = ask(lab, "Scan", Select="SPECIFIC_ATTRIBUTES")
    assert refused["message"] == "the local lab does not model SPECIFIC_ATTRIBUTES"


@pytest.mark.parametrize("body", [b'{"TableName": "Ga', b"[]"])
def test_body_that_is_no_object_is_refused(lab: Lab, body: bytes) -> None:
    assert lab.answer("Scan", body).outcome == "SerializationException"
    assert lab.requests[-1]["outcome"] == "SerializationException"


# --- Capacity and time ----------------------------------------------------------------


def test_throttled_page_costs_nothing() -> None:
    clock = FakeClock()
    lab = Lab(Settings(items=2000, read_capacity=10, burst_seconds=7), clock)
    request = json.dumps(REQUEST).encode()
    answers = [lab.answer("Scan", request) for _ in range(3)]
    # 70 RCU are saved, and each page costs 50.
    assert [answer.status for answer in answers] == [200, 200, 400]
    assert [entry["rcu"] for entry in lab.requests] == [50.0, 50.0, 0]
    clock.now = 3
    assert ask(lab, "Scan")["error"] == THROTTLED  # exactly nothing is left
    clock.now = 3.1
    assert ask(lab, "Scan")["Count"] == 2000


def test_time_follows_the_bytes_read() -> None:
    lab = Lab(Settings(items=2000, read_capacity=0, latency_ms=10, ms_per_mb=100))
    page = lab.answer("Scan", json.dumps(REQUEST).encode())
    refused = lab.answer("Scan", b"{}")
    assert lab.seconds(page) == pytest.approx(0.010 + 0.100 * 406_722 / MB)
    assert lab.seconds(refused) == 0.010


def test_update_changes_the_capacity() -> None:
    clock = FakeClock()
    lab = Lab(Settings(items=2000, read_capacity=5, update_seconds=2), clock)
    same = ask(lab, "UpdateTable", ProvisionedThroughput=UNITS_5)
    assert same["error"] == "ValidationException"
    assert "The requested value equals the current value" in same["message"]

    ask(lab, "UpdateTable", ProvisionedThroughput=UNITS_50)
    clock.now = 1.9
    table = ask(lab, "DescribeTable")["Table"]
    again = ask(lab, "UpdateTable", ProvisionedThroughput=UNITS_5)
    assert table["TableStatus"] == "UPDATING"
    assert table["ProvisionedThroughput"] == UNITS_5
    assert again["error"] == "ResourceInUseException"

    clock.now = 3  # a second after the update
    table = ask(lab, "DescribeTable")["Table"]
    assert table["TableStatus"] == "ACTIVE"
    assert table["ProvisionedThroughput"] == UNITS_50
    assert "BillingModeSummary" not in table
    # 1,500 RCU were saved and 50 came in. A scan costs 50.
    admitted = sum("Count" in ask(lab, "Scan") for _ in range(40))
    assert admitted == 31


def test_drawn_faults_follow_the_seed() -> None:
    outcomes = []
    for seed in (1, 1, 2):
        lab = Lab(instant(10, fault_rate=0.5, seed=seed))
        for _ in range(200):
            lab.answer("Scan", json.dumps(REQUEST).encode())
        outcomes.append([entry["outcome"] for entry in lab.requests])
    assert outcomes[0] == outcomes[1]
    assert outcomes[0] != outcomes[2]
    faults = {THROTTLED, "500", "reset", "truncated", "bad-crc"}
    assert set(outcomes[0]) == {"ok", *faults}


# --- On the wire ----------------------------------------------------------------------


def test_listens_on_this_machine_only(lab: Lab) -> None:
    port = int(lab.endpoint_url.rpartition(":")[2])
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_faults_as_clients_see_them(new_lab: NewLab) -> None:
    faults = ["bad-crc", "500", "throttle", "reset", "truncated", None]
    # This is enough for four pages of 50 RCU, if refused requests cost nothing.
    capacity = {"read_capacity": 1, "burst_seconds": 151}
    lab = new_lab(script=lambda number, _: faults[number], **capacity)
    _, damaged_body, damaged_crc32 = post(lab.endpoint_url)
    failed, _, _ = post(lab.endpoint_url)
    refused, _, _ = post(lab.endpoint_url)
    with pytest.raises(ConnectionResetError):
        post(lab.endpoint_url)
    with pytest.raises(http.client.IncompleteRead):
        post(lab.endpoint_url)
    good, good_body, good_crc32 = post(lab.endpoint_url)

    assert damaged_body == good_body
    assert damaged_crc32 != good_crc32 == zlib.crc32(good_body)
    assert (failed, refused, good) == (500, 400, 200)
    outcomes = [entry["outcome"] for entry in lab.requests]
    assert outcomes == ["bad-crc", "500", THROTTLED, "reset", "truncated", "ok"]
    assert [entry["rcu"] for entry in lab.requests] == [50.0, 0, 0, 50.0, 50.0, 50.0]


def test_request_log_has_each_request(new_lab: NewLab, tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    lab = new_lab(100, request_log=log)
    post(lab.endpoint_url)
    post(lab.endpoint_url, Segment=1, TotalSegments=2)
    post(lab.endpoint_url, TableName="Missing")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert entries == lab.requests
    assert [entry["segment"] for entry in entries] == [None, 1, None]
    assert entries[0]["items"] == 100
    assert entries[2]["outcome"] == "ResourceNotFoundException"
    fields = ["time", "operation", "segment", "items", "rcu", "outcome"]
    assert list(entries[0]) == fields


# --- The command line -----------------------------------------------------------------

# `env` shows the second variable in two lines.
MINE = {"AWS_PROFILE": "my-own", "AWS_A_B": "my-own\nAWS_X", "no_proxy": "my-own"}


def test_command_sees_only_the_lab(tmp_path: Path) -> None:
    script = tmp_path / "show.py"
    script.write_text(
        "import json, os, sys; print(json.dumps([sys.argv, dict(os.environ)]))"
    )
    # Not found on PATH: a script runs with this very interpreter.
    command = [*LAB, str(script), "--items", "7"]
    users = {**os.environ, **MINE, "PATH": "", "EDITOR": "ed"}
    arguments, environment = json.loads(subprocess.check_output(command, env=users))
    assert arguments == [str(script), "--items", "7"]
    assert "my-own" not in json.dumps(environment)
    assert environment["no_proxy"] == "127.0.0.1"
    assert environment["EDITOR"] == "ed"
    assert environment["AWS_ENDPOINT_URL_DYNAMODB"].startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("command", "status", "error"),
    [
        (["python", "-c", "raise SystemExit(7)"], 7, None),
        (["--", "python", "-c", ""], 0, None),
        (["no-such-command"], 127, "error: cannot run no-such-command: "),
        (["--fault-rate", "2", "python"], 2, "--fault-rate: 2 is not from 0 to 1"),
        (["--latency-ms", "nan", "python"], 2, "--latency-ms: nan is not 0 or more"),
        (["--port", "70000", "python"], 1, "error: bind(): port must be 0-65535"),
        (["--request-log", "/no/folder/x", "python"], 1, "error: [Errno 2]"),
    ],
)
def test_exit_status_of_the_lab(
    command: list[str], status: int, error: str | None
) -> None:
    ended = subprocess.run(
        [*LAB, *command], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == status
    assert (error or "") in ended.stderr
    assert bool(ended.stderr) == bool(error)


def test_help_fits_80_columns() -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    shown = subprocess.check_output([*LAB, "--help"], env=environment, text=True)
    assert str(local_dynamodb.__doc__) in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_pasted_lines_lead_to_the_lab() -> None:
    users = {**os.environ, **MINE}
    process = subprocess.Popen(LAB, env=users, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        pasted = process.stdout.readline() + process.stdout.readline()
        url = pasted.strip().rpartition("=")[2]
        status, _, _ = post(url)
    finally:
        process.terminate()
    with process:
        pasted += process.stdout.read()  # to its end
    shown = subprocess.check_output(["sh"], input=f"{pasted}env", env=users, text=True)
    assert (status, process.returncode) == (200, 0)
    assert f"AWS_ENDPOINT_URL_DYNAMODB={url}\n" in shown
    assert "no_proxy=127.0.0.1\n" in shown
    assert "my-own" not in shown


PATIENT = """
import sys, time
try:
    print("up", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(33)
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 33), (signal.SIGTERM, 143)]
)
def test_signals_reach_the_command(number: signal.Signals, status: int) -> None:
    command = [*LAB, "python", "-c", PATIENT]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "up\n"
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # a terminal signals the whole group
        else:
            process.send_signal(number)
    assert process.returncode == status
