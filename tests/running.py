"""Running the scripts as a user does, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from local_dynamodb import lab_environment

BUNDLE = Path(__file__).parent.parent
Ended = subprocess.CompletedProcess[str]


def run(endpoint_url: str, script: str, *flags: str, **env: str) -> Ended:
    """Run a script of the bundle to its end: run(url, "compare.py", "--runs", "2")."""
    return subprocess.run(
        [sys.executable, BUNDLE / script, *flags],
        env={**lab_environment(endpoint_url), **env},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def result(endpoint_url: str, script: str, *flags: str) -> dict[str, Any]:
    """What a script that succeeds says with --output json."""
    ended = run(endpoint_url, script, *flags, "--output", "json")
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer
