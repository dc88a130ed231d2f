"""Wrong usage and refusals: the exact status, one line that says what is wrong, no traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from canned import EMPTY_PAGE, Canned, refusal
from engines import Engine
from running import BUNDLE, Ended, environment, run

from common import json_value

SCRIPTS = ("sequential_scan", "parallel_scan", "compare")
Invoke = Callable[..., Ended]


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
    ("--max-rcu 1000001", "--max-rcu is a whole number from 1 to 1,000,000"),
    (f"--max-rcu {'1' * 400}", "--max-rcu is a whole number from 1 to 1,000,000"),
    ("--max-rcu 2.5", "argument --max-rcu: invalid"),
    ("--output xml", "argument --output: invalid choice: 'xml'"),
    ("--select SPECIFIC_ATTRIBUTES", "argument --select: invalid choice"),
    (f"{NAMES} {{", f"argument {NAMES}: invalid"),
    (f'{VALUES} {{":n":{{"B":"YWJj!"}}}}', f"argument {VALUES}: invalid"),
    (f'{VALUES} {{":n":{{"BS":["YWJj"]}}}}', f"argument {VALUES}: invalid"),
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
WRONG_FLAGS = [(SCRIPTS[n % 3], *case) for n, case in enumerate(EVERYWHERE)] + ONE_SCRIPT


@pytest.mark.parametrize(("script", "flags", "error"), WRONG_FLAGS)
def test_wrong_flags(invoke: Invoke, canned: Canned, script: str, flags: str, error: str) -> None:
    check(invoke(script, *flags.split(), at=canned), 2, error)


WRONG_CONNECTIONS = [
    ("--endpoint-url localhost:8000", 2, "Invalid endpoint: localhost:8000", "http://host"),
    ("--endpoint-url http://localhost:99999", 1, "http://localhost:99999", "endpoint"),
    ("--region us_east!1", 2, "region_name 'us_east!1'", "--region"),
    ("--profile nobody", 1, "profile (nobody) could not be found", "list-profiles"),
    ("--endpoint-url http://127.0.0.1:9", 1, "Could not connect to the endpoint", "endpoint"),
]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("flags", "status", "error", "hint"), WRONG_CONNECTIONS)
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
        ({"AWS_SECRET_ACCESS_KEY": ""}, "Partial credentials", LOCAL_LAB),
        ({"AWS_DEFAULTS_MODE": "nonsense"}, "invalid defaults mode: nonsense", ""),
        ({"AWS_CONFIG_FILE": __file__}, f"Unable to parse config file: {__file__}", ""),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_WEB_IDENTITY_TOKEN_FILE": MISSING, "AWS_ROLE_ARN": "arn"},
         f"No such file or directory: '{MISSING}'", ""),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("anew")
def test_wrong_settings(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], error: str, hint: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
    check(invoke("sequential_scan"), 1, error, hint)


@pytest.mark.usefixtures("anew")
def test_certificates_that_are_not_there(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, canned: Canned
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", MISSING)
    https_url = canned.endpoint_url.replace("http:", "https:")
    ended = invoke("sequential_scan", "--endpoint-url", https_url)
    check(ended, 1, f"SSL validation failed for {https_url}/ [Errno 2] No such file", "network")


# --- Files and streams


def redirected(canned: Canned, script: str, redirection: str) -> Ended:
    """Run a script as a shell does, with such a redirection, on an empty table."""
    command = [f'exec "$0" "$1" {redirection}', sys.executable, f"{BUNDLE}/{script}.py"]
    env = environment(canned.endpoint_url)
    return subprocess.run(
        ["sh", "-c", *command], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("redirection", "error"),
    [
        (">/dev/full", "No space left on device: '<stdout>'"),
        (">&-", "standard output or standard error is closed"),
    ],
)
def test_a_full_or_closed_standard_output(canned: Canned, redirection: str, error: str) -> None:
    check(redirected(canned, "compare", redirection), 1, error)


def test_a_closed_standard_error_ends_a_script_before_it_reads(canned: Canned) -> None:
    ended = redirected(canned, "compare", "2>&-")
    assert (ended.returncode, ended.stdout, canned.operations) == (1, "", [])


def test_a_timeline_prints_in_ascii_and_settings_of_retries_do_no_harm(canned: Canned) -> None:
    env = {"PYTHONIOENCODING": "ascii", "AWS_RETRY_MODE": "nonsense", "AWS_MAX_ATTEMPTS": "x"}
    ended = run(canned.endpoint_url, "parallel_scan.py", **env)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(r"\nsegment 3 \| *\?+\n", ended.stdout)


# --- What DynamoDB says no to


REFUSALS = [
    ("AccessDeniedException", "not authorized: dynamodb:Scan", "README.md has the policy"),
    ("ExpiredTokenException", "Connect again: a token expired", "renew credentials"),
    ("InvalidSignatureException", "Signature expired: 20250101T0000Z", "check the clock"),
    ("SomethingNewException", "In words\nof two lines", ""),
    ("ValidationException", "Throttled is a reserved keyword", NAMES),  # and no throttling
]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("code", "message", "hint"), REFUSALS)
def test_refusals(
    canned: Canned, invoke: Invoke, *, script: str, code: str, message: str, hint: str
) -> None:
    ended = invoke(script, at=canned.answer(refusal(code, message)))
    said = " ".join(message.split())
    check(ended, 1, f"An error occurred ({code}) when calling the Scan operation: {said}", hint)


def test_of_a_long_message_the_beginning_is_enough(canned: Canned, invoke: Invoke) -> None:
    ended = invoke("parallel_scan", at=canned.answer(refusal("Some", "on and on " * 1000)))
    assert len(ended.stderr) == len("error: ") + 500 + len("\n")


def test_a_refused_description_matters_only_to_the_comparison(
    canned: Canned, invoke: Invoke
) -> None:
    denied = refusal("AccessDeniedException", "dynamodb:DescribeTable")
    at = canned.answer(EMPTY_PAGE, table=denied)
    alone = invoke("parallel_scan", at=at)
    assert (alone.returncode, alone.stderr) == (0, "")
    both = invoke("compare", at=at)
    check(both, 1, "(AccessDeniedException) when calling the DescribeTable", "the policy")


@pytest.mark.parametrize("status", ["CREATING", "DELETING"])
def test_a_table_that_is_not_active(canned: Canned, invoke: Invoke, status: str) -> None:
    no_table = refusal("ResourceNotFoundException", "Requested resource not found")
    table = f'{{"Table": {{"TableStatus": "{status}"}}}}'
    ended = invoke("parallel_scan", at=canned.answer(no_table, table=table))
    check(ended, 1, "(ResourceNotFoundException)", "is it there, and ACTIVE? check --table-name")
    assert "wait" not in ended.stderr


# --- On a real engine

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
    check(invoke(script, *flags.split(), at=real), status, error, hint)


def test_a_string_may_be_called_as_a_type_is() -> None:
    for text in ("B", "BS"):
        value = {":b": {"S": text}, text: {"S": "b"}}
        assert json_value(json.dumps(value)) == value
