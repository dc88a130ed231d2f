"""restore_capacity.sh, run as a user runs it.

First with a fake aws that gives the answers of a test. Then with the real AWS CLI, on
the local lab and on dynalite.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engines import create_table, unique
from items import instant
from local_dynamodb import serve
from running import Ended

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

SCRIPT = Path(__file__).parent.parent / "restore_capacity.sh"
VENV_BIN = Path(sys.executable).parent  # pip puts aws there
SECRET = "wJalrXUtnFEMIEXAMPLEKEY"
DONE = ["before: 1 RCU / 1 WCU", "after:  5 RCU / 5 WCU"]
LOCAL_LAB = "python tests/local_dynamodb.py --read-capacity 1 ./restore_capacity.sh"

# An aws that writes down what it is asked, and runs the next line of `answers`.
# Version 2 of the CLI opens a pager unless AWS_PAGER is empty.
FAKE_AWS = """#!/usr/bin/env bash
cd "${0%/*}" && [[ -z "${AWS_PAGER-less}" ]] || exit 99
printf '%s\\n' "$*" >>calls
eval "$(sed -n "$(wc -l <calls)p" answers)"
"""


def prints(*lines: str) -> str:
    return f"printf '%s\\n' {shlex.join(lines)}"


def fails(*lines: str) -> str:
    """Print an error as the CLI does, and exit."""
    return f"{prints('', *lines)} >&2; exit 254"


def state(capacity: str, status: str = "ACTIVE", mode: str = "PROVISIONED") -> str:
    return prints(f"STATE\t{status}\t{mode}\t{capacity}\t")


LOW = state("1 RCU / 1 WCU")
GOOD = state("5 RCU / 5 WCU")
UPDATING = state("1 RCU / 1 WCU", "UPDATING")
CREATING = state("1 RCU / 1 WCU", "CREATING")
ON_DEMAND = state("0 RCU / 0 WCU", mode="PAY_PER_REQUEST")
ACCEPTED = prints("TABLEDESCRIPTION\tGameLeaderboard\tUPDATING")
IN_USE = fails("An error occurred (ResourceInUseException): it is being updated")
# AWS's words. DynamoDB Local says "The requested throughput value equals ...".
UNCHANGED = fails("... The requested value equals the current value. ...")
WARNING = "echo PythonDeprecationWarning: an old Python >&2"
EARLY = "Signature expired: 20261125T000000Z is now earlier than ..."
LATE = "Signature not yet current: 20261127T000000Z is still later than ..."
SIMULTANEOUS = "Only 10 tables can be created, updated, or deleted simultaneously"
DECREASES = "... decreases are limited ... Next decrease can be made at Monday ..."


class World:
    """What surrounds the script: its PATH and its environment, and nothing else."""

    def __init__(self, home: Path) -> None:
        self.bin = home / "bin"
        self.temporary = home / "tmp"
        self.bin.mkdir()
        self.temporary.mkdir()
        self.env = {
            "PATH": f"{self.bin}:{VENV_BIN}:/usr/bin:/bin",
            "HOME": str(home),
            "TMPDIR": str(self.temporary),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
        self.set_sleep("exit 0")

    def command(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def set_sleep(self, instead: str) -> None:
        """Do this where the script sleeps between two looks at the table."""
        self.command("sleep", f"#!/usr/bin/env bash\n{instead}\n")

    def set_aws(self, *answers: str) -> None:
        """Let aws give these answers in turn, each a line for the shell."""
        self.command("aws", FAKE_AWS)
        (self.bin / "answers").write_text("\n".join(answers) + "\n")

    def calls(self) -> list[str]:
        """What aws was asked, in order."""
        calls = self.bin / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    def updates(self) -> int:
        return sum("dynamodb update-table " in call for call in self.calls())

    def run(self, *arguments: str, pass_fds: Sequence[int] = ()) -> Ended:
        return subprocess.run(
            [SCRIPT, *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            start_new_session=True,
            timeout=60,
            check=False,
            pass_fds=pass_fds,
        )


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def assert_failed(ended: Ended, status: int, error: str, hint: str = "") -> None:
    """Assert that the script ended with one error line, and with this hint or none."""
    said = re.findall("^(?:error|hint): .*", ended.stderr, re.MULTILINE)
    assert ended.returncode == status, ended.stderr
    assert SECRET not in ended.stderr
    assert len(said) == (2 if hint else 1), ended.stderr
    assert error in said[0]
    assert hint in said[-1]


@pytest.mark.parametrize(
    ("answers", "updates", "note"),
    [
        ([LOW, ACCEPTED, UPDATING, UPDATING, GOOD], 1, "is UPDATING: waiting\n"),
        ([CREATING, LOW, ACCEPTED, GOOD], 1, "is CREATING: waiting\n"),
        ([LOW, IN_USE, UPDATING, LOW, ACCEPTED, GOOD], 2, "somebody else is changing"),
        ([LOW, UNCHANGED, GOOD], 1, ""),
        ([LOW, ACCEPTED, LOW, UNCHANGED, GOOD], 2, ""),
        ([f"{WARNING}; {LOW}; {WARNING}", ACCEPTED, GOOD], 1, ""),
    ],
    ids=["updating", "creating", "in use", "just set", "set twice", "warnings"],
)
def test_waits_until_capacity_is_restored(
    world: World, answers: list[str], updates: int, note: str
) -> None:
    world.set_aws(*answers)
    ended = world.run()
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == DONE
    assert note in ended.stderr
    assert ended.stderr.count("is UPDATING") <= 1  # it is not said at every look
    assert len(world.calls()) == len(answers)
    assert world.updates() == updates
    assert list(world.temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("description", "output"),
    [
        (GOOD, "before: 5 RCU / 5 WCU\nafter:  5 RCU / 5 WCU\n"),
        (ON_DEMAND, "before: 0 RCU / 0 WCU\non-demand: nothing to restore\n"),
    ],
    ids=["as wanted", "on demand"],
)
def test_leaves_what_needs_no_change(
    world: World, description: str, output: str
) -> None:
    world.set_aws(description)
    ended = world.run()
    assert (ended.returncode, ended.stdout) == (0, output)
    assert "nothing to restore" in ended.stdout + ended.stderr
    assert len(world.calls()) == 1


@pytest.mark.parametrize(
    ("said", "error", "hint"),
    [
        ("from sso: Token has expired and refresh failed", "have expired", "renew"),
        ("this profile has expired or is otherwise invalid", "have expired", "renew"),
        ("(ExpiredTokenException): The token is expired", "have expired", "renew"),
        ("SSL failed: certificate has expired", "certificate has expired", ""),
        ("(AccessDeniedException): no", "access to Game", "dynamodb:DescribeTable"),
        ("(AccessDenied): no sts:AssumeRole", "(AccessDenied): no sts:AssumeRole", ""),
        ("(ResourceNotFoundException)", "no table GameLeaderboard here", "region"),
        (f"(InvalidSignatureException): {EARLY}", "the clock of this", "set the clock"),
        (f"(InvalidSignatureException): {LATE}", "the clock of this", "set the clock"),
        ("(InvalidSignatureException): no match", "no match", ""),
    ],
)
def test_errors_are_explained(world: World, said: str, error: str, hint: str) -> None:
    world.set_aws(fails(f"An error occurred {said}", SECRET))
    assert_failed(world.run(), 1, error, hint)


@pytest.mark.parametrize(
    ("said", "error", "hint"),
    [
        ("(AccessDeniedException): no", "access to Game", "dynamodb:UpdateTable"),
        (f"(LimitExceededException): {DECREASES}", "Next decrease", "27 a UTC day"),
        (f"(LimitExceededException): {SIMULTANEOUS}", "10 tables", "run it again"),
        ("(LimitExceededException): At most 40,000", "At most 40,000", ""),
    ],
)
def test_refused_updates_are_explained(
    world: World, said: str, error: str, hint: str
) -> None:
    world.set_aws(LOW, fails(f"An error occurred {said}"))
    assert_failed(world.run(), 1, error, hint)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("kill -KILL $$", "describe-table failed without a message (exit status 137)"),
        ("true", "did not describe the table, but said: nothing"),
        (prints("Usage:", "  aws FILE"), "but said: Usage:   aws FILE"),
    ],
)
def test_strange_answers_are_shown(world: World, answer: str, error: str) -> None:
    world.set_aws(answer)
    assert_failed(world.run(), 1, error, "--debug")


def test_a_table_that_is_being_deleted_is_an_error(world: World) -> None:
    world.set_aws(state("1 RCU / 1 WCU", "DELETING"))
    assert_failed(world.run(), 1, "GameLeaderboard is DELETING")


def test_waiting_ends_after_five_minutes(world: World) -> None:
    world.set_aws(*[UPDATING] * 150)
    error = "GameLeaderboard is still UPDATING at 1 RCU / 1 WCU"
    assert_failed(world.run(), 1, error, "run it again later")


def test_needs_the_aws_cli(world: World) -> None:
    (world.bin / "bash").symlink_to(shutil.which("bash") or "/bin/bash")
    world.env["PATH"] = str(world.bin)
    assert_failed(world.run(), 1, "not on PATH", LOCAL_LAB)


def test_needs_a_temporary_file(world: World) -> None:
    world.set_aws(GOOD)
    world.env["TMPDIR"] = "/dev/null"
    assert_failed(world.run(), 1, "cannot make a temporary file", "set TMPDIR")


@pytest.mark.parametrize(
    ("arguments", "capacity"),
    [("--force", "5"), ("A B", "5"), ("A", "0"), ("A", "5/5"), ("A", "1.5")],
)
def test_wrong_usage_asks_nothing(world: World, arguments: str, capacity: str) -> None:
    world.set_aws(GOOD)
    world.env["WRITE_CAPACITY_UNITS"] = capacity
    assert world.run(*arguments.split()).returncode == 2
    assert world.calls() == []


def test_help_is_the_comment_at_the_top(world: World) -> None:
    ended = world.run("--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("restore_capacity.sh [TABLE]\n")
    assert ended.stdout.endswith("2 wrong usage, 130 interrupted.\n")


def test_arguments_and_variables_reach_aws(world: World) -> None:
    world.set_aws(LOW, ACCEPTED, state("7 RCU / 8 WCU"))
    world.env["READ_CAPACITY_UNITS"] = "7"
    world.env["WRITE_CAPACITY_UNITS"] = "8"
    world.env["AWS_ENDPOINT_URL_DYNAMODB"] = f"http://me:{SECRET}@other:8000"
    world.env["AWS_ENDPOINT_URL"] = "http://not-this-one"
    ended = world.run("My Table")
    assert ended.returncode == 0
    assert "endpoint: other:8000" in ended.stderr
    assert SECRET not in ended.stderr
    for call in world.calls():
        assert "--table-name My Table --" in call
        assert f"--endpoint-url http://me:{SECRET}@other:8000" in call
    capacity = "--provisioned-throughput ReadCapacityUnits=7,WriteCapacityUnits=8"
    assert capacity in world.calls()[1]


def test_goes_on_after_it_was_killed(world: World) -> None:
    world.set_aws(LOW, ACCEPTED, UPDATING, GOOD)
    world.set_sleep('kill -KILL "$PPID"')
    assert world.run().returncode == -signal.SIGKILL
    world.set_sleep("exit 0")
    assert world.run().stdout.splitlines() == DONE
    assert world.updates() == 1


# Ctrl-C reaches the whole process group. kill reaches the script alone.
@pytest.mark.parametrize(
    ("where", "target"),
    [("sleep", "-INT 0"), ("sleep", '-HUP "$PPID"'), ("aws", '-TERM "$PPID"')],
)
def test_signal_ends_it_and_its_child(world: World, where: str, target: str) -> None:
    # The child holds the other end of a connection for as long as it lives.
    ours, theirs = socket.socketpair()
    hang = f"kill {target}; exec /bin/sleep 600"
    world.set_aws(hang if where == "aws" else UPDATING)
    world.set_sleep(hang)
    with ours:
        with theirs:
            ended = world.run(pass_fds=[theirs.fileno()])
        ours.settimeout(60)
        assert ours.recv(1) == b""
    assert_failed(ended, 130, "interrupted", "run it again to go on")
    assert list(world.temporary.iterdir()) == []


# --- The real AWS CLI -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "error", "hint"),
    [
        ("AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY", "no AWS credentials", LOCAL_LAB),
        ("AWS_DEFAULT_REGION", "no AWS region set", LOCAL_LAB),
        ("", "Could not connect to the endpoint URL", "check the network"),
    ],
)
def test_errors_of_the_real_cli(
    world: World, missing: str, error: str, hint: str
) -> None:
    world.env["AWS_ENDPOINT_URL"] = f"http://me:{SECRET}@127.0.0.1:1"
    world.env["AWS_MAX_ATTEMPTS"] = "1"
    for name in missing.split():
        del world.env[name]
    assert_failed(world.run(), 1, error, hint)


@pytest.mark.parametrize(
    ("read_capacity", "after"),
    [(1, "after:  5 RCU / 5 WCU"), (0, "on-demand: nothing to restore")],
)
def test_real_cli_on_the_local_lab(
    world: World, read_capacity: int, after: str
) -> None:
    settings = instant(25, read_capacity=read_capacity, update_seconds=0.1)
    with serve(settings) as lab:
        world.env["AWS_ENDPOINT_URL"] = lab.endpoint_url
        ended = world.run()
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[1] == after
    assert lab.capacity["ReadCapacityUnits"] == 5 * read_capacity
    assert {entry["outcome"] for entry in lab.requests} == {"ok"}


def test_real_cli_on_dynalite(world: World, dynalite_client: DynamoDBClient) -> None:
    name = unique("Restore")
    create_table(dynalite_client, name, index=True)
    dynalite_client.update_table(
        TableName=name,
        ProvisionedThroughput={"ReadCapacityUnits": 1, "WriteCapacityUnits": 2},
    )
    world.env["AWS_ENDPOINT_URL_DYNAMODB"] = dynalite_client.meta.endpoint_url
    world.env["WRITE_CAPACITY_UNITS"] = "6"

    ended = world.run(name)

    assert ended.returncode == 0, ended.stderr
    indexes = "indexes stay: game-mode-index 5 RCU / 5 WCU"
    before, after = ended.stdout.splitlines()
    assert before == f"before: 1 RCU / 2 WCU; {indexes}"
    assert after == "after:  5 RCU / 6 WCU"
    capacity = dynalite_client.describe_table(TableName=name)["Table"][
        "ProvisionedThroughput"
    ]
    assert (capacity["ReadCapacityUnits"], capacity["WriteCapacityUnits"]) == (5, 6)
    assert_failed(world.run("Missing"), 1, "there is no table Missing", "the name")
