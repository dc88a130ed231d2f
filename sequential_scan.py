"""Scan a whole DynamoDB table, one page after another, and measure it.

python sequential_scan.py [--table-name NAME] [--save FILE]; --help lists every flag.
Read `Scan.pages` in common.py next: this runs it once.
"""

from __future__ import annotations

import common
from common import Scan, ScanMetrics, SegmentMetrics


def sequential_scan(scan: Scan) -> ScanMetrics:
    """Run the page loop once. Raises ScanError; an interrupt leaves the metrics incomplete."""
    metrics = ScanMetrics(mode="sequential", table_name=scan.request["TableName"])
    everything = SegmentMetrics()
    with metrics.measured(scan) as account:
        for page in scan.pages():
            account(page, everything)
    return metrics


@common.command
def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = common.scan_parser("Scan a table, page after page, and measure it.").parse_args(argv)
    scan = common.scan_from(args)
    with common.saving(scan, args.save):
        scan.open()
        metrics = sequential_scan(scan)
    return common.report(metrics, args)


if __name__ == "__main__":
    common.leave(main())
