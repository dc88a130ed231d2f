"""Wrong usage and refusals: the exact status, one line that says what is wrong, no traceback."""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import math
import signal
import string
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from engines import create_table, free_port
from hypothesis import example, given
from hypothesis import strategies as st
from local_dynamodb import HIDDEN, settings_for_aws
from running import BUNDLE, environment

from common import json_object, number, rate
from parallel_scan import share

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

SCRIPTS = ("sequential_scan", "parallel_scan", "compare")
PARALLEL = ("parallel_scan", "compare")
Reply = Callable[[str], tuple[int, bytes]]


@contextmanager
def answering(reply: Reply) -> Iterator[str]:
    """A server of canned answers: `reply` gives an operation's status and body. Yields its URL."""

    class Canned(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = reply(self.headers["X-Amz-Target"].partition(".")[2])
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Canned) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def refusal(code: str, message: str) -> tuple[int, bytes]:
    kind = f"com.amazonaws.dynamodb.v20120810#{code}"
    return 400, json.dumps({"__type": kind, "message": message}).encode()


def answers(scan: tuple[int, bytes], status: str = "ACTIVE") -> Reply:
    """An endpoint whose table looks well, or has another status, and which says this to a Scan."""
    table = {
        "TableStatus": status,
        "ItemCount": 0,
        "TableSizeBytes": 0,
        "ProvisionedThroughput": {"ReadCapacityUnits": 5, "WriteCapacityUnits": 5},
    }
    described = json.dumps({"Table": table}).encode()
    return lambda operation: scan if operation == "Scan" else (200, described)


# --- Running a script, and what a failure looks like ----------------------------------------------


class Ended(NamedTuple):
    """How a script ended."""

    status: int
    out: str
    err: str

    def line(self, start: str) -> str:
        """The one line on standard error that has `start`."""
        (line,) = (line for line in self.err.splitlines() if start in line)
        return line.partition(start)[2].strip()


Invoke = Callable[..., Ended]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Invoke]:
    """Calls a script's main in this process, where starting costs nothing."""
    before = signal.getsignal(signal.SIGTERM)
    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings_for_aws("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)

    def call(script: str, *flags: str) -> Ended:
        try:
            status = int(importlib.import_module(script).main(list(flags)))
        except SystemExit as left:  # argparse's way out
            status = int(left.code or 0)
        return Ended(status, *capfd.readouterr())

    yield call
    signal.signal(signal.SIGTERM, before)


def check(ended: Ended, status: int, error: str, hint: str = "") -> None:
    """One error line, that says so; a hint line where one is expected; and nothing else."""
    assert ended.status == status, ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert error in ended.line("error: ")
    assert hint in (ended.line("hint: ") if hint else "")


# --- Flags that are wrong in themselves -----------------------------------------------------------

EVERYWHERE = [
    ("--page-size 0", "--page-size: '0' is not a whole number from 1"),
    ("--page-size -1", "--page-size"),
    ("--page-size 1.5", "--page-size: '1.5' is not a whole number"),
    ("--page-size x", "--page-size"),
    ("--page-size", "--page-size: expected one argument"),
    (f"--page-size {'1' * 5000}", "--page-size"),
    ("--max-rcu 0", "--max-rcu: '0' is not a number above 0"),
    ("--max-rcu=-1", "--max-rcu: '-1' is not a number above 0"),
    ("--max-rcu nan", "--max-rcu"),
    ("--max-rcu inf", "--max-rcu"),
    ("--max-rcu x", "--max-rcu"),
    ("--output xml", "--output: invalid choice: 'xml'"),
    ("--select X", "--select: invalid choice: 'X'"),
    ("--select SPECIFIC_ATTRIBUTES", "--select: invalid choice"),
    ("--consistent-read=yes", "--consistent-read: ignored explicit argument"),
    ("--no-such-flag", "unrecognized arguments: --no-such-flag"),
    ("--table NAME", "unrecognized arguments: --table NAME"),
    ("--page 10", "unrecognized arguments: --page 10"),
    ("GameLeaderboard", "unrecognized arguments: GameLeaderboard"),
    ("--segment 0", "unrecognized arguments"),
]
JSON_FLAGS = [
    ("{", "not JSON"),
    ("", "not JSON"),
    (":min=100", "not JSON"),
    ("{':min': {'N': '100'}}", "not JSON"),
    ("[]", "not a JSON object"),
    ("100", "not a JSON object"),
    ("null", "not a JSON object"),
    ('{":b": {"B": "not base64!"}}', "not JSON"),
    ('{":b": {"BS": ["YQ==", 5]}}', "not JSON"),
    ('{":b": ' * 10_000, "not JSON"),
]
SEGMENTS = [
    ("0", "--total-segments: '0' is not a whole number from 1 to 1000000"),
    ("-1", "--total-segments"),
    ("1000001", "--total-segments: '1000001' is not"),
    ("x", "--total-segments: 'x' is not"),
    ("", "--total-segments: '' is not"),
    ("٤", "--total-segments"),
]
SHARES = ["3-1", "a-b", "1", "-1", "1-", "0-3-4", "0,3", "", "0-99999999"]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("flags", "error"), EVERYWHERE)
def test_wrong_flags(invoke: Invoke, script: str, flags: str, error: str) -> None:
    check(invoke(script, *flags.split()), 2, error)


