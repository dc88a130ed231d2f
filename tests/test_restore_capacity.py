"""restore_capacity.sh, run as a user runs it.

First with a fake aws that gives the answers of a test. Then with the real AWS CLI, on
the local lab and on dynalite.
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import NewLab
from engines import create_table
from running import ROOT, Ended

SECRET = "wJalrXUtnFEMIEXAMPLEKEY"
LOWERED = "5 RCU / 1 WCU"
DONE = f"before: {LOWERED}\nafter:  5 RCU / 5 WCU\n"
LOCAL_LAB = "python tests/local_dynamodb.py --read-capacity 1 ./restore_capacity.sh"

# An aws that writes down what it is asked, and runs the next line of `answers`.
FAKE_AWS = """
cd "${0%/*}"
printf '%s\\n' "$*" >>calls
number=$(grep -c dynamodb calls)
eval "$(sed -n "${number}p" answers)"
"""


def prints(*lines: str) -> str:
    """Print lines, as a command for the shell."""
    return f"printf '%s\\n' {shlex.join(lines)}"


def refuses(error: str) -> str:
    """Print an error as the CLI does, with a line that is secret, and exit."""
    return f"{prints('', f'An error occurred {error}', SECRET)} >&2; exit 254"


def state(capacity: str, status: str = "ACTIVE") -> str:
    return prints(f"STATE\t{status}\tPROVISIONED\t{capacity}\t")


LOW = state(LOWERED)
GOOD = state("5 RCU / 5 WCU")
UPDATING = state(LOWERED, "UPDATING")
CREATING = state(LOWERED, "CREATING")
ACCEPTED = prints("TABLEDESCRIPTION\tGameLeaderboard\tUPDATING")
IN_USE = refuses("(ResourceInUseException): it is being updated")
# AWS's words. DynamoDB Local says "The requested throughput value equals ...".
UNCHANGED = refuses("... The requested value equals the current value. ...")
WARNING = "echo PythonDeprecationWarning: an old Python >&2"
EARLY = "(InvalidSignatureException): Signature expired: 20261125T000000Z is now ..."
LATE = "(InvalidSignatureException): Signature not yet current: 20261127T000000Z ..."
SIMULTANEOUS = (
    "(LimitExceededException): Subscriber limit exceeded: Only 10 tables can be "
    "created, updated, or deleted simultaneously"
)
DECREASES = (
    "(LimitExceededException): ... decrease ... Next decrease can be made at ..."
)


class World:
    """What surrounds the script: its PATH and its environment, and nothing else."""

    def __init__(self, home: Path) -> None:
        self.bin = home / "bin"
        self.temporary = home / "tmp"
        self.bin.mkdir()
        self.temporary.mkdir()
        venv_bin = Path(sys.executable).parent  # pip puts aws there
        self.env = {
            "PATH": f"{self.bin}:{venv_bin}:/usr/bin:/bin",
            "HOME": str(home),
            "TMPDIR": str(self.temporary),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
        self.set_command("sleep", "exit 0")  # between two looks at the table

    def set_command(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (self.bin / name).chmod(0o755)

    def set_aws(self, *answers: str) -> None:
        """Let aws give these answers in turn, each a line for the shell."""
        self.set_command("aws", FAKE_AWS)
        (self.bin / "calls").touch()
        (self.bin / "answers").write_text("\n".join(answers) + "\n")

    def calls(self) -> list[str]:
        """What aws was asked, in order."""
        return (self.bin / "calls").read_text().splitlines()

    def run(self, *arguments: str, pass_fds: tuple[int, ...] = ()) -> Ended:
        ended = subprocess.run(
            [ROOT / "restore_capacity.sh", *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            start_new_session=True,
            timeout=60,
            check=False,
            pass_fds=pass_fds,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def assert_explained(ended: Ended, status: int, error: str, hint: str = "") -> None:
    """Assert that the script ended with an error line, and with this hint or none."""
    said = re.findall("^(?:error|hint): .*", ended.err, re.MULTILINE)
    assert ended.status == status, ended.err
    assert ": line " not in ended.err  # bash itself does not complain
    assert SECRET not in ended.err
    assert len(said) == (2 if hint else 1), ended.err
    assert error in said[0]
    assert hint in said[-1]


# --- With a fake aws ------------------------------------------------------------------


def test_waits_until_capacity_is_restored(world: World) -> None:
    # A wait is a line among the calls of aws: "the wait". So the second word of a line
    # tells what was done.
    world.set_command("sleep", '/bin/sleep 0.1; echo the wait >>"${0%/*}/calls"')
    world.set_aws(
        CREATING,
        f"{WARNING}; {LOW}; {WARNING}",
        IN_USE,  # it asked for an update, but somebody else did, too
        UPDATING,
        UPDATING,
        LOW,
        ACCEPTED,
        LOW,
        UNCHANGED,  # it asked again, but meanwhile the update had ended
        GOOD,
    )
    ended = world.run()
    assert (ended.status, ended.out) == (0, DONE)
    assert ended.err.splitlines() == [
        "GameLeaderboard is CREATING: waiting",
        "somebody else is changing GameLeaderboard: waiting",
        "GameLeaderboard is UPDATING: waiting",  # once
    ]
    asked = " ".join(call.split()[1] for call in world.calls())
    assert asked == (
        "describe-table wait describe-table update-table wait describe-table wait "
        "describe-table wait describe-table update-table wait describe-table "
        "update-table wait describe-table"
    )
    assert list(world.temporary.iterdir()) == []


def test_leaves_what_needs_no_change(world: World) -> None:
    world.set_aws(GOOD)
    ended = world.run()
    assert (ended.status, ended.err) == (0, "nothing to restore\n")
    assert ended.out == "before: 5 RCU / 5 WCU\nafter:  5 RCU / 5 WCU\n"
    assert len(world.calls()) == 1


@pytest.mark.parametrize(
    ("answers", "error", "hint"),
    [
        ([refuses("from sso: Token has expired")], "have expired", "renew"),
        ([refuses("this profile has expired")], "have expired", "renew"),
        ([refuses("the session has expired")], "have expired", "renew"),
        ([refuses("(ExpiredTokenException): expired")], "have expired", "renew"),
        ([refuses("SSL: certificate has expired")], "certificate has expired", ""),
        ([refuses("(AccessDeniedException): no")], "access to Game", "DescribeTable"),
        ([LOW, refuses("(AccessDeniedException)")], "access to Game", "UpdateTable"),
        ([refuses(EARLY)], "the clock of this machine", "set the clock"),
        ([refuses(LATE)], "the clock of this machine", "set the clock"),
        ([LOW, refuses(DECREASES)], "Next decrease can be made", "27 a UTC day"),
        ([LOW, refuses(SIMULTANEOUS)], "Only 10 tables", "run it again"),
        ([LOW, refuses("(LimitExceededException): At most")], "At most", ""),
        (["kill -KILL $$"], "without a message (exit status 137)", "--debug"),
        ([prints("Usage:", "  aws FILE")], "said: Usage:   aws FILE", "--debug"),
        ([state(LOWERED, "DELETING")], "GameLeaderboard is DELETING", ""),
        ([UPDATING] * 150, f"still UPDATING at {LOWERED}", "run it again later"),
    ],
)
def test_what_goes_wrong_is_explained(
    world: World, answers: list[str], error: str, hint: str
) -> None:
    world.set_aws(*answers)
    assert_explained(world.run(), 1, error, hint)
    assert len(world.calls()) == len(answers)


def test_needs_the_aws_cli(world: World) -> None:
    (world.bin / "bash").symlink_to(shutil.which("bash") or "/bin/bash")
    world.env["PATH"] = str(world.bin)
    assert_explained(world.run(), 1, "not on PATH", LOCAL_LAB)


def test_needs_a_temporary_file(world: World) -> None:
    world.set_aws(GOOD)
    world.env["TMPDIR"] = "/dev/null"
    assert_explained(world.run(), 1, "cannot make a temporary file", "set TMPDIR")


@pytest.mark.parametrize(
    ("arguments", "variables", "error", "hint"),
    [
        ("--force", {}, "not understood: --force", "usage: restore_capacity.sh"),
        ("A B", {}, "not understood: A B", "usage: restore_capacity.sh"),
        ("A", {"READ_CAPACITY_UNITS": "0"}, "are positive whole numbers", "--help"),
        ("A", {"WRITE_CAPACITY_UNITS": "5/5"}, "positive whole numbers", "--help"),
    ],
)
def test_wrong_usage_asks_nothing(
    world: World, arguments: str, variables: dict[str, str], error: str, hint: str
) -> None:
    world.set_aws(GOOD)
    world.env.update(variables)
    assert_explained(world.run(*arguments.split()), 2, error, hint)
    assert world.calls() == []


def test_empty_name_is_not_the_default(world: World) -> None:
    world.set_aws(refuses("Invalid length for parameter TableName"))
    assert_explained(world.run(""), 1, "Invalid length for parameter TableName")
    assert "GameLeaderboard" not in world.calls()[0]


def test_help_is_the_comment_at_the_top(world: World) -> None:
    ended = world.run("--help")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("restore_capacity.sh [TABLE]\n")
    assert ended.out.endswith("2 wrong usage, 130 interrupted.\n")


def test_arguments_and_variables_reach_aws(world: World) -> None:
    # Version 2 of the CLI opens a pager, unless AWS_PAGER is empty.
    world.set_aws(LOW, '[[ -z "${AWS_PAGER-less}" ]]', state("7 RCU / 8 WCU"))
    world.env["READ_CAPACITY_UNITS"] = "7"
    world.env["WRITE_CAPACITY_UNITS"] = "8"
    world.env["AWS_ENDPOINT_URL_DYNAMODB"] = f"http://me:{SECRET}@other:8000"
    world.env["AWS_ENDPOINT_URL"] = "http://not-this-one"
    ended = world.run("My Table")
    assert ended.status == 0
    assert "endpoint: other:8000" in ended.err
    assert SECRET not in ended.err
    for call in world.calls():
        assert "--table-name My Table --" in call
        assert f"--endpoint-url http://me:{SECRET}@other:8000" in call
        assert "--cli-connect-timeout 10" in call
    capacity = "--provisioned-throughput ReadCapacityUnits=7,WriteCapacityUnits=8"
    assert capacity in world.calls()[1]


# Ctrl-C reaches the whole process group. kill reaches the script alone.
@pytest.mark.parametrize(
    ("where", "target"),
    [("sleep", "-INT 0"), ("aws", '-TERM "$PPID"')],
)
def test_signal_ends_it_and_its_child(world: World, where: str, target: str) -> None:
    # The child holds the other end of a connection for as long as it lives.
    ours, theirs = socket.socketpair()
    hang = f"kill {target}; exec /bin/sleep 600"
    world.set_aws(hang if where == "aws" else UPDATING)
    world.set_command("sleep", hang)
    with ours:
        with theirs:
            ended = world.run(pass_fds=(theirs.fileno(),))
        ours.settimeout(60)
        assert ours.recv(1) == b""
    assert_explained(ended, 130, "interrupted", "run it again to go on")
    assert list(world.temporary.iterdir()) == []


# --- With the real AWS CLI ------------------------------------------------------------


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
    assert_explained(world.run(), 1, error, hint)


@pytest.mark.parametrize(
    ("read_capacity", "output"),
    [
        (1, "before: 1 RCU / 5 WCU\nafter:  5 RCU / 5 WCU\n"),
        (0, "before: 0 RCU / 0 WCU\non-demand: nothing to restore\n"),
    ],
)
def test_real_cli_on_the_local_lab(
    world: World, new_lab: NewLab, read_capacity: int, output: str
) -> None:
    lab = new_lab(25, read_capacity=read_capacity, update_seconds=0.1)
    world.env["AWS_ENDPOINT_URL"] = lab.endpoint_url
    ended = world.run()
    assert (ended.status, ended.out) == (0, output), ended.err


def test_real_cli_on_dynalite(world: World, real: Any) -> None:
    create_table(real.client, "Lowered", [], read_capacity=1)
    world.env["AWS_ENDPOINT_URL_DYNAMODB"] = real.endpoint_url
    world.env["WRITE_CAPACITY_UNITS"] = "6"
    ended = world.run("Lowered")
    assert ended.status == 0, ended.err
    assert ended.out == (
        "before: 1 RCU / 5 WCU; indexes stay: game-mode-index 1 RCU / 5 WCU\n"
        "after:  5 RCU / 6 WCU\n"
    )
    table = real.client.describe_table(TableName="Lowered")["Table"]
    capacity = table["ProvisionedThroughput"]
    assert (capacity["ReadCapacityUnits"], capacity["WriteCapacityUnits"]) == (5, 6)
    assert_explained(world.run("Missing"), 1, "there is no table Missing", "the name")
