"""Running the scripts as a user does, in a process of their own, against some endpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local_dynamodb import HIDDEN, settings_for_aws

BUNDLE = Path(__file__).parent.parent
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # which interrupt a script


def environment(endpoint_url: str, **more: str) -> dict[str, str]:
    """What the local lab gives its command: this endpoint, and nothing of the user's."""
    mine = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    return mine | settings_for_aws(endpoint_url) | more


Ended = subprocess.CompletedProcess[str]


def run(endpoint_url: str, script: str, *flags: str, **env: str) -> Ended:
    """Run a script of the bundle to its end."""
    return subprocess.run(
        [sys.executable, BUNDLE / script, *flags],
        env=environment(endpoint_url, **env),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def result(endpoint_url: str, script: str, *flags: str) -> dict[str, Any]:
    """What a script that succeeds says with --output json."""
    ended = run(endpoint_url, script, *flags, "--output", "json")
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


@contextmanager
def heeded_signals() -> Iterator[None]:
    """Children started here heed the SIGNALS, even if this is a background job, which may not."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
