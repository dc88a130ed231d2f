"""Running the scripts as a user does, in a process of their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_dynamodb import lab_environment

ROOT = Path(__file__).parent.parent
PIPE = subprocess.PIPE


@dataclass
class Ended:
    """How a command ended: its exit status, and what it wrote."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """What a command that succeeded wrote with --output json."""
        assert self.status == 0, self.err
        return json.loads(self.out)


def assert_failed(ended: Ended, status: int, error: str, hint: str = "") -> None:
    """Assert that a script failed with an error line, and with this hint or none.

    `error` and `hint` are in these lines. Wrong usage is explained before them. No
    message has the tests' password in it.
    """
    lines = ended.err.splitlines()
    assert (ended.status, ended.out) == (status, ""), ended.err
    assert "hunter2" not in ended.err
    if hint:
        assert re.match(f"hint: .*{re.escape(hint)}", lines.pop())
    assert re.match(f"(.*: )?error: .*{re.escape(error)}", lines.pop())
    assert lines == [] or lines[0].startswith("usage: ")


def shell(line: str, at: Any, **env: str) -> Ended:
    """Run a line of the shell in the folder of the scripts. There is no terminal.

    `at` is what has an `endpoint_url`. The script in the line will use that.
    """
    python = f'python() {{ "{sys.executable}" "$@"; }}'  # whatever PATH says
    ended = subprocess.run(
        ["/bin/sh", "-c", f"{python}; {line}"],
        cwd=ROOT,
        env={**environment(at), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        start_new_session=True,
        timeout=120,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def start(
    command: str, at: Any, stdout: int = PIPE, stderr: int = PIPE
) -> subprocess.Popen[str]:
    """Start a script: start("compare.py --runs 2", at=lab)."""
    return subprocess.Popen(
        [sys.executable, *command.split()],
        cwd=ROOT,
        env=environment(at),
        stdout=stdout,
        stderr=stderr,
        encoding="utf-8",
    )


def environment(at: Any) -> dict[str, str]:
    # Python's streams have buffers, unless this variable of the user's says no.
    ours = {"PYTHONUNBUFFERED": "", "COLUMNS": "80"}
    return {**lab_environment(at.endpoint_url), **ours}
