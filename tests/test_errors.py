"""What a user can do wrong, and what can be refused.

A failure is one line, `error: ...`, and at most one more, `hint: ...`. The exit status
is 1 if somebody refused, and 2 if the command was wrong.
"""

from __future__ import annotations

import json
import os
import pty
import select
import shlex
import subprocess
import sys
import termios
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import running
from canned import COUNTS, EMPTY_PAGE, Canned, Reply, refusal
from conftest import Invoke, NewLab
from running import ROOT, Ended, environment, shell, start

SECRET = "hunter2"
REFUSED = f"http://me:{SECRET}@127.0.0.1:1"  # no server listens there
NOWHERE = SimpleNamespace(endpoint_url=REFUSED)
NETWORK = "check the network, --region and --endpoint-url"
NO_CREDENTIALS = "could not load credentials"
LOCAL_LAB = "python tests/local_dynamodb.py compare.py"
AWS_CLI = "aws sts get-caller-identity"


def assert_failed(ended: Ended, status: int, error: str, hint: str = "") -> None:
    """Assert that a script failed with this error, and that it shows no secret."""
    running.assert_failed(ended, status, error, hint)
    assert SECRET not in ended.err


# --- Flags ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("sequential_scan --page-size 0", "--page-size: 0 is not from 1 to 1,000,000,"),
        ("sequential_scan --page-size 2.5", "--page-size: invalid whole number"),
        ("sequential_scan --select SOME", "--select: invalid choice: 'SOME'"),
        ("sequential_scan --output xml", "--output: invalid choice: 'xml'"),
        ("sequential_scan --table-name=", "TableName"),
        ("sequential_scan --table NAME", "unrecognized arguments: --table NAME"),
        ("parallel_scan --table NAME", "unrecognized arguments: --table NAME"),
        ("parallel_scan --total-segments 0", "0 is not from 1 to 1,000,000"),
        ("parallel_scan --total-segments 1000001", "1000001 is not from 1 to 1,000,0"),
        ("parallel_scan --workers 1001", "--workers: 1001 is not from 1 to 1,000"),
        ("parallel_scan --max-rcu 0", "--max-rcu: 0 is not from 1 to 1,000,000"),
        ("parallel_scan --segments 3-2", "--segments: 3-2 is not A-B"),
        ("parallel_scan --segments 0-4", "--total-segments 4, the last segment is 3"),
        ("parallel_scan --save=", "--save needs the name of a folder"),
        ("parallel_scan --save - --select COUNT", "--save needs the items"),
        ("compare --table NAME", "unrecognized arguments: --table NAME"),
        ("compare --runs 0", "--runs: 0 is not from 1 to 1,000"),
        ("compare --total-segments 2 0", "--total-segments: 0 is not from 1 to"),
    ],
)
def test_wrong_flags_send_no_request(
    invoke: Invoke, canned: Canned, command: str, error: str
) -> None:
    assert_failed(invoke(command, at=canned), 2, error)
    assert canned.requests == []


@pytest.mark.parametrize(
    ("flag", "text", "error"),
    [
        ("names", "", "argument --expression-attribute-names:  is not JSON"),
        ("names", "[]", "names: [] is not a JSON object"),
        ("names", '{"#n": 1}', "ExpressionAttributeNames.#n, value: 1"),
        ("values", '{":n": {"N": 1}}', "ExpressionAttributeValues.:n.N, value: 1"),
        ("values", '{":b": {"B": "YWJj!"}}', "argument --expression-attribute-values"),
        ("values", '{":b": {"BS": ["YWJ"]}}', "argument --expression-attribute-values"),
    ],
)
def test_wrong_json_sends_no_request(
    invoke: Invoke, canned: Canned, flag: str, text: str, error: str
) -> None:
    command = f"parallel_scan --expression-attribute-{flag} '{text}'"
    assert_failed(invoke(command, at=canned), 2, error)
    assert canned.requests == []