@pytest.mark.parametrize("flag", ["--expression-attribute-names", "--expression-attribute-values"])
@pytest.mark.parametrize(("text", "error"), JSON_FLAGS)
def test_wrong_json(invoke: Invoke, flag: str, text: str, error: str) -> None:
    check(invoke("sequential_scan", flag, text), 2, error)


@pytest.mark.parametrize("script", PARALLEL)
@pytest.mark.parametrize(("text", "error"), SEGMENTS)
def test_wrong_segments(invoke: Invoke, script: str, text: str, error: str) -> None:
    check(invoke(script, "--total-segments", text), 2, error)


@pytest.mark.parametrize("text", SHARES)
def test_wrong_shares(invoke: Invoke, text: str) -> None:
    check(invoke("parallel_scan", "--total-segments", "1000", "--segments", text), 2, "--segments")


@pytest.mark.parametrize(
    ("script", "flags", "error"),
    [
        ("parallel_scan", "--segments 4-4", "--segments: of 4 the last is 3"),
        ("parallel_scan", "--segments 0-4", "--segments: of 4 the last is 3"),
        ("parallel_scan", "--total-segments 1 --segments 1-1", "--segments: of 1 the last is 0"),
        ("parallel_scan", "--workers 0", "--workers: '0' is not"),
        ("parallel_scan", "--workers 1001", "--workers: '1001' is not"),
        ("parallel_scan", "--executor asyncio", "--executor: invalid choice"),
        ("parallel_scan", "--total-segments 2 4", "unrecognized arguments: 4"),
        ("parallel_scan", "--runs 3", "unrecognized arguments: --runs"),
        ("compare", "--runs 0", "--runs: '0' is not"),
        ("compare", "--runs 1.5", "--runs: '1.5' is not"),
        ("compare", "--workers x", "--workers: 'x' is not"),
        ("compare", "--total-segments", "--total-segments: expected at least one argument"),
        ("compare", "--total-segments 4 0", "--total-segments: '0' is not"),
        ("compare", "--save items", "unrecognized arguments: --save"),
        ("compare", "--segments 0-1", "unrecognized arguments: --segments"),
        ("sequential_scan", "--total-segments 4", "unrecognized arguments: --total-segments"),
        ("sequential_scan", "--workers 4", "unrecognized arguments: --workers"),
        ("sequential_scan", "--save", "--save: expected one argument"),
    ],
)
def test_wrong_flags_of_one_script(invoke: Invoke, script: str, flags: str, error: str) -> None:
    check(invoke(script, *flags.split()), 2, error)


# --- Where the scripts are pointed to -------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("flags", "status", "error", "hint"),
    [
        ("--endpoint-url localhost:8000", 2, "Invalid endpoint", "http://host:port"),
        ("--endpoint-url http://", 2, "Invalid endpoint", "http://host:port"),
        ("--endpoint-url http://localhost:99999", 2, "Port out of range", "--endpoint-url"),
        ("--region us_east!1", 2, "region_name", "--region"),
        ("--profile nobody", 1, "profile (nobody) could not be found", "list-profiles"),
        ("--table-name=", 2, "TableName", ""),
    ],
)
def test_wrong_connections(
    invoke: Invoke, *, script: str, flags: str, status: int, error: str, hint: str
) -> None:
    ended = invoke(script, *flags.split())
    check(ended, status, error, hint)
    assert "--expression-attribute-values" not in ended.err


