"""Jobs of a cluster that write into one output folder at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from bids_dataset import write

from bids_harmony.bids.outputs import write_dataset_files
from bids_harmony.bids.records import scan_file
from bids_harmony.config import RunConfig
from bids_harmony.run.base import Run
from bids_harmony.run.participant import write_report

ROOT_FILES = (
    "dataset_description.json", "README.md", "CHANGES", ".bidsignore", "descriptions.tsv",
    "scans.json",
)  # fmt: skip
#: What an earlier version may have left in any of them.
OLD = {"DatasetType": "derivative", "GeneratedBy": [{"Name": "bids_harmony"}]}
LABELS = [f"{n:02}" for n in range(1, 9)]
#: Their files are damaged: jobs that end early beside jobs that end late.
DAMAGED = LABELS[1::2]


@pytest.fixture
def bids(heads: Path, tmp_path: Path) -> Path:
    """Eight participants with one small simulated head, half of whose files are damaged."""
    head = (heads / "sub-01/anat/sub-01_T1w.nii.gz").read_bytes()
    write(tmp_path / "bids", "dataset_description.json", '{"Name": "d", "BIDSVersion": "1.10.0"}')
    for label in LABELS:
        name = f"sub-{label}/anat/sub-{label}_T1w.nii.gz"
        write(tmp_path / "bids", name, head[: len(head) // 2] if label in DAMAGED else head)
    return tmp_path / "bids"


class Watcher(threading.Thread):
    """Reads the root files again and again, keeping every content it saw."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self.out, self.ended, self.reads = out, threading.Event(), 0
        self.seen: dict[str, set[bytes | None]] = {name: set() for name in ROOT_FILES}

    def run(self) -> None:
        while not self.ended.wait(0.002):
            self.reads += 1
            for name, contents in self.seen.items():
                path = self.out / name
                contents.add(path.read_bytes() if path.exists() else None)


@pytest.mark.slow
def test_eight_jobs_at_once_leave_one_whole_dataset(bids: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    # Longer than what replaces them: a file that is written in place would show a mixture.
    for name in ROOT_FILES:
        (out / name).write_text(json.dumps(OLD) + " " * 50_000)
    old = (out / "README.md").read_bytes()
    watcher = Watcher(out)
    watcher.start()
    jobs = {
        label: subprocess.Popen(
            [
                sys.executable, "-m", "bids_harmony", str(bids), str(out), "participant",
                "--participant-label", label, "-w", str(tmp_path / "work"), "--nprocs", "1",
                "--bundle", "none", "--sloppy",
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ,
        )
        for label in LABELS
    }  # fmt: skip
    logs = {label: job.communicate(timeout=600)[0] for label, job in jobs.items()}
    watcher.ended.set()
    watcher.join()

    codes = {label: job.returncode for label, job in jobs.items()}
    assert codes == {label: int(label in DAMAGED) for label in LABELS}, logs
    # What one job alone writes.
    write_dataset_files(tmp_path / "alone", bids, tools=Run(config(out)).tools)
    assert watcher.reads > 100
    for name in ROOT_FILES:
        content = (out / name).read_bytes()
        assert content == (tmp_path / "alone" / name).read_bytes()
        assert watcher.seen[name] == {old, content}, name
    assert sorted(p.name for p in out.glob("sub-*.html")) == [f"sub-{n}.html" for n in LABELS]
    for label in LABELS[::2]:
        rows = (out / f"sub-{label}/sub-{label}_scans.tsv").read_text().splitlines()
        assert len(rows) == 2
        assert rows[1].startswith(f"anat/sub-{label}_")
    logs = {log.name for log in (out / "logs").iterdir() if log.is_dir()}
    assert len(logs - {"inputs"}) == 8
    assert not list(out.rglob("*.part"))


def config(out: Path) -> RunConfig:
    return RunConfig(bids_dir=out.parent, output_dir=out, bundle="none")


def write_failed_record(out: Path, session: str) -> None:
    key = f"sub-01_ses-{session}"
    path = scan_file(out, {"subject": "01", "session": session}, key, "qc")
    error = {"cause": "It is broken.", "remedy": "Mend it.", "crash_file": None}
    write(path.parent, path.name, json.dumps({"name": key, "status": "error", "error": error}))


def test_a_report_misses_no_session_that_another_job_ends_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower of two jobs read the records first and writes its report last."""
    import bids_harmony.reports.participant as reports

    out = tmp_path / "out"
    write_failed_record(out, "a")
    whole = reports.write_text
    calls = []

    def late(path: Path, text: str) -> None:
        calls.append(path)
        if len(calls) == 1:
            write_failed_record(out, "b")
            write_report(config(out), "01", {})
        whole(path, text)

    monkeypatch.setattr(reports, "write_text", late)
    write_report(config(out), "01", {})
    page = (out / "sub-01.html").read_text()
    assert "ses-a" in page
    assert "ses-b" in page
