"""Wrong usage and refusals: the exact status, one line that says what is wrong, no traceback."""

from __future__ import annotations

import argparse
import base64
import functools
import importlib
import json
import os
import re
import signal
import string
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from engines import create_table, free_port
from hypothesis import example, given
from hypothesis import strategies as st
from local_dynamodb import HIDDEN, settings_for_aws
from running import BUNDLE, environment, run

import common
from common import json_value, number_above_0
from parallel_scan import share

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

# --- Running a script, and what a failure looks like


class Ended(NamedTuple):
    """How a script ended."""

    status: int
    out: str
    err: str


Invoke = Callable[..., Ended]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Invoke]:
    """Calls a script in this process, where starting costs nothing and no retry waits."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
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


def check_no_dynamodb(ended: Ended, endpoint_url: str) -> None:
    check(ended, 1, f"error: {endpoint_url} does not answer as DynamoDB does", "endpoint")


# --- Flags that are wrong in themselves

EVERYWHERE = [
    ("--page-size 0", "argument --page-size: invalid number_above_0 value: '0'"),
    ("--page-size -1", "--page-size: invalid"),
    ("--page-size 1.5", "--page-size: invalid"),
    (f"--page-size {'1' * 5000}", "--page-size: invalid"),
    ("--page-size", "--page-size: expected one argument"),
    ("--max-rcu 0", "argument --max-rcu: invalid number_above_0 value: '0'"),
    ("--max-rcu=-1", "--max-rcu: invalid"),
    ("--max-rcu 2.5", "--max-rcu: invalid"),
    ("--max-rcu nan", "--max-rcu: invalid"),
    ("--max-rcu inf", "--max-rcu: invalid"),
    ("--output xml", "--output: invalid choice: 'xml'"),
    ("--select SPECIFIC_ATTRIBUTES", "--select: invalid choice"),
    ("--consistent-read=yes", "--consistent-read: ignored explicit argument"),
    ("--expression-attribute-names {", "argument --expression-attribute-names: invalid"),
    ("--expression-attribute-values :min=100", "argument --expression-attribute-values: invalid"),
    ("--table NAME", "unrecognized arguments: --table NAME"),
    ("GameLeaderboard", "unrecognized arguments: GameLeaderboard"),
    ("--segment 0", "unrecognized arguments"),
]
ONE_SCRIPT = [
    ("sequential_scan", "--total-segments 4", "unrecognized arguments: --total-segments"),
    ("sequential_scan", "--workers 4", "unrecognized arguments: --workers"),
    ("sequential_scan", "--save", "--save: expected one argument"),
    ("parallel_scan", "--total-segments 0", "argument --total-segments: invalid"),
    ("parallel_scan", "--total-segments x", "argument --total-segments: invalid"),
    ("parallel_scan", "--total-segments 2 4", "unrecognized arguments: 4"),
    ("parallel_scan", "--segments 4-4", "--segments: of 4 the last is 3"),
    ("parallel_scan", "--segments 0-4", "--segments: of 4 the last is 3"),
    ("parallel_scan", "--total-segments 1 --segments 1-1", "--segments: of 1 the last is 0"),
    ("parallel_scan", "--segments 3-1", "argument --segments: '3-1' is not A-B"),
    ("parallel_scan", "--segments 1", "argument --segments: '1' is not A-B"),
    ("parallel_scan", "--segments=", "argument --segments: '' is not A-B"),
    ("parallel_scan", "--segments 0-3-4", "argument --segments: '0-3-4' is not A-B"),
    ("parallel_scan", "--workers 0", "argument --workers: invalid"),
    ("parallel_scan", "--executor process", "unrecognized arguments: --executor"),
    ("parallel_scan", "--runs 3", "unrecognized arguments: --runs"),
    ("compare", "--runs 0", "argument --runs: invalid"),
    ("compare", "--workers x", "argument --workers: invalid"),
    ("compare", "--total-segments", "--total-segments: expected at least one argument"),
    ("compare", "--total-segments 4 0", "argument --total-segments: invalid"),
    ("compare", "--total-segments 2,4,0", "argument --total-segments: invalid"),
    ("compare", "--total-segments 2,,4", "argument --total-segments: invalid"),
    ("compare", "--save items", "unrecognized arguments: --save"),
    ("compare", "--segments 0-1", "unrecognized arguments: --segments"),
]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("flags", "error"), EVERYWHERE)
def test_wrong_flags(invoke: Invoke, script: str, flags: str, error: str) -> None:
    check(invoke(script, *flags.split()), 2, error)


@pytest.mark.parametrize(("script", "flags", "error"), ONE_SCRIPT)
def test_wrong_flags_of_one_script(invoke: Invoke, script: str, flags: str, error: str) -> None:
    check(invoke(script, *flags.split()), 2, error)


@pytest.mark.parametrize("flag", ["--expression-attribute-names", "--expression-attribute-values"])
@pytest.mark.parametrize("text", ["", "{'#a': 'b'}", '{"#a": {"B": "not base64!"}}'])
def test_what_is_no_json_is_wrong_usage(invoke: Invoke, flag: str, text: str) -> None:
    check(invoke("sequential_scan", flag, text), 2, f"argument {flag}: invalid")


@pytest.mark.parametrize("text", ["[]", "100", '"x"'])
def test_json_that_is_no_object_is_wrong_usage(invoke: Invoke, text: str) -> None:
    with answering(answers(EMPTY_PAGE)) as endpoint_url:
        ended = invoke(
            "sequential_scan", "--endpoint-url", endpoint_url, "--expression-attribute-names", text
        )
    check(ended, 2, "ExpressionAttributeNames")


def test_items_that_are_not_sent_cannot_be_saved(invoke: Invoke, tmp_path: Path) -> None:
    file = tmp_path / "items"
    ended = invoke("parallel_scan", "--select", "COUNT", "--save", str(file))
    check(ended, 2, "--save needs the items, and --select COUNT sends none")
    assert not file.exists()


# --- Where the scripts are pointed to


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("flags", "status", "error", "hint"),
    [
        ("--endpoint-url localhost:8000", 2, "Invalid endpoint: localhost:8000", "http://host"),
        ("--endpoint-url http://", 2, "Invalid endpoint", "http://host:port"),
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


@pytest.mark.parametrize(
    ("missing", "error", "hint"),
    [
        ("AWS_ENDPOINT_URL_DYNAMODB AWS_REGION AWS_DEFAULT_REGION",
         "You must specify a region", "python tests/local_dynamodb.py compare.py"),
        ("AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY",
         "Unable to locate credentials", "python tests/local_dynamodb.py compare.py"),
        ("AWS_SECRET_ACCESS_KEY", "Partial credentials", "complete the AWS_ variables"),
    ],
)  # fmt: skip
def test_missing_settings(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, missing: str, error: str, hint: str
) -> None:
    for name in missing.split():
        monkeypatch.delenv(name)
    check(invoke("sequential_scan"), 1, error, hint)


def test_an_invalid_setting_is_called_by_its_name(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULTS_MODE", "nonsense")
    check(invoke("sequential_scan"), 1, "invalid defaults mode: nonsense")


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_RETRY_MODE", "nonsense"), ("AWS_MAX_ATTEMPTS", "x")]
)
def test_the_scripts_own_retries_need_no_setting(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with answering(answers(EMPTY_PAGE)) as endpoint_url:
        ended = invoke("sequential_scan", "--endpoint-url", endpoint_url)
    assert ended.status == 0
    assert ended.err == ""


# --- Files and streams


@pytest.mark.parametrize("name", ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"])
def test_a_broken_configuration_file_is_named(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, __file__)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    check(invoke("sequential_scan"), 1, f"Unable to parse config file: {__file__}")


def test_a_file_of_credentials_that_is_not_there_is_named(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(file))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::000000000000:role/lab")
    check(invoke("sequential_scan"), 1, f"No such file or directory: '{file}'")


def test_certificates_that_are_not_there_are_not_the_networks_fault(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with answering(answers(EMPTY_PAGE)) as endpoint_url:
        https_url = endpoint_url.replace("http:", "https:")
        ended = invoke("sequential_scan", "--endpoint-url", https_url)
    check(ended, 1, f"SSL validation failed for {https_url}/ [Errno 2] No such file", "AWS_CA_BUNDLE")


@pytest.mark.parametrize("script", ["sequential_scan", "parallel_scan"])
def test_a_directory_to_save_in_that_is_not_there_is_named(
    invoke: Invoke, script: str, tmp_path: Path
) -> None:
    file = tmp_path / "missing" / "items"
    check(invoke(script, "--save", str(file)), 1, f"No such file or directory: '{file}")


def redirected(script: str, redirection: str) -> Ended:
    """Run a script as a shell does, with such a redirection, on an empty table."""
    with answering(answers(EMPTY_PAGE)) as endpoint_url:
        done = subprocess.run(
            ["sh", "-c", f'exec "$0" "$1" {redirection}', sys.executable, f"{script}.py"],
            cwd=BUNDLE,
            env=environment(endpoint_url),
            capture_output=True,
            text=True,
            check=False,
        )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_full_standard_output_is_named(script: str) -> None:
    check(redirected(script, ">/dev/full"), 1, "No space left on device: '<stdout>'")


@pytest.mark.parametrize("script", ["sequential_scan", "compare"])
def test_a_closed_standard_output_is_named(script: str) -> None:
    check(redirected(script, ">&-"), 1, "standard output or standard error is closed")


def test_a_closed_standard_error_ends_a_script_before_it_reads() -> None:
    ended = redirected("compare", "2>&-")
    assert ended == Ended(1, "", "")


def test_a_timeline_prints_in_ascii() -> None:
    with answering(answers(EMPTY_PAGE)) as endpoint_url:
        ended = run(endpoint_url, "parallel_scan.py", PYTHONIOENCODING="ascii")
    assert ended.returncode == 0
    assert ended.stderr == ""
    assert re.search(r"^segment 3 \| *\?+", ended.stdout, re.MULTILINE)
    assert ended.stdout.isascii()


def test_a_signal_that_nohup_ignores_stays_ignored(invoke: Invoke) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with answering(answers(EMPTY_PAGE)) as endpoint_url:
        invoke("sequential_scan", "--endpoint-url", endpoint_url)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is common.interrupt
    assert signal.getsignal(signal.SIGINT) is common.interrupt


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_with_130_and_the_next_ones_wait(invoke: Invoke, number: int) -> None:
    def reply(operation: str) -> tuple[int, bytes]:
        os.kill(os.getpid(), number)
        return EMPTY_PAGE

    with answering(answers(EMPTY_PAGE)) as well, answering(reply) as endpoint_url:
        invoke("sequential_scan", "--endpoint-url", well)
        ended = invoke("sequential_scan", "--endpoint-url", endpoint_url)
    assert ended == Ended(130, "", "")
    assert {signal.getsignal(each) for each in SIGNALS} == {signal.SIG_IGN}


# --- What DynamoDB says no to

DENIED = (
    "User: arn:aws:iam::000000000000:user/ada is not authorized to perform: dynamodb:Scan on "
    "resource: arn:aws:dynamodb:us-east-1:000000000000:table/GameLeaderboard"
)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        ("AccessDeniedException", DENIED, "README.md has the policy"),
        ("ExpiredTokenException", "The security token is expired", "renew credentials"),
        ("UnrecognizedClientException", "The security token is invalid", "renew credentials"),
        ("InvalidSignatureException", "Signature expired: 20250101T0000Z", "check the clock"),
        ("SomethingNewException", "In words\nof two lines", ""),
    ],
)
def test_refusals(invoke: Invoke, script: str, code: str, message: str, hint: str) -> None:
    with answering(answers(refusal(code, message))) as endpoint_url:
        ended = invoke(script, "--endpoint-url", endpoint_url)
    said = message.replace("\n", " ")
    check(ended, 1, f"error: An error occurred ({code}) when calling the Scan operation: {said}", hint)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_refused_description_matters_only_to_the_comparison(invoke: Invoke, script: str) -> None:
    denied = refusal("AccessDeniedException", "dynamodb:DescribeTable")
    with answering(lambda operation: EMPTY_PAGE if operation == "Scan" else denied) as endpoint_url:
        ended = invoke(script, "--endpoint-url", endpoint_url)
    if script == "compare":
        check(ended, 1, "(AccessDeniedException) when calling the DescribeTable operation", "policy")
    else:
        assert ended.status == 0
        assert ended.err == ""


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("status", ["CREATING", "DELETING"])
def test_a_table_that_is_not_there_yet_or_no_longer(
    invoke: Invoke, script: str, status: str
) -> None:
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
    described = answers(EMPTY_PAGE)
    with answering(lambda name: next(scans) if name == "Scan" else described(name)) as endpoint_url:
        ended = invoke("sequential_scan", "--endpoint-url", endpoint_url, "--output", "json")
    metrics = json.loads(ended.out)
    assert ended.status == 0
    assert metrics["throttled_requests"] == 2
    assert metrics["retried_requests"] == 0
    assert metrics["pages"] == 1


# --- What is not DynamoDB

DEEP = "[" * 100_000
WRONG_PAGES = {
    "an empty body": "",
    "an HTML page": "<html>Welcome</html>",
    "no UTF-8": b"\xff".decode("latin-1"),
    "a list": "[]",
    "null": "null",
    "nothing": "{}",
    "no Count": '{"Items": [], "ScannedCount": 0}',
    "Count a string": '{"Items": [], "Count": "0", "ScannedCount": 0}',
    "Count null": '{"Items": [], "Count": null, "ScannedCount": 0}',
    "no ScannedCount": '{"Items": [], "Count": 0}',
    "Items null": '{"Items": null, "Count": 1, "ScannedCount": 1}',
    "Items null, none counted": '{"Items": null, "Count": 0, "ScannedCount": 0}',
    "no Items": '{"Count": 0, "ScannedCount": 0}',
    "an item no object": '{"Items": [1], "Count": 1, "ScannedCount": 1}',
    "a later item no object": '{"Items": [{}, 1], "Count": 2, "ScannedCount": 2}',
    "fewer items than Count": '{"Items": [{}], "Count": 2, "ScannedCount": 2}',
    "an answer cut short": '{"Count": 1, "ScannedCount": 1, "Items": [{}',
    "an item too deep": f'{{"Count": 1, "ScannedCount": 1, "Items": [{{"a": {DEEP}',
    "too deep": f'{{"Items": [], "Count": 0, "ScannedCount": 0, "More": {DEEP}',
}
EXTRA = {
    "CapacityUnits a string": '"ConsumedCapacity": {"CapacityUnits": "0.5"}',
    "ConsumedCapacity a list": '"ConsumedCapacity": []',
    "LastEvaluatedKey a list": '"LastEvaluatedKey": [1]',
    "LastEvaluatedKey a string": '"LastEvaluatedKey": "a"',
    "a key no attribute": '"LastEvaluatedKey": {"a": "b"}',
    "a binary key not base64": '"LastEvaluatedKey": {"a": {"B": "!"}}',
    "a key too deep": f'"LastEvaluatedKey": {DEEP}',
}
WRONG_PAGES.update(
    {name: f'{{"Items": [], "Count": 0, "ScannedCount": 0, {more}}}' for name, more in EXTRA.items()}
)
WRONG_TABLES = {
    "an empty body": "",
    "an HTML page": "<html>Welcome</html>",
    "a list": "[]",
    "null": "null",
    "no Table": "{}",
    "Table null": '{"Table": null}',
    "Table a list": '{"Table": []}',
    "ItemCount a string": '{"Table": {"ItemCount": "many"}}',
    "ItemCount a list": '{"Table": {"ItemCount": []}}',
    "ProvisionedThroughput a list": '{"Table": {"ProvisionedThroughput": []}}',
    "BillingModeSummary a list": '{"Table": {"BillingModeSummary": []}}',
    "too deep": '{"Table": ' + DEEP,
}


@pytest.mark.parametrize("wrong", WRONG_PAGES)
def test_a_page_that_dynamodb_would_not_send(invoke: Invoke, wrong: str) -> None:
    with answering(answers((200, WRONG_PAGES[wrong].encode("latin-1")))) as endpoint_url:
        ended = invoke("sequential_scan", "--endpoint-url", endpoint_url)
    check_no_dynamodb(ended, endpoint_url)


@pytest.mark.parametrize("script", ["parallel_scan", "compare"])
def test_a_wrong_page_among_several_workers(invoke: Invoke, script: str) -> None:
    with answering(answers((200, WRONG_PAGES["no Count"].encode()))) as endpoint_url:
        ended = invoke(script, "--endpoint-url", endpoint_url)
    check_no_dynamodb(ended, endpoint_url)


@pytest.mark.parametrize("wrong", WRONG_TABLES)
def test_a_table_that_dynamodb_would_not_describe(invoke: Invoke, wrong: str) -> None:
    described = (200, WRONG_TABLES[wrong].encode())
    with answering(lambda name: EMPTY_PAGE if name == "Scan" else described) as endpoint_url:
        ended = invoke("compare", "--endpoint-url", endpoint_url)
    check_no_dynamodb(ended, endpoint_url)


@pytest.mark.parametrize("script", ["sequential_scan", "parallel_scan"])
@pytest.mark.parametrize("wrong", ["a list", "Table a list", "too deep"])
def test_a_wrong_description_where_a_connection_is_opened(
    invoke: Invoke, script: str, wrong: str
) -> None:
    described = (200, WRONG_TABLES[wrong].encode())
    with answering(lambda name: EMPTY_PAGE if name == "Scan" else described) as endpoint_url:
        ended = invoke(script, "--endpoint-url", endpoint_url)
    check_no_dynamodb(ended, endpoint_url)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("status", "body"),
    [(200, "<html>"), (201, "<html>"), (204, ""), (400, "[]"), (400, "null"), (400, '"no"')],
)
def test_an_endpoint_that_is_something_else(
    invoke: Invoke, script: str, status: int, body: str
) -> None:
    with answering(lambda _: (status, body.encode())) as endpoint_url:
        ended = invoke(script, "--endpoint-url", endpoint_url)
    check_no_dynamodb(ended, endpoint_url)


# --- What a real engine says no to


@pytest.fixture(scope="module")
def engine_url(engine_client: DynamoDBClient) -> str:
    """A real engine's endpoint, with the lab's table."""
    create_table(engine_client, "GameLeaderboard")
    return engine_client.meta.endpoint_url


NAMES = """'{"#mode": "game_mode"}'"""
VALUES = "use --expression-attribute-values '{"


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("flags", "error", "hint"),
    [
        ("--table-name Missing", "(ResourceNotFoundException)", "check --table-name"),
        ("--table-name my!table", "'my!table' at 'tableName' failed to satisfy", ""),
        ("--index-name Missing", "does not have the specified index: Missing", ""),
        ("--filter-expression score>", "Invalid FilterExpression: Syntax error", ""),
        ("--filter-expression score>:min", "not defined; attribute value: :min", VALUES),
    ],
)
def test_what_a_real_engine_rejects(
    invoke: Invoke, engine_url: str, *, script: str, flags: str, error: str, hint: str
) -> None:
    check(invoke(script, "--endpoint-url", engine_url, *flags.split()), 1, error, hint)


@pytest.mark.parametrize(
    ("flags", "error", "hint"),
    [
        ("--table-name ab", "length greater than or equal to 3", ""),
        ("--filter-expression=", "Invalid FilterExpression: The expression can not be empty;", ""),
        ("--filter-expression #m=score", "not defined; attribute name: #m", NAMES),
        ("--projection-expression name", "reserved keyword: name", NAMES),
        ("--projection-expression a,,b", "Invalid ProjectionExpression: Syntax error", ""),
        ('--expression-attribute-names {"#a":"b"}', "specified when using expressions", ""),
    ],
)
def test_expressions_that_a_real_engine_rejects(
    invoke: Invoke, engine_url: str, flags: str, error: str, hint: str
) -> None:
    check(invoke("sequential_scan", "--endpoint-url", engine_url, *flags.split()), 1, error, hint)


@pytest.mark.parametrize(
    ("value", "status", "error"),
    [
        ('"1"', 2, "ExpressionAttributeValues.:min, value: 1"),
        ('{"N":1}', 2, "ExpressionAttributeValues.:min.N, value: 1"),
        ('{"Q":"1"}', 2, "must be one of: S, N, B"),
        ('{"N":"x"}', 1, "cannot be converted to a numeric value: x"),
    ],
)
def test_values_in_the_wrong_shape(
    invoke: Invoke, engine_url: str, value: str, status: int, error: str
) -> None:
    flags = ("--filter-expression", "score > :min", "--expression-attribute-values")
    ended = invoke("sequential_scan", "--endpoint-url", engine_url, *flags, f'{{":min": {value}}}')
    check(ended, status, error, VALUES)


# --- The argparse types, for any text


def value_of(parse: Callable[[str], Any], text: str) -> Any:
    """What an argparse type makes of a text; None if it refuses in a way that argparse knows."""
    try:
        return parse(text)
    except (argparse.ArgumentTypeError, ValueError) as error:
        assert str(error)
        return None


@given(st.text(string.digits + "+-.eE_ ", min_size=1) | st.integers().map(str) | st.text())
@example("0")
@example("1" * 5000)
def test_numbers_are_whole_and_above_0(text: str) -> None:
    value = value_of(number_above_0, text)
    assert value is None or (type(value) is int and value > 0 and value == int(text))


@given(st.integers(min_value=1))
def test_whole_numbers_above_0_are_taken(value: int) -> None:
    assert number_above_0(str(value)) == value


@given(st.from_regex(r"\d+-\d+") | st.text(string.digits + "-") | st.text())
@example("0-99999999999")
def test_shares_are_ranges_of_segments(text: str) -> None:
    value = value_of(share, text)
    assert value is None or [value[0], value[-1]] == [int(end) for end in text.split("-")]


@given(st.binary())
def test_binary_values_are_base64(value: bytes) -> None:
    text = base64.b64encode(value).decode()
    assert json_value(f'{{":b": {{"B": "{text}"}}}}') == {":b": {"B": value}}


def test_binary_sets_are_base64() -> None:
    assert json_value('{":s": {"BS": ["YQ==", "Yg=="]}}') == {":s": {"BS": [b"a", b"b"]}}


def test_an_attribute_named_b_is_no_binary_value() -> None:
    assert json_value('{":m": {"M": {"B": {"S": "YQ=="}}}}') == {":m": {"M": {"B": {"S": "YQ=="}}}}
