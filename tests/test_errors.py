"""What a user can do wrong, and what can be refused.

A failure is one line, `error: ...`, and at most one more, `hint: ...`. The exit status
is 1 if somebody refused, and 2 if the command was wrong.
"""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import termios
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from canned import COUNTS, EMPTY_PAGE, Canned, Reply, refusal
from conftest import Invoke, NewLab
from running import ROOT, Ended, assert_failed, environment, shell, start

SECRET = "hunter2"  # assert_failed() finds it in any message
NO_SERVER = f"http://me:{SECRET}@127.0.0.1:1"  # no server listens there
NOWHERE = SimpleNamespace(endpoint_url=NO_SERVER)
NETWORK = "check the network, --region and --endpoint-url"
NO_CREDENTIALS = "could not load credentials"
LOCAL_LAB = "python tests/local_dynamodb.py compare.py"
AWS_CLI = "aws sts get-caller-identity"
NAMES = "parallel_scan --expression-attribute-names"
VALUES = "parallel_scan --expression-attribute-values"


# --- Flags ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("sequential_scan --page-size 0", "--page-size: 0 is not from 1 to 1,000,000,"),
        ("sequential_scan --page-size 2.5", "--page-size: invalid whole number"),
        ("sequential_scan --select SOME", "--select: invalid choice: 'SOME'"),
        ("sequential_scan --output xml", "--output: invalid choice: 'xml'"),
        ("sequential_scan --table NAME", "unrecognized arguments: --table NAME"),
        ("parallel_scan --table NAME", "unrecognized arguments: --table NAME"),
        ("parallel_scan --total-segments 0", "0 is not from 1 to 1,000,000"),
        ("parallel_scan --workers 1001", "--workers: 1001 is not from 1 to 1,000"),
        ("parallel_scan --max-rcu 0", "--max-rcu: 0 is not from 1 to 1,000,000"),
        ("parallel_scan --segments 3-2", "--segments: 3-2 is not A-B"),
        ("parallel_scan --segments 0-4", "--total-segments 4, the last segment is 3"),
        ("parallel_scan --save=", "--save needs the name of a folder"),
        ("parallel_scan --save - --select COUNT", "--save needs the items"),
        (NAMES + " ''", "argument --expression-attribute-names:  is not JSON"),
        (NAMES + " []", "names: [] is not a JSON object"),
        (NAMES + """ '{"#n": 1}'""", "ExpressionAttributeNames.#n, value: 1"),
        (VALUES + """ '{":b": {"B": "YWJj!"}}'""", "--expression-attribute-values"),
        (VALUES + """ '{":b": {"BS": ["YWJj!"]}}'""", "expression-attribute-values"),
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
        "ftp://localhost",
        "'http://local host:8000'",
        f"me:{SECRET}@localhost:8000",
    ],
)
def test_wrong_endpoints_are_wrong_usage(invoke: Invoke, endpoint_url: str) -> None:
    ended = invoke(f"sequential_scan --endpoint-url {endpoint_url}")
    assert_failed(ended, 2, "", "an endpoint looks like http://localhost:8000")


def test_refused_connection_points_to_the_network(invoke: Invoke) -> None:
    error = 'Could not connect to the endpoint URL: "http://127.0.0.1:1/"'
    assert_failed(invoke("parallel_scan", at=NOWHERE), 1, error, NETWORK)


NO_KEYS = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
NO_REGION = {"AWS_REGION": None, "AWS_DEFAULT_REGION": None}
BAD_KEY = {"AWS_ACCESS_KEY_ID": f"{SECRET}\n"}
BAD_TOKEN = {"AWS_SESSION_TOKEN": f"{SECRET}\n"}
PROXY = {"http_proxy": NO_SERVER}  # no_proxy has 127.0.0.1, so that would not use it