def test_flags_arrive_as_they_were_given(invoke: Invoke, canned: Canned) -> None:
    values = {
        ":binary": {"B": "AP8="},  # in base64, as DynamoDB's protocol has it, too
        ":set": {"BS": ["AP8=", ""]},
        ":called_B": {"M": {"B": {"S": "a name, no type"}, "BS": {"N": "1"}}},
    }
    invoke(
        "sequential_scan --table-name Table --index-name Index --consistent-read"
        " --page-size 7 --select ALL_ATTRIBUTES"
        " --filter-expression 'a = :b' --projection-expression a,#c"
        """ --expression-attribute-names '{"#c": "c"}'"""
        f" --expression-attribute-values '{json.dumps(values)}'",
        at=canned,
    )
    assert canned.requests == [
        {
            "TableName": "Table",
            "IndexName": "Index",
            "ConsistentRead": True,
            "Limit": 7,
            "Select": "ALL_ATTRIBUTES",
            "FilterExpression": "a = :b",
            "ProjectionExpression": "a,#c",
            "ExpressionAttributeNames": {"#c": "c"},
            "ExpressionAttributeValues": values,
            "ReturnConsumedCapacity": "TOTAL",
        }
    ]


# --- Endpoint and region --------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint_url",
    [
        "http://127.0.0.1:99999",
        "http://local host:8000",
        "localhost:8000",
        f"me:{SECRET}@localhost:8000",
        "http://",
    ],
)
def test_wrong_endpoints_are_wrong_usage(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, endpoint_url: str
) -> None:
    by_flag = invoke(f"sequential_scan --endpoint-url '{endpoint_url}'")
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", endpoint_url)
    by_variable = invoke("compare")
    for ended in (by_flag, by_variable):
        assert_failed(ended, 2, "", "an endpoint looks like http://localhost:8000")


@pytest.mark.parametrize("script", ["sequential_scan", "parallel_scan", "compare"])
def test_refused_connection_points_to_the_network(invoke: Invoke, script: str) -> None:
    error = 'Could not connect to the endpoint URL: "http://127.0.0.1:1/"'
    assert_failed(invoke(script, at=NOWHERE), 1, error, NETWORK)


NO_KEYS = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
NO_REGION = {"AWS_REGION": None, "AWS_DEFAULT_REGION": None}
NO_SECRET = {"AWS_SECRET_ACCESS_KEY": None}
BAD_KEY = {"AWS_ACCESS_KEY_ID": f"{SECRET}\n"}
BAD_TOKEN = {"AWS_SESSION_TOKEN": f"{SECRET}\n"}
PROXY = {"http_proxy": REFUSED}  # goes before HTTP_PROXY


@pytest.mark.parametrize(
    ("variables", "flags", "status", "error", "hint"),
    [
        ({}, "--region us_east!1", 2, "us_east!1", "a region looks like us-east-1"),
        ({}, "--profile nobody", 1, "(nobody) could not be found", "list-profiles"),
        (PROXY, "--endpoint-url http://192.0.2.1", 1, "connect to proxy", NETWORK),
        (NO_REGION, "", 1, "You must specify a region", LOCAL_LAB),
        (NO_KEYS, "", 1, "Unable to locate credentials", LOCAL_LAB),
        (NO_SECRET, "", 1, "missing: AWS_SECRET_ACCESS_KEY", AWS_CLI),
        (BAD_KEY, "", 1, "a key or a token contains a line break", ""),
        (BAD_TOKEN, "", 1, "a key or a token contains a line break", ""),
    ],
)
def test_settings_that_cannot_work_are_named(
    invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str | None],
    flags: str,
    status: int,
    error: str,
    hint: str,
) -> None:
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    assert_failed(invoke(f"parallel_scan {flags}"), status, error, hint)


