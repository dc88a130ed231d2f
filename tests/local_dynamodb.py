"""The lab's table GameLeaderboard on this machine, without an AWS account.

    python tests/local_dynamodb.py --items 200000 --read-capacity 0 compare.py

This serves the table on 127.0.0.1, in DynamoDB's own protocol. It runs the
COMMAND that follows the options, and exits with COMMAND's exit status.
COMMAND's environment leads boto3 and the AWS CLI to the table: endpoint, region
and dummy credentials are set, and your own AWS_* variables are removed.
"python", or a COMMAND that ends in .py, runs with this very interpreter.
Without COMMAND, the lines that set another terminal up are printed, and the
table is served until Ctrl-C.

It is a model of a table under load, not a database. It answers DescribeTable,
UpdateTable and Scan. It refuses what it does not model, for instance filters.

Data      Games of players, 25 a player, the same on every start. A scan of
          2,000 items costs 50.0 RCU, a strongly consistent one 100.0.
Order     By a hash of the partition key, the same as in dynalite, the emulator
          that the tests use. A segment is a range of these hashes.
Pages     A page ends with the item that reaches 1 MB, or after Limit items.
Time      Every answer takes --latency-ms. A page takes --ms-per-mb more for
          each MB it reads.
Capacity  The table has --read-capacity RCU a second. It saves what is not used,
          for up to --burst-seconds (1 at least). It starts with all of that
          saved. A Scan is admitted while any capacity is left, even if its page
          costs more than that (an assumption). UpdateTable takes
          --update-seconds. A table on demand, --read-capacity 0, never
          throttles.
Faults    With probability --fault-rate, a Scan meets one of five faults.
          "throttle" and "500" refuse it, and it costs nothing. "reset",
          "truncated" and "bad-crc" spoil the answer of a request that has
          been paid for. Requests that come in the same order meet the same
          faults, if --seed is the same.
Log       --request-log gets a line of JSON for each request: time (when it was
          admitted or refused, in seconds since the start), operation, segment
          (null without one), items, rcu (what the request paid), and outcome:
          "ok", the name of the error (of "throttle", too), "500", "reset",
          "truncated" or "bad-crc".
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from model import TABLE_NAME, Lab, Settings

# --- HTTP -----------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """A client's connection. It stays open for the client's next request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # send the end of a page at once
    server: Server

    def do_POST(self) -> None:
        arrived = time.monotonic()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
        answer = self.server.lab.answer(operation, body)
        if answer.outcome == "hang":
            self.rfile.read(1)  # returns when the client closes the connection
            self.close_connection = True
            return
        crc32 = zlib.crc32(answer.body)
        if answer.outcome == "bad-crc":
            crc32 += 1
        ready = arrived + self.server.lab.seconds(answer)
        time.sleep(max(0.0, ready - time.monotonic()))
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("x-amz-crc32", str(crc32))
        self.end_headers()
        if answer.outcome not in ("reset", "truncated"):
            self.wfile.write(answer.body)
            return
        self.wfile.write(answer.body[: len(answer.body) // 2])
        self.close_connection = True
        if answer.outcome == "reset":
            # To linger for 0 seconds means: close with an RST instead of a FIN.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the lab has a log of its own."""


class Server(ThreadingHTTPServer):
    """A thread for each connection, on 127.0.0.1 only."""

    request_queue_size = 1024  # connections that may wait until they are accepted

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        super().__init__(("127.0.0.1", lab.settings.port), Handler)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection. The base class sends a FIN first, even before an RST."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say why a request got no answer. That a client is gone is no error."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            warn(f"error: a request failed: {error!r}")


@contextmanager
def serve(settings: Settings) -> Iterator[Lab]:
    """Serve the table in this process. The `with` block's end closes the port.

    Raises OSError if the port is taken or the request log cannot be written.
    """
    lab = Lab(settings)
    server = Server(lab)
    lab.endpoint_url = f"http://127.0.0.1:{server.server_address[1]}"
    if settings.request_log:
        settings.request_log.write_text("")  # an earlier one is replaced
    # serve_forever looks every 0.05 seconds whether it has to stop.
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    try:
        yield lab
    finally:
        server.shutdown()
        server.server_close()


# --- Command line ---------------------------------------------------------------------


def settings_for_aws(endpoint_url: str) -> dict[str, str]:
    """The environment variables that lead boto3 and the AWS CLI to the lab."""
    return {
        "AWS_ENDPOINT_URL_DYNAMODB": endpoint_url,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "no_proxy": "127.0.0.1",  # in Python, it goes before NO_PROXY
    }


def lab_environment(endpoint_url: str) -> dict[str, str]:
    """The environment of a program that uses the lab: no AWS setting is the user's."""
    users = os.environ.items()
    others = {name: value for name, value in users if not name.startswith("AWS_")}
    return {**others, **settings_for_aws(endpoint_url)}


# What removes the user's AWS_* variables in sh, bash and zsh. AWS_PROFILE is named
# because zsh's unset needs at least one name.
UNSET = r"unset AWS_PROFILE $(env | sed -n 's/^\(AWS_[A-Za-z0-9_]*\)=.*/\1/p')"


def warn(line: str) -> None:
    print(line, file=sys.stderr)


def serve_until_ctrl_c(endpoint_url: str) -> int:
    """Print what to paste into another terminal. Wait for Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        print(UNSET)
        for name, value in settings_for_aws(endpoint_url).items():
            print(f"export {name}={value}")
        sys.stdout.flush()
        warn(f"Serving {TABLE_NAME} until Ctrl-C: paste this into another terminal")
        while True:
            time.sleep(60)
    except KeyboardInterrupt:
        return 0


def run(command: list[str], endpoint_url: str) -> int:
    """Run COMMAND. Returns its status, 128 + n after signal n, 127 if it cannot run."""
    name = command[0]
    if name == "python":
        command = [sys.executable, *command[1:]]
    elif name.endswith(".py"):
        command = [sys.executable, *command]
    # Ctrl-C reaches COMMAND, too, and COMMAND decides what to do. So wait for it. (This
    # is a handler and not SIG_IGN, because COMMAND would inherit SIG_IGN.)
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        child = subprocess.Popen(command, env=lab_environment(endpoint_url))
    except OSError as error:
        warn(f"error: cannot run {name}: {error.strerror}")
        return 127
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    status = child.wait()
    return status if status >= 0 else 128 - status


def parse_arguments() -> tuple[Settings, list[str]]:
    """The settings, and COMMAND with its own arguments."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] [COMMAND ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(**vars(Settings()))  # `script` has no option, but stays None
    add = partial(parser.add_argument, metavar="N")
    default = "(%(default)g)"
    add("--items", type=int, help=f"items in the table {default}")
    add("--latency-ms", type=float, help=f"fixed part of an answer's time {default}")
    add("--ms-per-mb", type=float, help=f"time to read 1 MB of items {default}")
    add("--read-capacity", type=int, help=f"RCU a second, 0: on demand {default}")
    add("--burst-seconds", type=float, help=f"how much unused is saved {default}")
    add("--update-seconds", type=float, help=f"how long UpdateTable takes {default}")
    add("--fault-rate", type=float, help=f"how likely a fault is {default}")
    add("--seed", type=int, help=f"which faults are drawn {default}")
    add("--port", type=int, help=f"0: any free one {default}")
    add("--request-log", type=Path, metavar="FILE", help="a line of JSON a request")
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    command = options.pop("command")
    if command[:1] == ["--"]:
        command = command[1:]
    for name, value in options.items():
        if isinstance(value, (int, float)) and not value >= 0:  # nan, too
            parser.error(f"--{name.replace('_', '-')}: {value:g} is not 0 or more")
    if options["fault_rate"] > 1:
        parser.error(f"--fault-rate: {options['fault_rate']:g} is not from 0 to 1")
    return Settings(**options), command


def main() -> int:
    settings, command = parse_arguments()
    try:
        with serve(settings) as lab:
            if command:
                return run(command, lab.endpoint_url)
            return serve_until_ctrl_c(lab.endpoint_url)
    except (OSError, OverflowError) as error:  # OverflowError: --port 70000
        warn(f"error: {error}")
        return 1
    except KeyboardInterrupt:  # while the items are made
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