@pytest.mark.parametrize(
    ("variables", "flags", "status", "error", "hint"),
    [
        ({}, "--region us_east!1", 2, "us_east!1", "a region looks like us-east-1"),
        ({}, "--profile nobody", 1, "(nobody) could not be found", "list-profiles"),
        (PROXY, "--endpoint-url http://192.0.2.1", 1, "connect to proxy", NETWORK),
        (NO_REGION, "", 1, "You must specify a region", LOCAL_LAB),
        (NO_KEYS, "", 1, "Unable to locate credentials", LOCAL_LAB),
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


def test_https_that_fails_is_one_error(invoke: Invoke, canned: Canned) -> None:
    # The server there understands HTTP only.
    https = canned.endpoint_url.replace("http:", "https:")
    ended = invoke(f"sequential_scan --endpoint-url {https}")
    assert_failed(ended, 1, f"SSL validation failed for {https}", "--endpoint-url")


@pytest.mark.parametrize("command", ["parallel_scan --max-rcu 50", "compare"])
def test_server_that_is_no_dynamodb_is_named(
    invoke: Invoke, canned: Canned, command: str
) -> None:
    canned.answer("<html>Welcome</html>", table='{"hello": "world"}')
    with_password = canned.endpoint_url.replace("//", f"//me:{SECRET}@")
    ended = invoke(f"{command} --endpoint-url {with_password}")
    error = f"{canned.endpoint_url} does not answer as DynamoDB does"
    assert_failed(ended, 1, error, NETWORK)


def test_error_page_of_a_web_server_points_to_the_network(
    invoke: Invoke, canned: Canned
) -> None:
    canned.answer(Reply("<html>\nSorry\n</html>", 404))
    ended = invoke("sequential_scan", at=canned)
    assert_failed(ended, 1, "(404) when calling the Scan operation: ", NETWORK)


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
        (f"/bin/sh -c 'echo I print no JSON, but {SECRET}'", "JSONDecodeError"),
        ("/bin/sh -c 'echo cannot reach the vault >&2; exit 1'", "reach the vault"),
        ("/no/such/program", "/no/such/program"),
    ],
)
def test_failing_credential_process_is_blamed(
    invoke: Invoke, config: Path, program: str, error: str
) -> None:
    config.write_text(f"[profile lab]\ncredential_process = {program}\n")
    ended = invoke("parallel_scan --profile lab", at=NOWHERE)
    assert_failed(ended, 1, NO_CREDENTIALS, AWS_CLI)
    assert error in ended.err


def test_credentials_that_fail_in_mid_scan_are_blamed(
    invoke: Invoke, new_lab: NewLab, config: Path
) -> None:
    # The program prints a file. boto3 runs it before each request, because the
    # credentials expire so soon.
    soon = datetime.now(timezone.utc) + timedelta(minutes=5)
    keys = {"AccessKeyId": "key", "SecretAccessKey": SECRET, "Version": 1}
    file = config.with_name("credentials.json")
    file.write_text(json.dumps({**keys, "Expiration": soon.isoformat()}))
    config.write_text(f"[profile lab]\ncredential_process = /bin/cat {file}\n")

    def lose_them_at_the_third_scan(number: int, params: Any) -> None:
        if number == 2:  # the first one is number 0
            file.unlink()

    lab = new_lab(100, script=lose_them_at_the_third_scan)
    flags = "--profile lab --page-size 5 --workers 1"
    ended = invoke(f"parallel_scan {flags}", at=lab)
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


def test_mfa_without_a_terminal_is_one_error(config: Path) -> None:
    config.write_text(MFA)
    ended = shell(
        "python parallel_scan.py --profile lab", NOWHERE, AWS_CONFIG_FILE=str(config)
    )
    assert_failed(ended, 1, "there is no terminal to enter an MFA code in")


def test_ctrl_c_at_the_mfa_prompt_keeps_echo(config: Path) -> None:
    """Echo would stay off, if a worker asked for the code."""
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


def test_closed_standard_error_costs_nothing(canned: Canned) -> None:
    ended = shell("python sequential_scan.py 2>&-", at=canned)
    assert ended == Ended(1, "", "")
    assert canned.requests == []


def test_reader_that_is_gone_ends_it_quietly(canned: Canned) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start("sequential_scan.py", canned, stdout=writer)
    os.close(writer)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (1, "")
