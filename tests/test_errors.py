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
from typing import Any

import pytest
from canned import EMPTY_PAGE, Canned, Reply, refusal
from conftest import Invoke
from engines import Engine
from items import instant
from local_dynamodb import lab_environment, serve
from running import BUNDLE, Ended

SECRET = "hunter2"
REFUSED = f"http://me:{SECRET}@127.0.0.1:1"  # no server listens there
NETWORK = "check the network, --region and --endpoint-url"
NO_CREDENTIALS = "could not load credentials"
AWS_CLI = "aws sts get-caller-identity"


def assert_failed(ended: Ended, status: int, error: str, hint: str = "") -> None:
    """Assert that a script failed with this error, and with this hint or none."""
    before, _, message = ended.stderr.partition("error: ")
    error_line, _, hint_line = message.rstrip("\n").partition("\n")
    assert (ended.returncode, ended.stdout) == (status, ""), ended.stderr
    assert "Traceback" not in before
    assert SECRET not in ended.stderr
    assert error in error_line
    assert hint in hint_line
    assert hint_line == "" or (hint and hint_line.startswith("hint: "))
    assert "\n" not in hint_line


def in_shell(redirection: str, endpoint_url: str, *command: str, **env: str) -> Ended:
    """Run a script as a shell does, with such a redirection, and with no terminal."""
    script, *flags = command
    run_it = [sys.executable, f"{BUNDLE}/{script}.py", *flags]
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *run_it],
        env={**lab_environment(endpoint_url), "PYTHONUNBUFFERED": "", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        start_new_session=True,
        timeout=120,
        check=False,
    )


# --- Flags ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("sequential_scan --page-size 0", "--page-size: 0 is not from 1 to 1,000,000,"),
        ("sequential_scan --page-size 1000000001", "--page-size: 1000000001 is not"),
        ("sequential_scan --page-size ten", "--page-size: invalid whole number"),
        ("sequential_scan --page-size 2.5", "--page-size: invalid whole number"),
        ("sequential_scan --select SOME", "--select: invalid choice: 'SOME'"),
        ("sequential_scan --table-name=", "TableName"),
        ("sequential_scan --table NAME", "unrecognized arguments: --table NAME"),
        ("parallel_scan --table NAME", "unrecognized arguments: --table NAME"),
        ("parallel_scan --total-segments 0", "0 is not from 1 to 1,000,000"),
        ("parallel_scan --total-segments 1000001", "1000001 is not from 1 to 1,000,0"),
        ("parallel_scan --workers 0", "--workers: 0 is not from 1 to 1,000"),
        ("parallel_scan --workers 1001", "--workers: 1001 is not from 1 to 1,000"),
        ("parallel_scan --max-rcu 0", "--max-rcu: 0 is not from 1 to 1,000,000"),
        ("parallel_scan --segments 3-2", "--segments: 3-2 is not A-B"),
        ("parallel_scan --segments 0-4", "--total-segments 4, the last segment is 3"),
        ("parallel_scan --save=", "--save needs the name of a folder"),
        ("parallel_scan --save x --select COUNT", "--save needs the items"),
        ("compare --table NAME", "unrecognized arguments: --table NAME"),
        ("compare --runs 0", "--runs: 0 is not from 1 to 1,000"),
        ("compare --total-segments 2 0", "--total-segments: 0 is not from 1 to"),
    ],
)
def test_wrong_flags_send_no_request(
    invoke: Invoke, canned: Canned, command: str, error: str
) -> None:
    assert_failed(invoke(*command.split(), at=canned), 2, error)
    assert canned.requests == []


