"""Interrupt the scripts at random moments, and see how they end.

    python tests/interrupts.py --signals 200

Each script is started in one of the situations below. It gets SIGINT or SIGTERM at a
random moment, and one script of four gets two signals. It has to end within two seconds
and without a traceback. Its status has to be 130, unless it had ended by itself, or the
second signal came at the very end. Saved segments have to be whole. After a single
signal, no .part file may be left.

The exit status is 1 if anything was different. Linux only: /proc tells when a script
is ready for signals.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from games import game_table
from items import ITEMS, instant
from local_dynamodb import serve
from running import start
from tabulate import tabulate

SEGMENTS = 200  # of a scan that saves: some are whole within a second
LIMIT = 2.0  # seconds from the first signal to the end


def hang(number: int, _: object) -> str | None:
    """Answer the first 30 Scans only."""
    return "hang" if number >= 30 else None


# Settings of the local lab
SLOW: dict[str, Any] = {"latency_ms": 100}
STARVED: dict[str, Any] = {"read_capacity": 1, "burst_seconds": 1}
HANGING: dict[str, Any] = {"script": hang}


@dataclass(frozen=True)
class Situation:
    """What a script is in the middle of. FOLDER stands for an empty folder."""

    name: str
    script: str
    lab: dict[str, Any] | None  # None: the endpoint never answers
    output_is_read: bool = True
    statuses: tuple[int, ...] = (130,)
    seconds: float = 1.0  # within which the signal comes


SEQUENTIAL = "sequential_scan.py"
PARALLEL = "parallel_scan.py"
COMPARE = "compare.py"
PACED = "parallel_scan.py --max-rcu 1"
SAVE = f"parallel_scan.py --save FOLDER --total-segments {SEGMENTS} --workers 4"
SITUATIONS = []
for _script in (SEQUENTIAL, PARALLEL, COMPARE):
    SITUATIONS += [
        Situation("connecting", _script, None),
        Situation("reading", _script, SLOW),
        Situation("unanswered", _script, HANGING),
        Situation("throttled", _script, STARVED),
        # It may also have ended by itself.
        Situation("ending", _script, {"items": 100}, statuses=(130, 0), seconds=0.2),
    ]
SITUATIONS += [
    Situation("waiting for a turn", PACED, {}),
    Situation("saving", SAVE, SLOW),
    Situation("saving, unanswered", SAVE, HANGING),
    Situation("saving, throttled", SAVE, STARVED),
    Situation("saving, waiting", f"{SAVE} --max-rcu 1", {}),
    Situation("output not read", f"{PARALLEL} --save -", {}, output_is_read=False),
    Situation("report not read", SEQUENTIAL, {"items": 100}, output_is_read=False),
]


@dataclass
class End:
    """How a script ended. `wrong` says what should have been different."""

    situation: Situation
    signals: list[signal.Signals]
    moment: float
    status: int
    seconds: float
    wrong: list[str]


@contextmanager
def endpoint(lab: dict[str, Any] | None) -> Iterator[Any]:
    """A local lab with these settings, or a port that never answers."""
    if lab is not None:
        with serve(instant(**lab)) as served:
            yield served
        return
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        yield SimpleNamespace(endpoint_url=url)


@contextmanager
def full_pipe() -> Iterator[int]:
    """A pipe whose reader has stopped reading. Yields the end to write to."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (4096, 1):
        try:
            while True:
                os.write(writer, b" " * size)
        except BlockingIOError:
            pass
    os.set_blocking(writer, True)
    try:
        yield writer
    finally:
        os.close(writer)
        os.close(reader)


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    """Wait until a script handles SIGTERM, or has ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            # The mask has a bit for each signal, the lowest one for signal 1.
            if line.startswith("SigCgt:"):
                mask = int(line.split()[1], 16)
                if mask & (1 << (signal.SIGTERM - 1)):
                    return
        time.sleep(0.005)
    assert process.poll() is not None, "it does not handle SIGTERM"


def interrupt(
    situation: Situation, signals: list[signal.Signals], moment: float, limit: float
) -> End:
    """Start a script, interrupt it, and look at what is left."""
    with ExitStack() as held:
        at = held.enter_context(endpoint(situation.lab))
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        written = held.enter_context(tempfile.TemporaryFile())
        output = written.fileno()
        if not situation.output_is_read:
            output = held.enter_context(full_pipe())
        command = f"{situation.script} --page-size 5".replace("FOLDER", str(folder))
        process = start(command, at, stdout=output, stderr=written.fileno())
        try:
            wait_until_ready(process)
            time.sleep(moment)
            sent = time.monotonic()
            process.send_signal(signals[0])
            for number in signals[1:]:
                time.sleep(moment / 10)
                process.send_signal(number)
            process.wait(60)
            seconds = time.monotonic() - sent
        finally:
            process.kill()
        written.seek(0)
        text = written.read().decode(errors="replace")
        end = End(situation, signals, moment, process.returncode, seconds, [])
        end.wrong += what_is_wrong(end, text, limit)
        end.wrong += damaged_segments(folder)
        if len(signals) == 1:
            end.wrong += [f"left {path.name}" for path in folder.glob("*.part")]
        return end


def what_is_wrong(end: End, text: str, limit: float) -> Iterator[str]:
    """What is wrong with the way a script ended, and with the text that it wrote."""
    # A second signal may come when Python is about to end. Then it ends Python.
    ended_by_second = len(end.signals) == 2 and -end.status in end.signals
    if end.status not in end.situation.statuses and not ended_by_second:
        yield f"status {end.status}"
    if end.seconds > limit:
        yield "too late"
    if "Traceback" in text or "Exception ignored" in text:
        yield text


def damaged_segments(folder: Path) -> Iterator[str]:
    """The saved segments that do not have as many lines as the table has items."""
    for path in folder.glob("*.jsonl"):
        segment = int(path.stem.partition("-")[2])
        first = game_table(ITEMS).start_of(segment, SEGMENTS)
        end = game_table(ITEMS).start_of(segment + 1, SEGMENTS)
        lines = path.read_bytes().count(b"\n")
        if lines != end - first:
            yield f"{path.name} has {lines} of {end - first} items"


def campaign(count: int, seed: int, limit: float = LIMIT) -> list[End]:
    """Interrupt so many scripts, in all situations in turn, two at a time."""
    chance = random.Random(seed)
    with ThreadPoolExecutor(2) as pool:
        jobs = []
        for situation in islice(cycle(SITUATIONS), count):
            how_many = chance.choice([1, 1, 1, 2])
            signals = chance.choices([signal.SIGINT, signal.SIGTERM], k=how_many)
            moment = chance.uniform(0, situation.seconds)
            jobs.append(pool.submit(interrupt, situation, signals, moment, limit))
        return [job.result() for job in jobs]


def table(ends: list[End]) -> str:
    """A row for each situation."""
    rows = []
    for situation in SITUATIONS:
        these = [end for end in ends if end.situation is situation]
        if these:
            script = situation.script.partition(" ")[0]
            statuses = sorted({end.status for end in these})
            slowest = f"{max(end.seconds for end in these):.2f} s"
            wrong = sum(bool(end.wrong) for end in these)
            name = f"{script}, {situation.name}"
            rows.append([name, len(these), statuses, slowest, wrong])
    headers = ["in the middle of", "scripts", "statuses", "slowest end", "wrong"]
    return tabulate(rows, headers)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--signals", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, help="default: drawn, and printed")
    args = parser.parse_args()
    seed = random.randrange(1_000_000) if args.seed is None else args.seed
    print(f"--seed {seed}", flush=True)
    ends = campaign(args.signals, seed)
    print(table(ends))
    wrong = [end for end in ends if end.wrong]
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
