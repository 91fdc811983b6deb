"""What a long loop tells."""

from __future__ import annotations

import pytest

from bids_harmony import console


def test_a_long_loop_is_counted_off(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    clock = iter([0.0, 6.0, 12.0, 18.0, 24.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    assert list(console.counted_off("abcd", 4, "measuring", lines.append)) == list("abcd")
    assert lines == [
        "measuring: 2 of 4 scans, 0.2/s, 12 s left",
        "measuring: 4 of 4 scans, 0.2/s, 0 s left",
    ]
