"""A short run of the fault campaign. `campaign.py` makes longer ones."""

from __future__ import annotations

import pytest
from campaign import campaign
from items import THROTTLED


@pytest.mark.usefixtures("no_delay")
def test_every_item_arrives_once_through_faults() -> None:
    seen = campaign(seed=1, fault_rate=0.2)
    assert set(seen) == {"ok", THROTTLED, "500", "reset", "truncated", "bad-crc"}
