"""Interrupt the scripts at random moments, and see how they end.

    python tests/interrupts.py --signals 200

Each script is started in one of the situations below. There it would go on for a long
time. It gets SIGINT or SIGTERM at a random moment, and every fourth script gets two
signals. It has to end within two seconds, with status 130 and without a traceback.
Saved segments have to be whole. After a single signal, no .part file may be left.

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
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from games import GameTable, game_table
from items import instant
from local_dynamodb import Settings, lab_environment, serve
from running import BUNDLE
from tabulate import tabulate

ITEMS = 5000
PAGE = 20
SEGMENTS = 60  # of a scan that saves: some are whole within a second
LIMIT = 2.0  # seconds from the first signal to the end
AT_A_TIME = 2
ALL = ("sequential_scan.py", "parallel_scan.py", "compare.py")
PARALLEL = ("parallel_scan.py",)
COMPARE = ("compare.py",)


@dataclass(frozen=True)
class Situation:
    """What a script is in the middle of. {folder} in its flags is an empty folder."""

    scripts: tuple[str, ...] = ALL
    flags: str = ""
    lab: Settings | None = None  # None: the endpoint never answers
    output_is_read: bool = True
    seconds: float = 1.0  # within which the signal comes


def hang(number: int, _: object) -> str | None:
    """Answer the first 30 Scans only."""
    return "hang" if number >= 30 else None


SLOW = instant(ITEMS, latency_ms=20)
THROTTLED = instant(ITEMS, read_capacity=1, burst_seconds=1)
HANGING = instant(ITEMS, script=hang)
SAVE = f"--save {{folder}} --total-segments {SEGMENTS} --workers 4"
SITUATIONS = {
    "connecting": Situation(),
    "reading": Situation(lab=SLOW),
    "unanswered": Situation(lab=HANGING),
    "throttled": Situation(lab=THROTTLED),
    "waiting for a turn": Situation(PARALLEL, "--max-rcu 1", instant(ITEMS)),
    "saving": Situation(PARALLEL, SAVE, SLOW),
    "saving, unanswered": Situation(PARALLEL, SAVE, HANGING),
    "saving, throttled": Situation(PARALLEL, SAVE, THROTTLED),
    "saving, waiting": Situation(PARALLEL, f"{SAVE} --max-rcu 1", instant(ITEMS)),
    "output not read": Situation(PARALLEL, "--save -", instant(ITEMS), False),
    "report not read": Situation(COMPARE, "", instant(100), False),
    "ending": Situation(lab=instant(100), seconds=0.2),
}


@dataclass
class End:
    """How a script ended. `wrong` says what should have been different."""

    situation: str
    script: str
    signals: list[str]
    moment: float
    status: int
    seconds: float
    wrong: list[str] = field(default_factory=list)


@contextmanager
def silent_endpoint() -> Iterator[str]:
    """An endpoint that accepts connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=500) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


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


def wait_until_ready(pid: int) -> None:
    """Wait until a script handles SIGTERM."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            # The mask has a bit for each signal, the lowest one for signal 1.
            if line.startswith("SigCgt:"):
                mask = int(line.split()[1], 16)
                if mask & 1 << (signal.SIGTERM - 1):
                    return
        time.sleep(0.005)
    raise TimeoutError(f"process {pid} does not handle SIGTERM")


def interrupted(
    name: str, script: str, signals: list[signal.Signals], moment: float, url: str
) -> End:
    """Start a script, interrupt it, and look at what is left."""
    situation = SITUATIONS[name]
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        said = held.enter_context(tempfile.TemporaryFile())
        output = said.fileno()
        if not situation.output_is_read:
            output = held.enter_context(full_pipe())
        flags = situation.flags.format(folder=folder).split()
        process = subprocess.Popen(
            [sys.executable, BUNDLE / script, "--page-size", str(PAGE), *flags],
            env=lab_environment(url),
            stdout=output,
            stderr=output,
        )
        try:
            wait_until_ready(process.pid)
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
        said.seek(0)
        text = said.read().decode(errors="replace")
        names = [number.name for number in signals]
        end = End(name, script, names, moment, process.returncode, seconds)
        ended_by_itself = end.status == 0 and "Total execution time" in text
        # A second signal may come when Python is about to end. Then it ends Python.
        ended_by_second = len(signals) == 2 and -end.status in signals
        if end.status != 130 and not ended_by_itself and not ended_by_second:
            end.wrong.append(f"status {end.status}")
        if end.seconds > LIMIT:
            end.wrong.append("too late")
        if "Traceback" in text or "Exception" in text:
            end.wrong.append(text)
        if len(signals) == 1:
            end.wrong += [f"left {path.name}" for path in folder.glob("*.part")]
        end.wrong += damaged_segments(folder)
        return end


def damaged_segments(folder: Path) -> Iterator[str]:
    """The saved segments that do not have as many lines as the table has items."""
    table: GameTable = game_table(ITEMS)
    for path in folder.glob("*.jsonl"):
        segment = int(path.stem.partition("-")[2])
        first, end = table.bounds(segment, SEGMENTS)
        lines = path.read_bytes().count(b"\n")
        if lines != end - first:
            yield f"{path.name} has {lines} of {end - first} items"


def campaign(count: int, seed: int) -> list[End]:
    """Interrupt so many scripts, in all situations in turn."""
    chance = random.Random(seed)
    with ExitStack() as served:
        silent = served.enter_context(silent_endpoint())
        urls = {}
        for name, situation in SITUATIONS.items():
            urls[name] = silent
            if situation.lab:
                lab = served.enter_context(serve(situation.lab))
                urls[name] = lab.endpoint_url
        pool = served.enter_context(ThreadPoolExecutor(AT_A_TIME))
        jobs = []
        for name in islice(cycle(SITUATIONS), count):
            situation = SITUATIONS[name]
            script = chance.choice(situation.scripts)
            how_many = chance.choice([1, 1, 1, 2])
            signals = chance.choices([signal.SIGINT, signal.SIGTERM], k=how_many)
            moment = chance.uniform(0, situation.seconds)
            url = urls[name]
            jobs.append(pool.submit(interrupted, name, script, signals, moment, url))
        return [job.result() for job in jobs]


def table(ends: list[End]) -> str:
    """A row for each situation."""
    rows = []
    for name in SITUATIONS:
        these = [end for end in ends if end.situation == name]
        if these:
            statuses = sorted({end.status for end in these})
            slowest = max(end.seconds for end in these)
            wrong = sum(bool(end.wrong) for end in these)
            rows.append([name, len(these), statuses, f"{slowest:.2f} s", wrong])
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
