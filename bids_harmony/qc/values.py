"""Values of a scan's record, taken as they should be, whatever stands there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def number(value: Any) -> float:
    """Take a finite number as it is; anything else is missing (NaN)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def text(value: Any) -> str | None:
    """Take a value as one line of text; nothing is None."""
    return None if value is None else " ".join(str(value).split()) or None


def mapping(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Take a record's part that should be an object; anything else is empty."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def texts(record: Mapping[str, Any], name: str) -> list[str]:
    """Take a record's part that should be a list of texts, leaving out what is none."""
    value = record.get(name)
    return [v for v in value if isinstance(v, str)] if isinstance(value, list) else []