@pytest.mark.parametrize(
    ("flag", "text", "error"),
    [
        ("names", "", "argument --expression-attribute-names:  is not JSON"),
        ("names", "[]", "names: [] is not a JSON object"),
        ("names", '{"#n": 1}', "ExpressionAttributeNames.#n, value: 1"),
        ("values", '{":n": 1}', "ExpressionAttributeValues.:n, value: 1"),
        ("values", '{":n": {"N": 1}}', "ExpressionAttributeValues.:n.N, value: 1"),
        ("values", '{":b": {"B": 1}}', "ExpressionAttributeValues.:b.B, value: 1"),
        ("values", '{":b": {"B": "YWJj!"}}', "argument --expression-attribute-values"),
        ("values", '{":b": {"BS": 1}}', "ExpressionAttributeValues.:b.BS, value: 1"),
        ("values", '{":b": {"BS": ["YWJ"]}}', "argument --expression-attribute-values"),
    ],
)
def test_wrong_json_sends_no_request(
    invoke: Invoke, canned: Canned, flag: str, text: str, error: str
) -> None:
    ended = invoke("parallel_scan", f"--expression-attribute-{flag}", text, at=canned)
    assert_failed(ended, 2, error)
    assert canned.requests == []


def test_values_arrive_as_they_were_given(invoke: Invoke, canned: Canned) -> None:
    values = {
        ":binary": {"B": "AP8="},  # in base64, as DynamoDB's protocol has it, too
        ":set": {"BS": ["AP8=", ""]},
        ":called_B": {"M": {"B": {"S": "a name, no type"}, "BS": {"N": "1"}}},
    }
    flag = "--expression-attribute-values"
    invoke("sequential_scan", flag, json.dumps(values), at=canned)
    assert canned.requests[0]["ExpressionAttributeValues"] == values