def test_https_that_fails_is_one_error(
    invoke: Invoke, canned: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server there understands HTTP only.
    https = canned.endpoint_url.replace("http:", "https:")
    ended = invoke(f"sequential_scan --endpoint-url {https}")
    assert_failed(ended, 1, f"SSL validation failed for {https}", "--endpoint-url")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/file")
    ended = invoke(f"sequential_scan --endpoint-url {https}")
    assert_failed(ended, 1, "No such file or directory", "AWS_CA_BUNDLE")


@pytest.mark.parametrize(
    "body",
    [
        "<html>Welcome</html>",
        "null",
        '{"hello": "world"}',
        f'{{"Items": [], {COUNTS}, "ConsumedCapacity": {{"CapacityUnits": 0.5}}}}',
        f'{{"Items": [{{}}], {COUNTS}, "ConsumedCapacity": {{"CapacityUnits": -1}}}}',
    ],
)
def test_server_that_is_no_dynamodb_is_named(
    invoke: Invoke, canned: Canned, body: str
) -> None:
    canned.answer(body, table=body)
    error = f"{canned.endpoint_url} does not answer as DynamoDB does"
    with_password = canned.endpoint_url.replace("//", f"//me:{SECRET}@")
    for command in ("parallel_scan", "parallel_scan --max-rcu 50", "compare"):
        ended = invoke(f"{command} --endpoint-url {with_password}")
        assert_failed(ended, 1, error, NETWORK)


@pytest.mark.parametrize("status", [404, 503])
def test_error_page_of_a_web_server_points_to_the_network(
    invoke: Invoke, canned: Canned, status: int
) -> None:
    canned.answer(Reply("<html>\nSorry\n</html>", status))
    ended = invoke("sequential_scan", at=canned)
    assert_failed(ended, 1, f"({status}) when calling the Scan operation: ", NETWORK)


def test_same_key_twice_is_an_error(invoke: Invoke, canned: Canned) -> None:
    key = '"LastEvaluatedKey": {"id": {"S": "a"}}'
    canned.answer(f'{{"Items": [{{}}], {COUNTS}, {key}}}')
    ended = invoke("sequential_scan", at=canned)
    assert_failed(ended, 1, "the same LastEvaluatedKey twice")
    assert len(canned.requests) == 2


# --- Credentials ----------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An AWS config file of the test's own."""
    path = tmp_path / "config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    return path


def test_damaged_config_file_is_named(invoke: Invoke, config: Path) -> None:
    config.write_text("this is no config file")
    ended = invoke("sequential_scan", at=NOWHERE)
    assert_failed(ended, 1, f"Unable to parse config file: {config}")


@pytest.mark.parametrize(
    ("program", "error"),
    [
        (f"echo I print no JSON, but {SECRET}", NO_CREDENTIALS),
        ("echo '[]'", NO_CREDENTIALS),
        ("echo cannot reach the vault >&2; exit 1", "cannot reach the vault"),
        ("exec /no/such/program", "/no/such/program"),
    ],
)
def test_failing_credential_process_is_blamed(
    invoke: Invoke, config: Path, program: str, error: str
) -> None:
    command = f"/bin/sh -c {shlex.quote(program)}"
    config.write_text(f"[profile lab]\ncredential_process = {command}\n")
    ended = invoke("parallel_scan --profile lab", at=NOWHERE)
    assert_failed(ended, 1, NO_CREDENTIALS, AWS_CLI)
    assert error in ended.err


@pytest.mark.parametrize("command", ["sequential_scan", "parallel_scan --workers 1"])
def test_credentials_that_fail_in_mid_scan_are_blamed(
    invoke: Invoke, new_lab: NewLab, config: Path, command: str
) -> None:
    # boto3 renews credentials that expire so soon before each request.
    soon = datetime.now(timezone.utc) + timedelta(minutes=5)
    keys = {"AccessKeyId": "key", "SecretAccessKey": SECRET, "Version": 1}
    answer = config.with_name("credentials.json")
    answer.write_text(json.dumps({**keys, "Expiration": soon.isoformat()}))
    config.write_text(f"[profile lab]\ncredential_process = /bin/cat {answer}\n")

    def lose_them_at_the_third_scan(number: int, params: Any) -> None:
        if number == 2:
            answer.unlink()

    lab = new_lab(100, script=lose_them_at_the_third_scan)
    ended = invoke(f"{command} --profile lab --page-size 5", at=lab)
    assert_failed(ended, 1, NO_CREDENTIALS, AWS_CLI)
    assert len(lab.requests) == 3


MFA = """
[profile lab]
role_arn = arn:aws:iam::123456789012:role/student
mfa_serial = arn:aws:iam::123456789012:mfa/student
source_profile = keys
[profile keys]
aws_access_key_id = key
aws_secret_access_key = hunter2
"""


@pytest.mark.parametrize("redirection", ["<&-", "</dev/null"])
def test_mfa_without_a_terminal_is_one_error(config: Path, redirection: str) -> None:
    config.write_text(MFA)
    command = f"python parallel_scan.py --profile lab {redirection}"
    ended = shell(command, at=NOWHERE, AWS_CONFIG_FILE=str(config))
    assert_failed(ended, 1, "there is no terminal to enter an MFA code in")


def test_ctrl_c_at_the_mfa_prompt_keeps_echo(config: Path) -> None:
    config.write_text(MFA)
    keyboard, terminal = pty.openpty()
    # The shell has no terminal yet. So the one that it opens becomes its own.
    on_terminal = f'exec "$@" <>{os.ttyname(terminal)} >&0 2>&0'
    script = [sys.executable, f"{ROOT}/parallel_scan.py", "--profile", "lab"]
    process = subprocess.Popen(
        ["/bin/sh", "-c", on_terminal, "sh", *script],
        env={**environment(NOWHERE), "AWS_CONFIG_FILE": str(config)},
        start_new_session=True,
    )
    try:
        screen = b""
        while b"MFA code" not in screen:
            readable, _, _ = select.select([keyboard], [], [], 60)
            assert readable, screen
            screen += os.read(keyboard, 1000)
        assert not termios.tcgetattr(terminal)[3] & termios.ECHO
        os.write(keyboard, b"\x03")
        assert process.wait(timeout=60) == 130
        assert termios.tcgetattr(terminal)[3] & termios.ECHO
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)
        os.close(terminal)


