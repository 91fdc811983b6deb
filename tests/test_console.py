"""What a long loop tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_harmony import console
from bids_harmony.cli import run
from bids_harmony.errors import EXIT_SOFTWARE


def test_a_long_loop_is_counted_off(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    clock = iter([0.0, 6.0, 12.0, 18.0, 24.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    assert list(console.counted_off("abcd", 4, "measuring", lines.append)) == list("abcd")
    assert lines == [
        "measuring: 2 of 4 scans, 0.2/s, 12 s left",
        "measuring: 4 of 4 scans, 0.2/s, 0 s left",
    ]


def test_an_internal_error_is_one_line_and_a_crash_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: object) -> int:
        raise ValueError("no such thing")

    monkeypatch.setattr("bids_harmony.run.group.run_group", fail)
    monkeypatch.setattr(run, "set_environment", lambda config: None)
    bids, out = tmp_path / "bids", tmp_path / "out"
    (bids / "sub-01").mkdir(parents=True)
    assert run.main([str(bids), str(out), "group", "-w", str(tmp_path / "work")]) == EXIT_SOFTWARE
    told = capsys.readouterr().err
    assert "Internal error (ValueError: no such thing)." in told
    assert "Traceback" not in told
    (crash,) = out.glob("logs/*/crash.txt")
    assert str(crash) in told
    assert "Traceback" in crash.read_text()
