"""restore_capacity.sh, run as a user runs it: against an aws that answers what it is told to,
and with the real AWS CLI against the local lab and against dynalite."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engines import create_table, free_port

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

HERE = Path(__file__).parent
SCRIPT = HERE.parent / "restore_capacity.sh"
VENV_BIN = Path(sys.executable).parent  # where pip puts aws
SECRET = "wJalrXUtnFEMIEXAMPLEKEY"

# An aws that logs what it is asked and runs the line of `answers` that is next.
AWS = """#!/usr/bin/env bash
cd "${0%/*}" && [[ -z "${AWS_PAGER-less}" ]] || exit  # v2 pages unless the variable is empty
printf '%s\\n' "$*" >>calls
eval "$(sed -n "$(wc -l <calls)p" answers)"
"""


def state(capacity: str, status: str = "ACTIVE", mode: str = "PROVISIONED", more: str = "") -> str:
    units = "{} RCU / {} WCU".format(*capacity.split("/"))
    return printing("\t".join(["STATE", status, mode, units, more]))


def printing(text: str, to: str = "") -> str:
    return " ".join(f"printf '%s\\n' {shlex.quote(line)} {to};" for line in text.splitlines())


def failure(text: str, status: int) -> str:
    return f"{printing(text, '>&2')} exit {status}"


def refusal(name: str, message: str, operation: str = "UpdateTable", status: int = 254) -> str:
    error = f"An error occurred ({name}) when calling the {operation} operation"
    return failure(f"\n{error}: {message}", status)


LOW, GOOD, UPDATING = state("1/1"), state("5/5"), state("1/1", "UPDATING")
UPDATED = printing("TABLEDESCRIPTION\tGameLeaderboard\tUPDATING")  # the old values, as AWS has it
IN_USE = refusal(
    "ResourceInUseException",
    "Attempt to change a resource which is still in use: Table is being updated: GameLeaderboard",
)
SAME = "The provisioned throughput for the table will not change. "
SAME += "The requested value equals the current value. Current ReadCapacityUnits ..."
UNCHANGED = refusal("ValidationException", SAME)
SAME_LOCAL = "The requested throughput value equals the current value"  # DynamoDB Local
UNCHANGED_LOCAL = refusal("ValidationException", SAME_LOCAL, status=255)
NEXT = "Subscriber limit exceeded: ... Next decrease can be made at Monday, November 23, 2026 ..."
LIMIT = refusal("LimitExceededException", NEXT)
USER = "User: arn:aws:iam::123456789012:user/student is not authorized to perform"
WARNING = printing("PythonDeprecationWarning: an old Python", ">&2")
CREDENTIALS = (
    'Unable to locate credentials. You can configure credentials by running "aws configure".'
)
REGION = 'You must specify a region. You can also configure your region by running "aws configure".'
CONNECT = '\nCould not connect to the endpoint URL: "https://x.y/"'
CONNECT_TIMEOUT = '\nConnect timeout on endpoint URL: "https://x.y/"'
LAB = "without an account: python tests/local_dynamodb.py --read-capacity 1 ./restore_capacity.sh"
SSO = "Error when retrieving token from sso: Token has expired and refresh failed"


class World:
    """The script's surroundings: what is on PATH and in the environment, and nothing else."""

    def __init__(self, home: Path) -> None:
        self.bin = home / "bin"
        self.bin.mkdir()
        self.temporary = home / "tmp"
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

    def command(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def sleep(self, instead: str = "true") -> None:
        """Do this where the script sleeps, which is for two seconds between polls."""
        self.command("sleep", f"#!/usr/bin/env bash\n{instead}\n")

    def script_aws(self, *answers: str, sleep: str = "true") -> None:
        self.command("aws", AWS)
        self.sleep(sleep)
        (self.bin / "answers").write_text("\n".join(answers) + "\n")

    def calls(self) -> list[str]:
        """The operations that aws was asked for, in order."""
        return [line.split()[1] for line in (self.bin / "calls").read_text().splitlines()]

    def run(
        self, *arguments: str, under: tuple[str, ...] = (), seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run the script, `under` another command if given, and check what holds for any end."""
        files = set(self.temporary.iterdir())
        ours, theirs = socket.socketpair()  # theirs stays open in the script and its children
        with ours:
            with theirs:
                done = subprocess.run(
                    [*under, SCRIPT, *arguments],
                    check=False,
                    env=self.env,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=seconds,
                    start_new_session=True,
                    pass_fds=[theirs.fileno()],
                )
            ours.settimeout(5)
            assert ours.recv(1) == b"", "a child goes on"
        assert done.returncode == -signal.SIGKILL or set(self.temporary.iterdir()) == files
        assert SECRET not in done.stdout + done.stderr
        assert f"{SCRIPT.name}: line" not in done.stderr, "bash complains"
        starts = [line.partition(":")[0] for line in done.stderr.splitlines()]
        assert starts.count("error") == (done.returncode > 0)
        assert starts.count("hint") <= starts.count("error")
        return done


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize(
    ("answers", "updates", "said"),
    [
        ([GOOD], 0, "nothing to restore"),
        ([LOW, UPDATED, UPDATING, GOOD], 1, "is UPDATING"),
        ([state("9/1"), UPDATED, GOOD], 1, ""),
        ([UPDATING, UPDATING, LOW, UPDATED, GOOD], 1, "is UPDATING"),
        ([state("5/5", "UPDATING"), LOW, UPDATED, GOOD], 1, ""),
        ([state("1/1", "CREATING"), GOOD], 0, "is CREATING"),
        ([LOW, IN_USE, UPDATING, LOW, UPDATED, GOOD], 2, "somebody else"),
        ([LOW, UNCHANGED, GOOD], 1, ""),
        ([LOW, UNCHANGED_LOCAL, GOOD], 1, ""),
        ([LOW, UPDATED, LOW, UNCHANGED, GOOD], 2, ""),
        ([WARNING + LOW + WARNING, UPDATED, GOOD], 1, ""),
    ],
)
def test_ends_with_the_capacity_restored(
    world: World, answers: list[str], updates: int, said: str
) -> None:
    world.script_aws(*answers)
    done = world.run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("before: ")
    assert done.stdout.splitlines()[1:] == ["after:  5 RCU / 5 WCU"]
    assert said in done.stderr
    assert len(set(done.stderr.splitlines())) == len(done.stderr.splitlines()), "said twice"
    assert len(world.calls()) == len(answers)
    assert world.calls().count("update-table") == updates


def test_shows_global_indexes_and_leaves_on_demand_tables(world: World) -> None:
    world.script_aws(
        state("5/5", more="by-mode 1 RCU / 2 WCU, by-day 3 RCU / 4 WCU"),
        state("0/0", mode="PAY_PER_REQUEST"),
    )
    assert "by-mode 1 RCU / 2 WCU, by-day 3 RCU / 4 WCU\n" in world.run().stdout
    assert world.run().stdout.endswith("on-demand: nothing to restore\n")
    assert world.calls() == ["describe-table", "describe-table"]


def denial(name: str, message: str) -> str:
    return refusal(name, message, "DescribeTable", 255)


@pytest.mark.parametrize(
    ("answers", "error", "hint"),
    [
        ([failure(CREDENTIALS, 255)], "no AWS credentials", f"aws configure, or {LAB}"),
        ([failure(f"\naws: [ERROR]: {CREDENTIALS}", 253)], "no AWS credentials", LAB),
        ([failure(REGION, 255)], "no AWS region", f"AWS_DEFAULT_REGION=us-east-1, or {LAB}"),
        ([failure(CONNECT, 255)], "https://x.y/", "network"),
        ([failure(CONNECT_TIMEOUT, 255)], "https://x.y/", "network"),
        ([failure("\nThe config profile (nope) could not be found", 255)], "profile (nope)", ""),
        ([denial("ExpiredTokenException", "The token is expired")], "have expired", "renew"),
        ([failure(SSO, 255)], "have expired", "renew"),
        ([denial("AccessDeniedException", USER)], "denied", "dynamodb:DescribeTable"),
        ([LOW, refusal("AccessDeniedException", USER)], "denied", "dynamodb:UpdateTable"),
        ([denial("ResourceNotFoundException", "T")], "no table GameLeaderboard", "region"),
        ([LOW, LIMIT], "Next decrease can be made at Monday", "27 a UTC day"),
        ([denial("InternalServerError", f"Sorry\n{SECRET}")], "(InternalServerError)", ""),
        ([state("1/1", "DELETING")], "is DELETING", ""),
        ([LOW, UPDATED] + [UPDATING] * 149, "is still UPDATING at 1 RCU / 1 WCU", "again"),
        (["exit 255"], "describe-table failed without a word (exit status 255)", "--debug"),
        ([LOW, "exit 1"], "update-table failed without a word (exit status 1)", "--debug"),
        (["kill -KILL $$"], "describe-table failed without a word (exit status 137)", "--debug"),
        (["true"], "did not tell the state, but: nothing", "--debug"),
        ([printing("Usage:\n  aws FILE")], "the state, but: Usage:   aws FILE", "--debug"),
        ([printing("STATE\tACTIVE")], "the state, but: STATE\tACTIVE", "--debug"),
    ],
)
def test_a_failure_is_one_clear_line(
    world: World, answers: list[str], error: str, hint: str
) -> None:
    world.script_aws(*answers)
    done = world.run()
    assert done.returncode == 1
    said = dict(line.split(": ", 1) for line in done.stderr.splitlines())
    assert error in said["error"]
    assert hint in said.get("hint", "")
    assert ("hint" in said) == bool(hint)
    assert len(world.calls()) == len(answers)


def test_without_aws_on_path(world: World) -> None:
    (world.bin / "bash").symlink_to("/bin/bash")
    world.env["PATH"] = str(world.bin)
    done = world.run()
    assert done.returncode == 1
    assert done.stderr.startswith("error: no aws on PATH\nhint: install")
    assert LAB in done.stderr


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--force"], {}),
        (["A", "B"], {}),
        (["A", "-x"], {}),
        ([], {"READ_CAPACITY_UNITS": "0"}),
        ([], {"READ_CAPACITY_UNITS": "5/5"}),
        ([], {"WRITE_CAPACITY_UNITS": "-1"}),
        ([], {"WRITE_CAPACITY_UNITS": "1.5"}),
    ],
)
def test_wrong_usage_asks_nothing_of_aws(
    world: World, arguments: list[str], variables: dict[str, str]
) -> None:
    world.script_aws()
    world.env |= variables
    assert world.run(*arguments).returncode == 2
    assert not (world.bin / "calls").exists()


def test_help_is_the_manual(world: World) -> None:
    done = world.run("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("restore_capacity.sh [TABLE]\n")
    assert done.stdout.endswith("2 wrong usage, 130 interrupted.\n")
    assert world.run("-h").stdout == done.stdout


def test_arguments_and_variables_reach_aws(world: World) -> None:
    world.script_aws(LOW, UPDATED, state("7/8"))
    world.env |= {"READ_CAPACITY_UNITS": "7", "WRITE_CAPACITY_UNITS": "8"}
    world.env |= {"AWS_ENDPOINT_URL_DYNAMODB": "http://me:word@other:8000", "AWS_ENDPOINT_URL": "x"}
    done = world.run("My Table")
    assert done.returncode == 0
    assert "endpoint: other:8000" in done.stderr
    assert "word@" not in done.stderr
    calls = (world.bin / "calls").read_text().splitlines()
    assert all("--table-name My Table --" in call for call in calls)
    assert all("--endpoint-url http://me:word@other:8000" in call for call in calls)
    assert "--provisioned-throughput ReadCapacityUnits=7,WriteCapacityUnits=8" in calls[1]


def test_killed_in_the_middle_and_run_again(world: World) -> None:
    world.script_aws(LOW, UPDATED, UPDATING, GOOD, sleep='kill -KILL "$PPID"')
    assert world.run().returncode == -signal.SIGKILL
    world.sleep()
    done = world.run()
    assert done.stdout == "before: 1 RCU / 1 WCU\nafter:  5 RCU / 5 WCU\n"
    assert world.calls().count("update-table") == 1


@pytest.mark.parametrize("who", ["-INT 0", '-TERM "$PPID"', '-HUP "$PPID"'])
@pytest.mark.parametrize("where", ["sleep", "aws"])
def test_a_signal_ends_it_at_once(world: World, where: str, who: str) -> None:
    """Ctrl-C, which reaches the whole process group, and signals to the script alone."""
    hang = f"kill {who}; exec /bin/sleep 60"
    world.script_aws(LOW, hang if where == "aws" else UPDATED, sleep=hang)
    done = world.run(seconds=10)
    assert done.returncode == 130
    assert done.stderr == "error: interrupted\nhint: run it again: it goes on from there\n"


def test_without_a_place_for_a_temporary_file(world: World) -> None:
    world.script_aws()
    world.env["TMPDIR"] = "/dev/null"
    done = world.run()
    assert done.returncode == 1
    assert done.stderr.endswith("hint: set TMPDIR to a folder to write in\n")


# From here on the real AWS CLI, of tests/requirements.txt.


@pytest.mark.parametrize(
    ("unset", "error"),
    [
        ("AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY", "no AWS credentials found"),
        ("AWS_DEFAULT_REGION", "no AWS region set"),
        ("", "aws: Could not connect to the endpoint URL"),
    ],
)
def test_real_cli_fails_clearly(world: World, unset: str, error: str) -> None:
    world.env["AWS_ENDPOINT_URL"] = f"http://me:word@127.0.0.1:{free_port()}"
    world.env["AWS_MAX_ATTEMPTS"] = "1"
    for name in unset.split():
        del world.env[name]
    done = world.run()
    assert done.returncode == 1
    assert f"error: {error}" in done.stderr
    assert "word" not in done.stderr


@pytest.mark.parametrize("read", [1, 5, 0])
def test_real_cli_on_the_local_lab(world: World, tmp_path: Path, read: int) -> None:
    log = tmp_path / "requests"
    lab = [sys.executable, HERE / "local_dynamodb.py", "--read-capacity", read, "--items", 25]
    lab += ["--update-seconds", 0.1, "--request-log", log]
    world.sleep("exec /bin/sleep 0.1")
    done = world.run(under=tuple(map(str, lab)))
    assert done.returncode == 0, done.stderr
    last = "on-demand: nothing to restore" if read == 0 else "after:  5 RCU / 5 WCU"
    assert done.stdout.splitlines() == [f"before: {read} RCU / {5 if read else 0} WCU", last]
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(request["outcome"] == "ok" for request in requests)
    assert [r["operation"] for r in requests].count("UpdateTable") == (read == 1)


def test_real_cli_on_dynalite(world: World, engine_client: DynamoDBClient) -> None:
    name = f"restore.{uuid.uuid4().hex}"
    create_table(engine_client, name, index=True)
    engine_client.update_table(
        TableName=name, ProvisionedThroughput={"ReadCapacityUnits": 1, "WriteCapacityUnits": 2}
    )
    world.env["AWS_ENDPOINT_URL_DYNAMODB"] = engine_client.meta.endpoint_url
    world.env["WRITE_CAPACITY_UNITS"] = "6"
    world.sleep()
    done = world.run(name)
    assert done.returncode == 0, done.stderr
    index = "game-mode-index 5 RCU / 5 WCU"
    assert done.stdout == f"before: 1 RCU / 2 WCU; indexes stay: {index}\nafter:  5 RCU / 6 WCU\n"
    table = engine_client.describe_table(TableName=name)["Table"]
    throughput = table["ProvisionedThroughput"]
    assert (throughput["ReadCapacityUnits"], throughput["WriteCapacityUnits"]) == (5, 6)
    assert "nothing to restore" in world.run(name).stderr
    missing = world.run(f"{name}.missing")
    assert missing.returncode == 1
    assert f"error: no table {name}.missing here" in missing.stderr


def test_the_script_is_executable() -> None:
    assert os.access(SCRIPT, os.X_OK)