# --- What DynamoDB refuses ------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        ("AccessDeniedException", "not authorized to perform Scan", "README.md"),
        ("ExpiredTokenException", "The token is expired", "renew your credentials"),
        ("InvalidSignatureException", "Signature expired: 20250101", "clock"),
        ("UnrecognizedClientException", "The token is invalid", "your credentials"),
        ("ValidationException", "Syntax error; token: Token", "check the flags"),
        ("SomethingNewException", "The token has expired", ""),
    ],
)
def test_hints_go_by_the_name_of_the_error(
    invoke: Invoke, canned: Canned, code: str, message: str, hint: str
) -> None:
    canned.answer(refusal(code, message))
    error = f"An error occurred ({code}) when calling the Scan operation: {message}"
    assert_failed(invoke("parallel_scan", at=canned), 1, error, hint)


def test_long_messages_are_cut(invoke: Invoke, canned: Canned) -> None:
    canned.answer(refusal("SomethingNewException", "and\non " * 1000))
    ended = invoke("parallel_scan", at=canned)
    assert_failed(ended, 1, "and on and on and on")
    assert len(ended.err) < 600


def test_only_the_comparison_describes_the_table(
    invoke: Invoke, canned: Canned
) -> None:
    canned.answer(EMPTY_PAGE, table=refusal("AccessDeniedException", "not authorized"))
    assert invoke("parallel_scan", at=canned).status == 0
    ended = invoke("compare", at=canned)
    assert_failed(ended, 1, "when calling the DescribeTable operation", "README.md")


@pytest.mark.parametrize(
    ("flags", "error", "hint"),
    [
        ("--table-name Missing", "(ResourceNotFoundException)", "check --table-name"),
        ("--table-name my!table", "(ValidationException)", "check the flags"),
        ("--index-name Missing", "specified index: Missing", "check the flags"),
        ("--filter-expression score>", "Syntax error", "check the flags"),
        ("--projection-expression name", "keyword: name", "--expression-attribute-na"),
    ],
)
def test_what_a_real_engine_refuses_is_shown(
    invoke: Invoke, real: Any, flags: str, error: str, hint: str
) -> None:
    assert_failed(invoke(f"parallel_scan {flags}", at=real), 1, error, hint)


# --- This machine ---------------------------------------------------------------------


def test_too_many_threads_point_to_workers(
    invoke: Invoke, canned: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        ended = invoke("parallel_scan", at=canned)
    assert_failed(ended, 1, "can't start new thread", "--workers")


def test_full_standard_output_is_one_error(canned: Canned) -> None:
    ended = shell("python sequential_scan.py >/dev/full", at=canned)
    assert_failed(ended, 1, "No space left on device")


def test_closed_standard_output_costs_nothing(canned: Canned) -> None:
    ended = shell("python parallel_scan.py >&-", at=canned)
    assert_failed(ended, 1, "standard output or standard error is closed")
    assert canned.requests == []


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_full_or_closed_standard_error_has_status_1(
    canned: Canned, redirection: str
) -> None:
    ended = shell(f"python compare.py {redirection}", at=canned)
    assert ended == Ended(1, "", "")


def test_reader_that_is_gone_ends_it_quietly(canned: Canned) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("sequential_scan.py", canned, stdout=writer)
    os.close(writer)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, "")