# --- Endpoint and region --------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint_url",
    [
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://local host:8000",
        "localhost:8000",
        f"me:{SECRET}@localhost:8000",
        "http://",
    ],
)
def test_wrong_endpoints_are_wrong_usage(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, endpoint_url: str
) -> None:
    by_flag = invoke("sequential_scan", "--endpoint-url", endpoint_url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", endpoint_url)
    by_variable = invoke("compare")
    for ended in (by_flag, by_variable):
        assert_failed(ended, 2, "", "an endpoint looks like http://localhost:8000")


def test_wrong_region_is_wrong_usage(invoke: Invoke) -> None:
    ended = invoke("sequential_scan", "--region", "us_east!1")
    assert_failed(ended, 2, "us_east!1", "a region looks like us-east-1")


@pytest.mark.parametrize("script", ["sequential_scan", "parallel_scan", "compare"])
def test_refused_connection_points_to_the_network(invoke: Invoke, script: str) -> None:
    ended = invoke(script, "--endpoint-url", REFUSED)
    error = 'Could not connect to the endpoint URL: "http://127.0.0.1:1/"'
    assert_failed(ended, 1, error, NETWORK)


def test_refusing_proxy_points_to_the_network(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", REFUSED)
    monkeypatch.setenv("NO_PROXY", "")
    ended = invoke("sequential_scan", "--endpoint-url", "http://192.0.2.1:8000")
    assert_failed(ended, 1, "Failed to connect to proxy", NETWORK)


def test_https_on_an_http_port_is_one_error(invoke: Invoke, canned: Canned) -> None:
    endpoint_url = canned.endpoint_url.replace("http:", "https:")
    ended = invoke("sequential_scan", "--endpoint-url", endpoint_url)
    error = f"SSL validation failed for {endpoint_url}"
    assert_failed(ended, 1, error, "check --endpoint-url")


def test_missing_certificates(
    invoke: Invoke, canned: Canned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/file")
    endpoint_url = canned.endpoint_url.replace("http:", "https:")
    ended = invoke("sequential_scan", "--endpoint-url", endpoint_url)
    assert_failed(ended, 1, "No such file or directory", "AWS_CA_BUNDLE")


COUNTS = '"Items": [{}], "Count": 1, "ScannedCount": 1'


@pytest.mark.parametrize(
    "body",
    [
        "<html>Welcome</html>",
        "null",
        '{"hello": "world"}',
        '{"Items": [{}], "Count": "1", "ScannedCount": 1}',
        '{"Items": [{}], "Count": 2, "ScannedCount": 2}',
        '{"Items": [{}], "Count": 1, "ScannedCount": 0}',
        f'{{{COUNTS}, "ConsumedCapacity": {{"CapacityUnits": -1}}}}',
    ],
)
def test_server_that_is_no_dynamodb_is_named(
    invoke: Invoke, canned: Canned, body: str
) -> None:
    canned.answer(body, table=Reply(body))
    error = f"{canned.endpoint_url} does not answer as DynamoDB does"
    with_password = canned.endpoint_url.replace("//", f"//me:{SECRET}@")
    for script in ("parallel_scan", "compare"):
        ended = invoke(script, "--endpoint-url", with_password)
        assert_failed(ended, 1, error, NETWORK)


@pytest.mark.parametrize("status", [404, 503])
def test_error_page_of_a_web_server_points_to_the_network(
    invoke: Invoke, canned: Canned, status: int
) -> None:
    canned.answer(Reply("<html>\nSorry\n</html>", status))
    ended = invoke("sequential_scan", at=canned)
    assert_failed(ended, 1, f"({status}) when calling the Scan operation: ", NETWORK)


def test_same_key_twice_is_an_error(invoke: Invoke, canned: Canned) -> None:
    canned.answer(f'{{{COUNTS}, "LastEvaluatedKey": {{"id": {{"S": "a"}}}}}}')
    ended = invoke("sequential_scan", at=canned)
    assert_failed(ended, 1, "the same LastEvaluatedKey twice")
    assert len(canned.requests) == 2


@pytest.mark.parametrize("capacity", ["null", "{}"])
def test_missing_consumed_capacity_is_shown_as_such(
    invoke: Invoke, canned: Canned, capacity: str
) -> None:
    canned.answer(f'{{{COUNTS}, "ConsumedCapacity": {capacity}}}')
    ended = invoke("sequential_scan", at=canned)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Consumed RCU n/a" in " ".join(ended.stdout.split())


# --- Credentials ----------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An AWS config file of the test's own."""
    path = tmp_path / "config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    return path


@pytest.mark.parametrize(
    ("missing", "error"),
    [
        ("AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY", "Unable to locate credentials"),
        ("AWS_REGION AWS_DEFAULT_REGION", "You must specify a region"),
    ],
)
def test_missing_settings_point_to_the_local_lab(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, missing: str, error: str
) -> None:
    for name in missing.split():
        monkeypatch.delenv(name, raising=False)
    ended = invoke("compare", "--endpoint-url", REFUSED)
    assert_failed(ended, 1, error, "python tests/local_dynamodb.py compare.py")


def test_partial_credentials_name_what_is_missing(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    ended = invoke("parallel_scan", "--endpoint-url", REFUSED)
    assert_failed(ended, 1, NO_CREDENTIALS, AWS_CLI)
    assert "missing: AWS_SECRET_ACCESS_KEY" in ended.stderr


def test_unknown_profile_is_named(invoke: Invoke) -> None:
    ended = invoke("sequential_scan", "--profile", "nobody")
    assert_failed(ended, 1, "profile (nobody) could not be found", "list-profiles")


def test_damaged_config_file_is_named(invoke: Invoke, config: Path) -> None:
    config.write_text("this is no config file")
    ended = invoke("sequential_scan", "--endpoint-url", REFUSED)
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
    ended = invoke("parallel_scan", "--profile", "lab", "--endpoint-url", REFUSED)
    assert_failed(ended, 1, NO_CREDENTIALS, AWS_CLI)
    assert error in ended.stderr


@pytest.mark.parametrize("command", ["sequential_scan", "parallel_scan --workers 1"])
def test_credentials_that_fail_in_mid_scan_are_blamed(
    invoke: Invoke, config: Path, command: str
) -> None:
    answer = config.parent / "credentials.json"
    keys = {"Version": 1, "AccessKeyId": "key", "SecretAccessKey": SECRET}
    # boto3 renews credentials that expire so soon before each request.
    soon = datetime.now(timezone.utc) + timedelta(minutes=5)
    answer.write_text(json.dumps({**keys, "Expiration": soon.isoformat()}))
    config.write_text(f"[profile lab]\ncredential_process = /bin/cat {answer}\n")

    def lose_them_at_the_third_scan(number: int, params: dict[str, Any]) -> None:
        if number == 2:
            answer.unlink()

    flags = ("--profile", "lab", "--page-size", "5")
    with serve(instant(100, script=lose_them_at_the_third_scan)) as lab:
        ended = invoke(*command.split(), *flags, at=lab)
    assert_failed(ended, 1, NO_CREDENTIALS, AWS_CLI)


def test_line_break_in_a_token_is_named_and_not_shown(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{SECRET}\n")
    ended = invoke("parallel_scan", "--endpoint-url", REFUSED)
    assert_failed(ended, 1, f"{NO_CREDENTIALS}: a key or a token contains a line break")


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
    command = ("parallel_scan", "--profile", "lab")
    ended = in_shell(redirection, REFUSED, *command, AWS_CONFIG_FILE=str(config))
    assert_failed(ended, 1, "there is no terminal to enter an MFA code in")


def test_ctrl_c_at_the_mfa_prompt_keeps_echo(config: Path) -> None:
    config.write_text(MFA)
    keyboard, terminal = pty.openpty()
    # The shell has no terminal yet. So the one that it opens becomes its own.
    on_terminal = f'exec "$@" <>{os.ttyname(terminal)} >&0 2>&0'
    script = [sys.executable, f"{BUNDLE}/parallel_scan.py", "--profile", "lab"]
    process = subprocess.Popen(
        ["/bin/sh", "-c", on_terminal, "sh", *script],
        env={**lab_environment(REFUSED), "AWS_CONFIG_FILE": str(config)},
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
    ended = invoke("parallel_scan", at=canned)
    error = f"An error occurred ({code}) when calling the Scan operation: {message}"
    assert_failed(ended, 1, error, hint)


def test_long_messages_are_cut(invoke: Invoke, canned: Canned) -> None:
    canned.answer(refusal("SomethingNewException", "and\non " * 1000))
    ended = invoke("parallel_scan", at=canned)
    assert_failed(ended, 1, "and on and on and on")
    assert len(ended.stderr) < 600


def test_only_the_comparison_describes_the_table(
    invoke: Invoke, canned: Canned
) -> None:
    canned.answer(EMPTY_PAGE, table=refusal("AccessDeniedException", "not authorized"))
    alone = invoke("parallel_scan", at=canned)
    assert (alone.returncode, alone.stderr) == (0, "")
    both = invoke("compare", at=canned)
    assert_failed(both, 1, "when calling the DescribeTable operation", "README.md")


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
    invoke: Invoke, real: Engine, flags: str, error: str, hint: str
) -> None:
    assert_failed(invoke("parallel_scan", *flags.split(), at=real), 1, error, hint)


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


def test_full_or_closed_standard_output_is_one_error(canned: Canned) -> None:
    full = in_shell(">/dev/full", canned.endpoint_url, "sequential_scan")
    assert_failed(full, 1, "No space left on device")
    closed = in_shell(">&-", canned.endpoint_url, "parallel_scan")
    assert_failed(closed, 1, "standard output or standard error is closed")
    assert len(canned.requests) == 1  # of the sequential scan


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_full_or_closed_standard_error_has_status_1(
    canned: Canned, redirection: str
) -> None:
    ended = in_shell(redirection, canned.endpoint_url, "compare")
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")


def test_reader_that_is_gone_ends_it_quietly(canned: Canned) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, f"{BUNDLE}/sequential_scan.py"],
        env=lab_environment(canned.endpoint_url),
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")