@pytest.mark.parametrize("script", SCRIPTS)
def test_nobody_listens(invoke: Invoke, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)  # 6 s of retries
    ended = invoke(script, "--endpoint-url", f"http://127.0.0.1:{free_port()}")
    check(ended, 1, "Could not connect to the endpoint URL", "--endpoint-url")


@pytest.mark.parametrize(
    ("missing", "given", "error", "hint"),
    [
        ("AWS_ENDPOINT_URL_DYNAMODB AWS_REGION AWS_DEFAULT_REGION", {},
         "You must specify a region", "--region us-east-1"),
        ("AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY", {},
         "Unable to locate credentials", "tests/local_dynamodb.py"),
        ("AWS_SECRET_ACCESS_KEY", {}, "Partial credentials", "AWS_ variables"),
        ("", {"AWS_CONFIG_FILE": __file__}, "Unable to parse config file", ""),
    ],
)  # fmt: skip
def test_wrong_environments(missing: str, given: dict[str, str], error: str, hint: str) -> None:
    env = environment(f"http://127.0.0.1:{free_port()}", **given)
    done = subprocess.run(
        [sys.executable, BUNDLE / "sequential_scan.py"],
        env={name: value for name, value in env.items() if name not in [*HIDDEN, *missing.split()]},
        capture_output=True,
        text=True,
        check=False,
    )
    check(Ended(done.returncode, done.stdout, done.stderr), 1, error, hint)


# --- What DynamoDB says no to ---------------------------------------------------------------------

DENIED = (
    "User: arn:aws:iam::000000000000:user/ada is not authorized to perform: dynamodb:Scan on "
    "resource: arn:aws:dynamodb:us-east-1:000000000000:table/GameLeaderboard"
)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        ("AccessDeniedException", DENIED, "allow dynamodb:Scan on table GameLeaderboard"),
        ("ExpiredTokenException", "The security token is expired", "renew an expired token"),
        ("UnrecognizedClientException", "The security token is invalid", "check the credentials"),
        ("InvalidSignatureException", "Signature expired: 20250101T0000Z", "this machine's clock"),
        ("SomethingNewException", "In words\nof two lines", ""),
    ],
)
def test_refusals(invoke: Invoke, script: str, code: str, message: str, hint: str) -> None:
    with answering(answers(refusal(code, message))) as endpoint_url:
        ended = invoke(script, "--endpoint-url", endpoint_url)
        check(ended, 1, f"{code}: {message.splitlines()[0]}", hint)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_denied_description_names_its_permission(invoke: Invoke, script: str) -> None:
    with answering(lambda _: refusal("AccessDeniedException", "no")) as endpoint_url:
        ended = invoke(script, "--endpoint-url", endpoint_url)
    operation = "DescribeTable" if script == "compare" else "Scan"
    check(ended, 1, "AccessDeniedException", f"allow dynamodb:{operation} on table GameLeaderboard")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_table_that_is_being_created(invoke: Invoke, script: str) -> None:
    no_table = refusal("ResourceNotFoundException", "Requested resource not found")
    with answering(answers(no_table, "CREATING")) as endpoint_url:
        ended = invoke(script, "--endpoint-url", endpoint_url)
    check(ended, 1, "table GameLeaderboard is CREATING", "aws dynamodb wait table-exists")


@pytest.mark.parametrize("script", SCRIPTS)
def test_something_that_is_not_dynamodb(invoke: Invoke, script: str) -> None:
    with answering(lambda _: (200, b"<html>Welcome</html>")) as endpoint_url:
        ended = invoke(script, "--endpoint-url", endpoint_url)
    check(ended, 1, "does not answer as DynamoDB does", "--endpoint-url")


