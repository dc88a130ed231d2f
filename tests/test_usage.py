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
from typing import Any

import pytest
from engines import Engine
from local_dynamodb import HIDDEN, settings_for_aws
from running import BUNDLE, Ended, environment, run

import common
from common import json_value

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
    table = {"TableStatus": status, "ProvisionedThroughput": {"ReadCapacityUnits": 5}}
    described = json.dumps({"Table": table}).encode()
    return lambda operation: scan if operation == "Scan" else (200, described)


EMPTY_PAGE = (200, b'{"Items": [], "Count": 0, "ScannedCount": 0}')
FINE = answers(EMPTY_PAGE)
Invoke = Callable[..., Ended]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Invoke]:
    """Calls a script in this process, where no retry waits, on an empty table or what replies."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    monkeypatch.setenv("COLUMNS", "80")
    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings_for_aws("").items():
        monkeypatch.setenv(name, value)

    def call(script: str, *flags: str, reply: Reply = FINE) -> Ended:
        main = functools.partial(importlib.import_module(script).main, list(flags))
        common.new_client.cache_clear()  # as for a new process: the environment is read again
        with answering(reply) as endpoint_url:
            monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", endpoint_url)
            try:
                status = common.status_of(main)
            except SystemExit as left:  # argparse's way out
                status = int(left.code or 0)
        return Ended([], status, *capfd.readouterr())

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


def check(ended: Ended, status: int, error: str, hint: str = "") -> None:
    """Nothing on standard output, and at the end of the other one error line and one hint line,
    which say so; without `hint`, no hint at all."""
    lines = ended.stderr.splitlines()
    assert ended.returncode == status, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
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
    (f"--page-size {'1' * 5000}", "argument --page-size: invalid"),
    ("--max-rcu 0", "--max-rcu is a whole number from 1 to 1,000,000"),
    (f"--max-rcu {'1' * 400}", "--max-rcu is a whole number from 1 to 1,000,000"),
    ("--max-rcu 2.5", "argument --max-rcu: invalid"),
    ("--output xml", "argument --output: invalid choice: 'xml'"),
    ("--select SPECIFIC_ATTRIBUTES", "argument --select: invalid choice"),
    (f"{NAMES} {{", f"argument {NAMES}: invalid"),
    (f'{VALUES} {{":n":{{"B":"YWJj!"}}}}', f"argument {VALUES}: invalid"),
    ("--table NAME", "unrecognized arguments: --table NAME"),
    ("--page-size 0", "parameter Limit, value: 0, valid min value: 1"),
    (f"{NAMES} []", "Invalid type for parameter ExpressionAttributeNames, value: []"),
    ("--table-name=", "Invalid length for parameter TableName, value: 0"),
]
ONE_SCRIPT = [
    ("sequential_scan", "--total-segments 4", "unrecognized arguments: --total-segments"),
    ("sequential_scan", "--select COUNT --save x", "--save needs the items, and --select COUNT"),
    ("parallel_scan", "--total-segments 0", "argument --total-segments: 0 is not from 1 to"),
    ("parallel_scan", "--total-segments 1000001", "argument --total-segments: 1000001 is not"),
    ("parallel_scan", "--segments 0-4", "--segments: of 4 the last is 3"),
    ("parallel_scan", "--segments 3-1", "argument --segments: invalid"),
    ("parallel_scan", "--workers 0", "argument --workers: 0 is not from 1"),
    ("compare", "--runs 0", "argument --runs: 0 is not from 1"),
    ("compare", "--total-segments 2 4,0", "argument --total-segments: 0 is not"),
    ("compare", "--total-segments 2,,4", "argument --total-segments: invalid"),
    ("compare", "--save items", "unrecognized arguments: --save"),
]
WRONG_FLAGS = [(script, *case) for script in SCRIPTS for case in EVERYWHERE] + ONE_SCRIPT


@pytest.mark.parametrize(("script", "flags", "error"), WRONG_FLAGS)
def test_wrong_flags(invoke: Invoke, script: str, flags: str, error: str) -> None:
    check(invoke(script, *flags.split()), 2, error)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("flags", "status", "error", "hint"),
    [
        ("--endpoint-url localhost:8000", 2, "Invalid endpoint: localhost:8000", "http://host"),
        ("--endpoint-url http://localhost:99999", 1, "http://localhost:99999", "endpoint"),
        ("--region us_east!1", 2, "region_name 'us_east!1'", "--region"),
        ("--profile nobody", 1, "profile (nobody) could not be found", "list-profiles"),
        ("--endpoint-url http://127.0.0.1:9", 1, "Could not connect to the endpoint", "endpoint"),
    ],
)
def test_wrong_connections(
    invoke: Invoke, *, script: str, flags: str, status: int, error: str, hint: str
) -> None:
    ended = invoke(script, *flags.split())
    check(ended, status, error, hint)
    assert "credentials" not in ended.stderr


LOCAL_LAB = "python tests/local_dynamodb.py compare.py"
MISSING = "/no/such/file"


@pytest.mark.parametrize(
    ("settings", "error", "hint"),
    [
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}, "You must specify a region", LOCAL_LAB),
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


def test_certificates_that_are_not_there(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", MISSING)
    with answering(FINE) as endpoint_url:
        https_url = endpoint_url.replace("http:", "https:")
        ended = invoke("sequential_scan", "--endpoint-url", https_url)
    check(ended, 1, f"SSL validation failed for {https_url}/ [Errno 2] No such file", "network")


# --- Files and streams


def redirected(script: str, redirection: str) -> Ended:
    """Run a script as a shell does, with such a redirection, on an empty table."""
    with answering(FINE) as endpoint_url:
        command = [f'exec "$0" "$1" {redirection}', sys.executable, f"{BUNDLE}/{script}.py"]
        env = environment(endpoint_url)
        return subprocess.run(
            ["sh", "-c", *command], env=env, capture_output=True, text=True, check=False
        )


@pytest.mark.parametrize(
    ("script", "redirection", "error"),
    [
        ("compare", ">/dev/full", "No space left on device: '<stdout>'"),
        ("compare", ">&-", "standard output or standard error is closed"),
    ],
)
def test_a_full_or_closed_standard_output(script: str, redirection: str, error: str) -> None:
    check(redirected(script, redirection), 1, error)


def test_a_closed_standard_error_ends_a_script_before_it_reads() -> None:
    ended = redirected("compare", "2>&-")
    assert (ended.returncode, ended.stdout) == (1, "")


def test_a_timeline_prints_in_ascii_and_settings_of_retries_do_no_harm() -> None:
    env = {"PYTHONIOENCODING": "ascii", "AWS_RETRY_MODE": "nonsense", "AWS_MAX_ATTEMPTS": "x"}
    with answering(FINE) as endpoint_url:
        ended = run(endpoint_url, "parallel_scan.py", **env)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(r"\nsegment 3 \| *\?+\n", ended.stdout)


def test_a_signal_that_nohup_ignores_stays_ignored(invoke: Invoke) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
    invoke("sequential_scan")
    handlers = [signal.getsignal(number) for number in SIGNALS]
    assert handlers == [common.interrupt, common.interrupt, signal.SIG_IGN]


# --- What DynamoDB says no to


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        ("AccessDeniedException", "not authorized: dynamodb:Scan", "README.md has the policy"),
        ("ExpiredTokenException", "Connect again: a token expired", "renew credentials"),
        ("InvalidSignatureException", "Signature expired: 20250101T0000Z", "check the clock"),
        ("SomethingNewException", "In words\nof two lines", ""),
    ],
)
def test_refusals(invoke: Invoke, script: str, code: str, message: str, hint: str) -> None:
    ended = invoke(script, reply=answers(refusal(code, message)))
    said = " ".join(message.split())
    check(ended, 1, f"An error occurred ({code}) when calling the Scan operation: {said}", hint)


def test_a_refused_description_matters_only_to_the_comparison(invoke: Invoke) -> None:
    denied = refusal("AccessDeniedException", "dynamodb:DescribeTable")
    alone, both = [
        invoke(script, reply=lambda name: EMPTY_PAGE if name == "Scan" else denied)
        for script in ("parallel_scan", "compare")
    ]
    assert (alone.returncode, alone.stderr) == (0, "")
    check(both, 1, "(AccessDeniedException) when calling the DescribeTable", "the policy")


@pytest.mark.parametrize("status", ["CREATING", "DELETING"])
def test_a_table_that_is_not_active(invoke: Invoke, status: str) -> None:
    no_table = refusal("ResourceNotFoundException", "Requested resource not found")
    ended = invoke("parallel_scan", reply=answers(no_table, status))
    check(ended, 1, "(ResourceNotFoundException)", "is it there, and ACTIVE? check --table-name")
    assert "wait" not in ended.stderr


@pytest.mark.parametrize(
    "code",
    ["ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded"],
)
def test_throttles_in_all_their_words_are_waited_out(invoke: Invoke, code: str) -> None:
    throttle = refusal(code, "slow down")
    replies = iter([FINE("DescribeTable"), throttle, throttle, EMPTY_PAGE])
    ended = invoke("sequential_scan", "--output", "json", reply=lambda name: next(replies))
    metrics = json.loads(ended.stdout)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (metrics["throttled_requests"], metrics["pages"]) == (2, 1)


# --- What is not DynamoDB

DEEP = "[" * 100_000
EMPTY = '"Items": [], "Count": 0, "ScannedCount": 0'
ANYTHING = ["", "<html>Welcome</html>", "[]", "null", "{}"]
WRONG_PAGES = [
    *ANYTHING,
    '{"Items": [], "ScannedCount": 0}',
    '{"Items": [], "Count": 0}',
    '{"Items": [], "Count": "0", "ScannedCount": 0}',
    '{"Items": null, "Count": 1, "ScannedCount": 1}',
    '{"Items": [{}, 1], "Count": 2, "ScannedCount": 2}',
    '{"Count": 2, "ScannedCount": 2, "Items": [{}]}',
    '{"Count": 1, "ScannedCount": 1, "Items": [{}',
    '{"Count": 1, "ScannedCount": 1, "Items": [{"a": ' + DEEP,
    f'{{{EMPTY}, "More": {DEEP}',
    f'{{{EMPTY}, "ConsumedCapacity": {{"CapacityUnits": "0.5"}}}}',
    f'{{{EMPTY}, "ConsumedCapacity": []}}',
    f'{{{EMPTY}, "LastEvaluatedKey": [1]}}',
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
    *[("parallel_scan", "Scan", 200, "[]"), ("compare", "Scan", 200, "[]")],
    *[("compare", "DescribeTable", 200, body) for body in WRONG_TABLES],
    *[("sequential_scan", "DescribeTable", 200, body) for body in ("[]", '{"Table": []}')],
    *[("parallel_scan", "DescribeTable", 200, body) for body in ("[]", '{"Table": []}')],
    *[(script, "any", *case) for script in SCRIPTS for case in SOMETHING_ELSE],
]


@pytest.mark.parametrize(
    ("script", "operation", "status", "body"), CASES, ids=lambda each: str(each)[:60]
)
def test_an_answer_that_dynamodb_would_not_give(
    invoke: Invoke, script: str, operation: str, status: int, body: str
) -> None:
    def reply(name: str) -> tuple[int, bytes]:
        return (status, body.encode()) if operation in (name, "any") else FINE(name)

    ended = invoke(script, reply=reply)
    check(ended, 1, " does not answer as DynamoDB does", "network")
    assert "error: http://127.0.0.1:" in ended.stderr


REJECTED = [
    ("--table-name Missing", 1, "(ResourceNotFoundException)", "check --table-name"),
    ("--table-name my!table", 1, "'my!table' at 'tableName' failed to satisfy", ""),
    ("--index-name Missing", 1, "does not have the specified index: Missing", ""),
    ("--filter-expression score>", 1, "Invalid FilterExpression: Syntax error", ""),
    ("--filter-expression #m=score", 1, "not defined; attribute name: #m", NAMES),
    ("--filter-expression score=:n", 1, "not defined; attribute value: :n", VALUES),
    ("--projection-expression name", 1, "reserved keyword: name", NAMES),
    (f'{VALUES} {{":n":"1"}}', 2, "Values.:n, value: 1", VALUES),
    (f'{VALUES} {{":n":{{"N":1}}}}', 2, "Values.:n.N, value: 1", VALUES),
]


@pytest.mark.parametrize("script", ["sequential_scan", "compare"])
@pytest.mark.parametrize(("flags", "status", "error", "hint"), REJECTED)
def test_what_a_real_engine_rejects(
    invoke: Invoke, real: Engine, *, script: str, flags: str, status: int, error: str, hint: str
) -> None:
    where = ("--endpoint-url", real.endpoint_url, "--table-name", real.table)
    check(invoke(script, *where, *flags.split()), status, error, hint)


def test_a_string_may_be_called_as_a_type_is() -> None:
    for text in ("B", "BS"):
        value = {":b": {"S": text}, text: {"S": "b"}}
        assert json_value(json.dumps(value)) == value
