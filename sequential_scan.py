"""Scan a whole DynamoDB table, one page after another, and measure it.

python sequential_scan.py [--table-name NAME] [--save FILE]; --help lists every flag.
Read `Scan.pages` in common.py next: this runs it once.
"""

from __future__ import annotations

import argparse
import functools

import common
from common import OnPage, Scan, ScanMetrics, SegmentMetrics


def sequential_scan(scan: Scan, collect: OnPage = None) -> ScanMetrics:
    """Run the page loop once, and give each page's result to `collect`.

    Raises ScanError, and botocore's errors; an interrupt leaves the metrics incomplete."""
    metrics = ScanMetrics(table_name=scan.request["TableName"], segments=[SegmentMetrics()])
    metrics.measure(scan.opening(), scan.pages(), collect)
    return metrics


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Scan a table, page after page, and measure it.",
        epilog="example: python sequential_scan.py --table-name GameLeaderboard",
        allow_abbrev=False,
    )
    common.add_scan_flags(parser)
    args = parser.parse_args(argv)
    scan = common.scan_from(args)
    metrics = common.saved(args.save, functools.partial(sequential_scan, scan))
    return common.report(metrics, args)


if __name__ == "__main__":
    raise SystemExit(common.status_of(main))
