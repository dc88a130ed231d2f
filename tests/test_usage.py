"""Wrong usage and refusals: the exact status, one line that says what is wrong, no traceback."""

from __future__ import annotations

import functools
import importlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from engines import create_table, free_port
from local_dynamodb import HIDDEN, settings_for_aws
from running import BUNDLE, environment, run

import common
from common import json_value

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

SCRIPTS = ("sequential_scan", "parallel_scan", "compare")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Reply = Callable[[str], "tuple[int, bytes]"]


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
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
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


EMPTY_PAGE = (200, b'{"Items": [], "Count": 0, "ScannedCount": 0}')
FINE = answers(EMPTY_PAGE)

# --- Running a script, and what a failure looks like


class Ended(NamedTuple):
    """How a script ended."""

    status: int
    out: str
    err: str


Invoke = Callable[..., Ended]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Invoke]:
    """Calls a script in this process, where it starts at once and no retry waits."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    monkeypatch.setenv("COLUMNS", "80")
    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings_for_aws("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)

    def call(script: str, *flags: str) -> Ended:
        main = functools.partial(importlib.import_module(script).main, list(flags))
        common.new_client.cache_clear()  # as for a new process: the environment is read again
        try:
            status = common.status_of(main)
        except SystemExit as left:  # argparse's way out
            status = int(left.code or 0)
        return Ended(status, *capfd.readouterr())

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


def check(ended: Ended, status: int, error: str, hint: str = "") -> None:
    """Nothing on standard output, and at the end of the other one error line and one hint line,
    which say so; without `hint`, no hint at all."""
    lines = ended.err.splitlines()
    assert ended.status == status, ended.err
    assert ended.out == ""
    assert "Traceback" not in ended.err
    if hint:
        assert lines[-1].startswith("hint: ")
        assert hint in lines.pop()
    assert "hint: " not in "\n".join(lines)
    assert re.match(r"(\S+: )?error: ", lines[-1])
    assert error in lines[-1]
    assert sum("error: " in line for line in lines) == 1


# --- Flags that are wrong in themselves

NAMES = "--expression-attribute-names"
VALUES = "--expression-attribute-values"

EVERYWHERE = [
    ("--page-size 1.5", "argument --page-size: invalid"),
    (f"--page-size {'1' * 5000}", "argument --page-size: invalid"),
    ("--max-rcu 0", "--max-rcu is a whole number above 0"),
    ("--max-rcu 2.5", "argument --max-rcu: invalid"),
    ("--max-rcu inf", "argument --max-rcu: invalid"),
    ("--output xml", "argument --output: invalid choice: 'xml'"),
    ("--select SPECIFIC_ATTRIBUTES", "argument --select: invalid choice"),
    (f"{NAMES} {{", f"argument {NAMES}: invalid"),
    (f"{VALUES} :min=1", f"argument {VALUES}: invalid"),
    ("--table NAME", "unrecognized arguments: --table NAME"),
    ("GameLeaderboard", "unrecognized arguments: GameLeaderboard"),
]
ONE_SCRIPT = [
    ("sequential_scan", "--total-segments 4", "unrecognized arguments: --total-segments"),
    ("sequential_scan", "--select COUNT --save x", "--save needs the items, and --select COUNT"),
    ("parallel_scan", "--total-segments 0", "argument --total-segments: 0 is not from 1 to"),
    ("parallel_scan", "--total-segments 1000001", "argument --total-segments: 1000001 is not"),
    ("parallel_scan", "--total-segments 4,8", "argument --total-segments: invalid"),
    ("parallel_scan", "--segments 0-4", "--segments: of 4 the last is 3"),
    ("parallel_scan", "--total-segments 1 --segments 1-1", "--segments: of 1 the last is 0"),
    ("parallel_scan", "--segments 3-1", "argument --segments: invalid"),
    ("parallel_scan", "--segments 1", "argument --segments: invalid"),
    ("parallel_scan", "--workers 0", "argument --workers: 0 is not from 1"),
    ("compare", "--runs 0", "argument --runs: 0 is not from 1"),
    ("compare", "--total-segments", "--total-segments: expected at least one argument"),
    ("compare", "--total-segments 2 4,0", "argument --total-segments: 0 is not"),
    ("compare", "--total-segments 2,,4", "argument --total-segments: invalid"),
    ("compare", "--save items", "unrecognized arguments: --save"),
]
WRONG_FLAGS = [(script, *case) for script in SCRIPTS for case in EVERYWHERE] + ONE_SCRIPT


@pytest.mark.parametrize(("script", "flags", "error"), WRONG_FLAGS)
def test_wrong_flags(invoke: Invoke, script: str, flags: str, error: str) -> None:
    check(invoke(script, *flags.split()), 2, error)


@pytest.mark.parametrize("text", ["", "{':n': 'b'}", '{":n": {"B": "not base64!"}}'])
def test_what_is_no_json_is_wrong_usage(invoke: Invoke, text: str) -> None:
    check(invoke("sequential_scan", VALUES, text), 2, f"argument {VALUES}: invalid")


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ("--page-size 0", "parameter Limit, value: 0, valid min value: 1"),
        (f"{NAMES} []", "Invalid type for parameter ExpressionAttributeNames, value: []"),
        (f'{NAMES} "x"', "Invalid type for parameter ExpressionAttributeNames, value: x"),
    ],
)
def test_what_botocore_refuses_is_wrong_usage(invoke: Invoke, flags: str, error: str) -> None:
    with answering(FINE) as endpoint_url:
        ended = invoke("sequential_scan", "--endpoint-url", endpoint_url, *flags.split())
    check(ended, 2, error)


# --- Where the scripts are pointed to


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("flags", "status", "error", "hint"),
    [
        ("--endpoint-url localhost:8000", 2, "Invalid endpoint: localhost:8000", "http://host"),
        ("--endpoint-url http://localhost:99999", 1, "http://localhost:99999", "endpoint"),
        ("--region us_east!1", 2, "region_name 'us_east!1'", "--region"),
        ("--profile nobody", 1, "profile (nobody) could not be found", "list-profiles"),
        ("--table-name=", 2, "Invalid length for parameter TableName", ""),
    ],
)
def test_wrong_connections(
    invoke: Invoke, *, script: str, flags: str, status: int, error: str, hint: str
) -> None:
    ended = invoke(script, *flags.split())
    check(ended, status, error, hint)
    assert "credentials" not in ended.err


@pytest.mark.parametrize("script", SCRIPTS)
def test_nobody_listens(invoke: Invoke, script: str) -> None:
    endpoint_url = f"http://127.0.0.1:{free_port()}"
    ended = invoke(script, "--endpoint-url", endpoint_url)
    check(ended, 1, f'Could not connect to the endpoint URL: "{endpoint_url}/"', "endpoint")


LOCAL_LAB = "python tests/local_dynamodb.py compare.py"
MISSING = "/no/such/file"


@pytest.mark.parametrize(
    ("settings", "error", "hint"),
    [
        ({"AWS_ENDPOINT_URL_DYNAMODB": "", "AWS_REGION": "", "AWS_DEFAULT_REGION": ""},
         "You must specify a region", LOCAL_LAB),
        ({"AWS_ACCESS_KEY_ID": ""}, "Unable to locate credentials", LOCAL_LAB),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "Partial credentials", "complete the AWS_ variables"),
        ({"AWS_DEFAULTS_MODE": "nonsense"}, "invalid defaults mode: nonsense", ""),
        ({"AWS_CONFIG_FILE": __file__}, f"Unable to parse config file: {__file__}", ""),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_WEB_IDENTITY_TOKEN_FILE": MISSING, "AWS_ROLE_ARN": "arn"},
         f"No such file or directory: '{MISSING}'", ""),
    ],
)  # fmt: skip
def test_wrong_settings(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], error: str, hint: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
    check(invoke("sequential_scan"), 1, error, hint)


def test_settings_of_retries_do_no_harm(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_RETRY_MODE", "nonsense")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "x")
    with answering(FINE) as endpoint_url:
        ended = invoke("sequential_scan", "--endpoint-url", endpoint_url)
    assert (ended.status, ended.err) == (0, "")


def test_certificates_that_are_not_there(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", MISSING)
    with answering(FINE) as endpoint_url:
        https_url = endpoint_url.replace("http:", "https:")
        ended = invoke("sequential_scan", "--endpoint-url", https_url)
    check(ended, 1, f"SSL validation failed for {https_url}/ [Errno 2] No such file", "network")


# --- Files and streams


def test_a_directory_to_save_in_that_is_not_there_is_named(invoke: Invoke) -> None:
    ended = invoke("parallel_scan", "--save", f"{MISSING}/items")
    check(ended, 1, f"No such file or directory: '{MISSING}/items")


def redirected(script: str, redirection: str) -> Ended:
    """Run a script as a shell does, with such a redirection, on an empty table."""
    with answering(FINE) as endpoint_url:
        done = subprocess.run(
            ["sh", "-c", f'exec "$0" "$1" {redirection}', sys.executable, f"{script}.py"],
            cwd=BUNDLE,
            env=environment(endpoint_url),
            capture_output=True,
            text=True,
            check=False,
        )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("script", ["sequential_scan", "compare"])
@pytest.mark.parametrize(
    ("redirection", "error"),
    [(">/dev/full", "No space left on device: '<stdout>'"), (">&-", "standard output")],
)
def test_a_full_or_closed_standard_output(script: str, redirection: str, error: str) -> None:
    check(redirected(script, redirection), 1, error)


def test_a_closed_standard_error_ends_a_script_before_it_reads() -> None:
    assert redirected("compare", "2>&-") == Ended(1, "", "")


def test_a_timeline_prints_in_ascii() -> None:
    with answering(FINE) as endpoint_url:
        ended = run(endpoint_url, "parallel_scan.py", PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(r"^segment 3 \| *\?+", ended.stdout, re.MULTILINE)


def test_a_signal_that_nohup_ignores_stays_ignored(invoke: Invoke) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with answering(FINE) as endpoint_url:
        invoke("sequential_scan", "--endpoint-url", endpoint_url)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is common.interrupt
    assert signal.getsignal(signal.SIGINT) is common.interrupt


# --- What DynamoDB says no to


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        ("AccessDeniedException", "not authorized: dynamodb:Scan", "README.md has the policy"),
        ("ExpiredTokenException", "The security token is expired", "renew credentials"),
        ("InvalidSignatureException", "Signature expired: 20250101T0000Z", "check the clock"),
        ("SomethingNewException", "In words\nof two lines", ""),
    ],
)
def test_refusals(invoke: Invoke, script: str, code: str, message: str, hint: str) -> None:
    with answering(answers(refusal(code, message))) as endpoint_url:
        ended = invoke(script, "--endpoint-url", endpoint_url)
    said = " ".join(message.split())
    check(ended, 1, f"An error occurred ({code}) when calling the Scan operation: {said}", hint)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_refused_description_matters_only_to_the_comparison(invoke: Invoke, script: str) -> None:
    denied = refusal("AccessDeniedException", "dynamodb:DescribeTable")
    with answering(lambda name: EMPTY_PAGE if name == "Scan" else denied) as endpoint_url:
        ended = invoke(script, "--endpoint-url", endpoint_url)
    if script == "compare":
        check(ended, 1, "(AccessDeniedException) when calling the DescribeTable", "the policy")
    else:
        assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("status", ["CREATING", "DELETING"])
def test_a_table_that_is_not_active(invoke: Invoke, script: str, status: str) -> None:
    no_table = refusal("ResourceNotFoundException", "Requested resource not found")
    with answering(answers(no_table, status)) as endpoint_url:
        ended = invoke(script, "--endpoint-url", endpoint_url)
    check(ended, 1, "(ResourceNotFoundException)", "is it there, and ACTIVE? check --table-name")
    assert "wait" not in ended.err.splitlines()[-1]


@pytest.mark.parametrize(
    "code",
    ["ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded"],
)
def test_throttles_in_all_their_words_are_waited_out(invoke: Invoke, code: str) -> None:
    scans = iter([refusal(code, "slow down"), refusal(code, "slow down"), EMPTY_PAGE])
    with answering(lambda name: next(scans) if name == "Scan" else FINE(name)) as endpoint_url:
        ended = invoke("sequential_scan", "--endpoint-url", endpoint_url, "--output", "json")
    metrics = json.loads(ended.out)
    assert ended.status == 0
    assert metrics["throttled_requests"] == 2
    assert metrics["retried_requests"] == 0
    assert metrics["pages"] == 1


# --- What is not DynamoDB

DEEP = "[" * 100_000
EMPTY = '"Items": [], "Count": 0, "ScannedCount": 0'
ANYTHING = ["", "<html>Welcome</html>", "[]", "null", "{}"]
WRONG_PAGES = [
    *ANYTHING,
    '{"Items": [], "ScannedCount": 0}',
    '{"Items": [], "Count": 0}',
    '{"Items": [], "Count": "0", "ScannedCount": 0}',
    '{"Items": [], "Count": null, "ScannedCount": 0}',
    '{"Items": null, "Count": 1, "ScannedCount": 1}',
    '{"Items": null, "Count": 0, "ScannedCount": 0}',
    '{"Items": [1], "Count": 1, "ScannedCount": 1}',
    '{"Items": [{}, 1], "Count": 2, "ScannedCount": 2}',
    '{"Count": 2, "ScannedCount": 2, "Items": [{}]}',
    '{"Count": 1, "ScannedCount": 1, "Items": [{}',
    '{"Count": 1, "ScannedCount": 1, "Items": [{"a": ' + DEEP,
    f'{{{EMPTY}, "More": {DEEP}',
    f'{{{EMPTY}, "ConsumedCapacity": {{"CapacityUnits": "0.5"}}}}',
    f'{{{EMPTY}, "ConsumedCapacity": []}}',
    f'{{{EMPTY}, "LastEvaluatedKey": [1]}}',
    f'{{{EMPTY}, "LastEvaluatedKey": "a"}}',
    f'{{{EMPTY}, "LastEvaluatedKey": {{"a": "b"}}}}',
    f'{{{EMPTY}, "LastEvaluatedKey": {{"a": {{"B": "!"}}}}}}',
    f'{{{EMPTY}, "LastEvaluatedKey": {DEEP}',
]
WRONG_TABLES = [
    *ANYTHING,
    '{"Table": null}',
    '{"Table": []}',
    '{"Table": {"ItemCount": "many"}}',
    '{"Table": {"ProvisionedThroughput": []}}',
    '{"Table": {"BillingModeSummary": []}}',
    '{"Table": ' + DEEP,
]
SOMETHING_ELSE = [(201, "<html>"), (204, ""), (400, "[]"), (400, "null"), (400, '"no"')]
CASES = [
    *[("sequential_scan", "Scan", 200, body) for body in WRONG_PAGES],
    *[(script, "Scan", 200, WRONG_PAGES[5]) for script in ("parallel_scan", "compare")],
    *[("compare", "DescribeTable", 200, body) for body in WRONG_TABLES],
    *[(script, "DescribeTable", 200, body)
      for script in ("sequential_scan", "parallel_scan") for body in ("[]", '{"Table": []}')],
    *[(script, "any", *case) for script in SCRIPTS for case in SOMETHING_ELSE],
]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "operation", "status", "body"), CASES, ids=lambda each: str(each)[:60]
)
def test_an_answer_that_dynamodb_would_not_give(
    invoke: Invoke, script: str, operation: str, status: int, body: str
) -> None:
    def reply(name: str) -> tuple[int, bytes]:
        return (status, body.encode()) if operation in (name, "any") else FINE(name)

    with answering(reply) as endpoint_url:
        ended = invoke(script, "--endpoint-url", endpoint_url)
    check(ended, 1, f"error: {endpoint_url} does not answer as DynamoDB does", "network")


# --- What a real engine says no to


@pytest.fixture(scope="module")
def engine_url(engine_client: DynamoDBClient) -> str:
    """A real engine's endpoint, with the lab's table."""
    create_table(engine_client, "GameLeaderboard")
    return engine_client.meta.endpoint_url


NO_TABLE = ("--table-name Missing", 1, "(ResourceNotFoundException)", "check --table-name")
REJECTED = [
    NO_TABLE,
    ("--table-name my!table", 1, "'my!table' at 'tableName' failed to satisfy", ""),
    ("--index-name Missing", 1, "does not have the specified index: Missing", ""),
    ("--filter-expression score>", 1, "Invalid FilterExpression: Syntax error", ""),
    ("--filter-expression #m=score", 1, "not defined; attribute name: #m", NAMES),
    ("--filter-expression score=:n", 1, "not defined; attribute value: :n", VALUES),
    ("--projection-expression name", 1, "reserved keyword: name", NAMES),
    (f'{VALUES} {{":n":"1"}}', 2, "Values.:n, value: 1", VALUES),
    (f'{VALUES} {{":n":{{"N":1}}}}', 2, "Values.:n.N, value: 1", VALUES),
]
BY_A_SCRIPT = [("sequential_scan", *case) for case in REJECTED]
BY_A_SCRIPT += [("parallel_scan", *NO_TABLE), ("compare", *NO_TABLE)]


@pytest.mark.parametrize(("script", "flags", "status", "error", "hint"), BY_A_SCRIPT)
def test_what_a_real_engine_rejects(
    invoke: Invoke, engine_url: str, *, script: str, flags: str, status: int, error: str, hint: str
) -> None:
    check(invoke(script, "--endpoint-url", engine_url, *flags.split()), status, error, hint)


# --- JSON flags


def test_binary_values_are_base64() -> None:
    assert json_value('{":b": {"B": "/wA="}}') == {":b": {"B": b"\xff\0"}}


def test_a_string_may_be_called_as_a_type_is() -> None:
    for text in ("B", "BS"):
        value = {":b": {"S": text}, text: {"S": "b"}}
        assert json_value(json.dumps(value)) == value
