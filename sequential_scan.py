#!/usr/bin/env python3
"""Scan a whole DynamoDB table, one page after another, and measure it.

    python sequential_scan.py --table-name GameLeaderboard

The page loop is `scan_pages` in common.py: read that next.
"""

from __future__ import annotations

import argparse
import json
import sys

import common
from common import Client, Metrics, Progress, Request, scan_pages, timed


def sequential_scan(client: Client, request: Request) -> Metrics:
    """Read the whole table, one page after another. Return what was measured.

    Ctrl-C ends it: then the metrics are not `complete`. Raises ScanError, or an
    error of botocore's.
    """
    metrics = Metrics()
    progress = Progress()
    try:
        with timed(metrics):
            for page in scan_pages(client, request, metrics):
                # Do what you like with page["Items"]: json.loads(item) makes a dict of
                # an item. This lab only counts and measures.
                if progress.is_due():
                    progress.show(metrics)
            metrics.complete = True
    except KeyboardInterrupt:
        pass  # what was read until now is still reported
    return metrics


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Scan a DynamoDB table, one page after another, and measure it.",
        epilog="example: python sequential_scan.py --table-name GameLeaderboard",
        allow_abbrev=False,
    )
    common.add_scan_flags(parser)
    args = parser.parse_args()
    client = common.connect(args.region, args.profile, args.endpoint_url)
    metrics = sequential_scan(client, common.request_from(args))
    if args.output == "json":
        result = common.metrics_json(
            metrics,
            segments={0: metrics},
            mode="sequential",
            table_name=args.table_name,
            total_segments=1,
            workers=1,
        )
        text = json.dumps(result)
    else:
        text = common.metrics_table(metrics)
    return common.print_result(text, metrics.complete)


if __name__ == "__main__":
    sys.exit(common.run_script(main))
