"""Log messages, progress and internal errors."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from bids_harmony import console
from bids_harmony.cli import run
from bids_harmony.errors import EXIT_SOFTWARE


def test_progress_is_logged_at_intervals_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(console, "EVERY", 0.0)
    bar = console.progress(range(3), "measuring", "steps")
    for _ in bar:
        bar.set_postfix_str("loss 0.5", refresh=False)
    counts = [message.partition(" steps")[0] for message in caplog.messages]
    assert list(dict.fromkeys(counts)) == [f"measuring: {n} of 3" for n in (0, 1, 2, 3)]
    assert caplog.messages[-1].endswith("00:00 left, loss 0.5")


def test_messages_go_to_streams_by_level_and_to_the_log_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "logs" / "execution.log"
    console.set_up_logging(program="program", file=log, prefix="[2] ")
    logging.getLogger("bids_harmony.x").info("100 % done")
    logging.getLogger("bids_harmony.x").warning("Odd.")
    logging.getLogger("bids_harmony.x").error("Wrong.\n  Mend it.")
    logging.getLogger("nipype.workflow").error("crashed")
    out, err = capsys.readouterr()
    assert out == "[2] 100 % done\n"
    assert err == "[2] Warning: Odd.\n[2] program: error: Wrong.\n  Mend it.\n"
    text = log.read_text()
    assert re.search(r"^\d+-[\d:]+,\d+ bids_harmony.x WARNING: \[2\] Odd.$", text, re.MULTILINE)
    assert "nipype.workflow ERROR: [2] crashed" in text
    console.set_up_logging(level=20)
    logging.getLogger("nipype.workflow").error("crashed")
    assert "nipype.workflow ERROR: [2] crashed" in capsys.readouterr().err
    console.stop_logging()
    assert console.log_settings() == console.LogSettings()


def test_an_internal_error_is_one_line_with_its_traceback_in_the_log_file(
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
    (log,) = out.glob("logs/*/execution.log")
    assert str(log) in told
    assert "Traceback" in log.read_text()
