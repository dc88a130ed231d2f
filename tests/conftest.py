"""Fixtures that several test files use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from engines import client_of, dynalite

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


@pytest.fixture(scope="session")
def engine_client() -> Iterator[DynamoDBClient]:
    """A client of a running dynalite."""
    with dynalite() as endpoint_url:
        yield client_of(endpoint_url)
