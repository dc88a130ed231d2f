"""Interrupts at random moments: does every script end at once, with 130, and leave nothing behind?

python tests/interrupts.py [--signals 200] [--seed 0]

Each time a script is started in one of the situations below, in which it would go on for ever or
nearly so, and gets SIGINT, SIGTERM or SIGHUP at a random moment after its imports: within its first
second, or, where it ends by itself, within the time that takes. It has to end within two seconds,
with status 130 (or 0, if its result was out already), without a traceback; the file that it was to
replace has to be whole, with nothing beside it. Linux only: /proc tells when the imports are over.
Ends with 1 if anything is otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from items import instant
from local_dynamodb import serve
from running import BUNDLE, SIGNALS, environment, heeded_signals
from tabulate import tabulate

ONE_SCAN = ("sequential_scan.py", "parallel_scan.py")
SCRIPTS = (*ONE_SCAN, "compare.py")
LIMIT = 2.0  # seconds from the signal to the end
LANES = 4  # scripts at a time
BEFORE = "from before\n"
PIPE_SIZE = 4096  # of pipes that nobody reads: the least that Linux gives
SET_PIPE_SIZE = 1031  # fcntl.F_SETPIPE_SZ, which Python has from 3.10 on


@dataclass(frozen=True)
class Situation:
    """What a script is in the middle of. FILE in its flags is a file that exists, FIFO a pipe."""

    flags: str = ""
    model: dict[str, Any] = field(default_factory=dict)  # settings of the local lab
    answers: bool = True  # else the endpoint accepts connections, and that is all
    output_is_read: bool = True
    scripts: tuple[str, ...] = SCRIPTS
    seconds: float = 1.0  # within which the signal comes


def hang(ordinal: int, _: object) -> str | None:
    return "hang" if ordinal >= 8 else None


SLOW = {"items": 5000, "latency_ms": 20}
SITUATIONS = {
    "connecting": Situation(answers=False),
    "reading": Situation(model=SLOW),
    "unanswered": Situation(model={"script": hang}),
    "throttled": Situation(model={"read_capacity": 1, "burst_seconds": 1}),
    "pacing": Situation("--max-rcu 1"),
    "saving": Situation("--save FILE", SLOW, scripts=ONE_SCAN),
    "saving, throttled": Situation(
        "--save FILE", {"read_capacity": 1, "burst_seconds": 1}, scripts=ONE_SCAN
    ),
    "output not read": Situation("--save -", output_is_read=False, scripts=ONE_SCAN),
    "FIFO not read": Situation("--save FIFO", scripts=ONE_SCAN),
    "FIFO not opened": Situation("--save FIFO", scripts=ONE_SCAN),
    "report not read": Situation(
        "--total-segments 90 --output json", output_is_read=False, scripts=SCRIPTS[1:]
    ),
    "ending": Situation(model={"items": 100}, seconds=0.2),
}


class Ended(NamedTuple):
    """How a script ended; `wrong` says what ought to be otherwise."""

    situation: str
    script: str
    number: int  # of the signal
    moment: float  # at which it came
    status: int
    seconds: float
    wrong: str


@contextlib.contextmanager
def silent_endpoint() -> Iterator[str]:
    """Accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=500) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def wait_for_handlers(pid: int) -> None:
    """Wait until a process has a handler for SIGTERM: a script's imports are over then."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        caught = next((line for line in lines if line.startswith("SigCgt")), "SigCgt: 0")
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)
    raise TimeoutError(f"process {pid} has installed no handler")


@contextlib.contextmanager
def surroundings(name: str) -> Iterator[Path]:
    """A folder with the FILE that exists, and the FIFO, held open where it is not to be read."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as held:
        path = Path(folder)
        (path / "items").write_text(BEFORE)
        os.mkfifo(path / "fifo")
        if name == "FIFO not read":
            held.callback(os.close, os.open(path / "fifo", os.O_RDWR))  # a reader that never reads
        yield path


def interrupted(name: str, script: str, number: int, moment: float, url: str) -> Ended:
    """Start a script in a situation, send it the signal at that moment, and see how it ends."""
    situation = SITUATIONS[name]
    with surroundings(name) as folder, tempfile.TemporaryFile() as said:
        flags = situation.flags.replace("FILE", f"{folder}/items").replace("FIFO", f"{folder}/fifo")
        process = subprocess.Popen(
            [sys.executable, BUNDLE / script, "--page-size", "20", *flags.split()],
            env=environment(url),
            # What is not read is one pipe for both, as with 2>&1 | less.
            stdout=said if situation.output_is_read else subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            if process.stdout:
                fcntl.fcntl(process.stdout, SET_PIPE_SIZE, PIPE_SIZE)
            wait_for_handlers(process.pid)
            time.sleep(moment)
            sent = time.monotonic()
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LIMIT * 5)
            seconds = time.monotonic() - sent
        finally:
            process.kill()
            unread, _ = process.communicate()
        said.seek(0)
        text = (said.read() + (unread or b"")).decode(errors="replace")
        wrong = "; ".join(wrongs(process.returncode, seconds, text, folder))
        return Ended(name, script, number, moment, process.returncode, seconds, wrong)


def wrongs(status: int, seconds: float, text: str, folder: Path) -> Iterator[str]:
    """What is not as it ought to be."""
    left = sorted(each.name for each in folder.iterdir())
    if status != 130 and not (status == 0 and "Total execution time" in text):
        yield f"status {status}"
    if seconds > LIMIT:
        yield "too late"
    if "Traceback" in text or "Exception" in text:
        yield f"said {text[-2000:]}"
    if left != ["fifo", "items"]:
        yield f"left {left}"
    if (folder / "items").read_text() != BEFORE:
        yield "FILE is not as before"


def campaign(signals: int, seed: int = 0) -> list[Ended]:
    """So many scripts, each interrupted once, in all situations in turn."""
    chance = random.Random(seed)
    names = itertools.cycle(SITUATIONS)
    with contextlib.ExitStack() as running:
        running.enter_context(heeded_signals())
        urls = {}
        for name, situation in SITUATIONS.items():
            if situation.answers:
                model = instant(**{"items": 20_000, **situation.model})
                urls[name] = running.enter_context(serve(model)).endpoint_url
            else:
                urls[name] = running.enter_context(silent_endpoint())
        lanes = running.enter_context(ThreadPoolExecutor(LANES))
        jobs = []
        for name in itertools.islice(names, signals):
            script = chance.choice(SITUATIONS[name].scripts)
            number = chance.choice(SIGNALS)
            moment = chance.uniform(0, SITUATIONS[name].seconds)
            jobs.append(lanes.submit(interrupted, name, script, number, moment, urls[name]))
        return [job.result() for job in jobs]


def table(ends: list[Ended]) -> str:
    """A row a situation."""
    rows = []
    for name in SITUATIONS:
        these = [end for end in ends if end.situation == name]
        statuses = Counter(end.status for end in these)
        shown = ", ".join(f"{status}: {statuses[status]}" for status in sorted(statuses))
        slowest = max((end.seconds for end in these), default=0.0)
        wrong = sum(end.wrong != "" for end in these)
        rows.append([name, len(these), shown, f"{slowest:.2f} s", wrong])
    heads = ["in the middle of", "signals", "status", "slowest end", "wrong"]
    return tabulate(rows, headers=heads, disable_numparse=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Interrupt the scripts at random moments.")
    parser.add_argument("--signals", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    ends = campaign(args.signals, args.seed)
    print(table(ends))
    wrong = [end for end in ends if end.wrong]
    print(f"\n{len(ends)} signals, {len(wrong)} wrong ends")
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