@pytest.fixture(scope="module")
def engine_url(engine_client: DynamoDBClient) -> str:
    """A real engine's endpoint, with the lab's table."""
    create_table(engine_client, "GameLeaderboard")
    return engine_client.meta.endpoint_url


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("flags", "error", "hint"),
    [
        ("--table-name Missing", "no table Missing at http", "GameLeaderboard"),
        ("--table-name my!table", "'my!table' at 'tableName' failed to satisfy", ""),
        ("--table-name ab", "3", ""),
        ("--index-name Missing", "the specified index: Missing", ""),
        ("--filter-expression score>", "Invalid FilterExpression: Syntax error", ""),
        ("--filter-expression=", "Invalid FilterExpression: The expression can not be empty;", ""),
        ("--filter-expression score>:min", "not defined", "--expression-attribute-values as"),
        ("--projection-expression a,,b", "Invalid ProjectionExpression: Syntax error", ""),
        ('--expression-attribute-values {":min":{"N":"1"}}', "when using expressions", ""),
        ('--expression-attribute-names {"#a":"b"}', "when using expressions", ""),
    ],
)
def test_what_a_real_engine_rejects(
    invoke: Invoke, engine_url: str, *, script: str, flags: str, error: str, hint: str
) -> None:
    check(invoke(script, "--endpoint-url", engine_url, *flags.split()), 1, error, hint)


@pytest.mark.parametrize(
    ("value", "status", "error", "hint"),
    [
        ('"1"', 2, "ExpressionAttributeValues.:min, value: 1", '{":min": {"N": "100"}}'),
        ('{"N":1}', 2, "ExpressionAttributeValues.:min.N, value: 1", '{":min": {"N": "100"}}'),
        ('{"Q":"1"}', 2, "must be one of: S, N, B", '{":min": {"N": "100"}}'),
        ('{"N":"x"}', 1, "cannot be converted to a numeric value: x", ""),
    ],
)
def test_values_in_the_wrong_shape(
    invoke: Invoke, engine_url: str, *, value: str, status: int, error: str, hint: str
) -> None:
    flags = ("--filter-expression", "score > :min", "--expression-attribute-values")
    ended = invoke("sequential_scan", "--endpoint-url", engine_url, *flags, f'{{":min": {value}}}')
    check(ended, status, error, hint)


# --- The argparse types, for any text -------------------------------------------------------------

NUMBERS = st.one_of(
    st.text(),
    st.text(string.digits + "+-.eE_ ", min_size=1),
    st.integers().map(str),
    st.floats().map(str),
)
NAMES = st.text(max_size=3).filter(lambda name: name not in ("B", "BS"))


def json_values(names: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=8,
    )


ANY_JSON = json_values(NAMES | st.sampled_from(["B", "BS"]))


def value_of(parse: Callable[[str], Any], text: str) -> Any:
    """What an argparse type makes of a text; None if it refuses, in one line of its own."""
    try:
        return parse(text)
    except argparse.ArgumentTypeError as error:
        assert str(error)
        return None


@given(NUMBERS)
@example("1" * 5000)
def test_numbers_are_whole_and_within_their_limits(text: str) -> None:
    value = value_of(number(3, 2000), text)
    assert value is None or (type(value) is int and 3 <= value <= 2000 and int(text) == value)


@given(st.integers(3, 2000))
def test_numbers_within_their_limits_are_taken(value: int) -> None:
    assert value_of(number(3, 2000), str(value)) == value


@given(NUMBERS)
@example("1e400")
@example("-nan")
def test_rates_are_finite_and_above_zero(text: str) -> None:
    value = value_of(rate, text)
    assert value is None or (math.isfinite(value) and value > 0)


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_rates_above_zero_are_taken(value: float) -> None:
    assert value_of(rate, str(value)) == value


@given(st.one_of(st.text(), ANY_JSON.map(json.dumps)))
@example('{"a":' * 100_000)
@example('{"B": "é"}')
@example('{"BS": [[]]}')
def test_json_objects_are_objects(text: str) -> None:
    assert isinstance(value_of(json_object, text), dict | None)


@given(st.dictionaries(NAMES, json_values(NAMES), max_size=3))
def test_json_objects_come_as_they_are(value: dict[str, Any]) -> None:
    assert value_of(json_object, json.dumps(value)) == value


@given(st.binary())
def test_binary_values_are_base64(value: bytes) -> None:
    text = base64.b64encode(value).decode()
    assert json_object(f'{{":b": {{"B": "{text}"}}, ":s": {{"BS": ["{text}"]}}}}') == {
        ":b": {"B": value},
        ":s": {"BS": [value]},
    }


@given(st.one_of(st.text(), st.text(string.digits + "-"), st.from_regex(r"\d+-\d+")))
def test_shares_are_ranges_of_segments(text: str) -> None:
    value = value_of(share, text)
    assert value is None or [value[0], value[-1]] == [int(end) for end in text.split("-")]
