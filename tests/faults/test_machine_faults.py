"""A machine that fails: full and read-only disks, killed processes, clocks, other runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import (
    ASCII,
    OPTIONS,
    assert_same,
    assert_sentences,
    assert_whole,
    harmony,
    record_of,
    start,
    tree,
    with_startup,
)

from bids_harmony.cli.run import main

FIRST = ("--participant-label", "01", *OPTIONS)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, 64 MB large until :func:`resize` says otherwise."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"no disk can be mounted here ({made.stderr.strip().splitlines()[0]})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_a_read_only_output_folder_is_refused(
    dataset: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resize(disk, "ro")
    for out in (disk, disk / "new"):
        argv = [str(dataset), str(out), "participant", "-w", str(dataset.parent / "work")]
        assert main(argv) == 2
        said = capsys.readouterr().err
        assert_sentences(said)
        assert "cannot be written" in said
        assert str(disk) in said


@pytest.fixture
def as_undisturbed(heads: Path, first_alone: Path) -> Callable[..., None]:
    """Run the first participant, and see that its outputs are those of a run without a fault."""

    def of_first(out: Path) -> dict[str, bytes]:
        return {name: content for name, content in tree(out).items() if "sub-02" not in name}

    def check(out: Path, work: Path, **environment: str) -> None:
        ran = harmony(heads, out, "participant", "-w", work, *FIRST, **environment)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert_same(of_first(first_alone), of_first(out))

    return check


@pytest.mark.slow
def test_a_full_disk_is_said_wherever_it_strikes_and_the_run_goes_on(
    heads: Path, disk: Path, tmp_path: Path, as_undisturbed: Callable[..., None]
) -> None:
    work, out = tmp_path / "work", disk / "out"
    images = []
    # The disk is full at the first file, before the first image, and after the last.
    for size in ("nr_inodes=3", "nr_inodes=9999,size=1500k", "nr_inodes=9999,size=3300k"):
        resize(disk, size)
        ran = harmony(heads, out, "participant", "-w", work, *FIRST)
        said = ran.stdout + ran.stderr
        assert ran.returncode in (1, 70), f"{size}: {said}"
        assert "Traceback" not in said, size
        assert "The disk is full" in said, f"{size}: {said}"
        assert "Free some space" in said
        assert_whole(out)
        images.append(sum(name.endswith(".nii.gz") for name in tree(out)))
    # A scan has all outputs of both parts (four images), of the first (three), or none.
    assert {0, 4} <= set(images) <= {0, 3, 4}
    resize(disk, "size=64m,nr_inodes=9999")
    as_undisturbed(out, work)


@pytest.mark.slow
def test_a_full_work_disk_fails_the_scan_and_the_run_goes_on(
    heads: Path, disk: Path, tmp_path: Path, as_undisturbed: Callable[..., None]
) -> None:
    out = tmp_path / "out"
    resize(disk, "size=3m")
    ran = harmony(heads, out, "participant", "-w", disk, *FIRST)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "The disk is full" in record_of(out, "01")["error"]["cause"]
    assert "Free some space" in record_of(out, "01")["error"]["remedy"]
    resize(disk, "size=64m")
    as_undisturbed(out, disk)


@pytest.mark.slow
def test_a_clock_that_is_set_back_and_an_ascii_locale_change_nothing(
    heads: Path, tmp_path: Path, as_undisturbed: Callable[..., None]
) -> None:
    # An hour at every twentieth look at it.
    code = (
        "import itertools, time\n"
        "_now, _looks = time.time, itertools.count()\n"
        "time.time = lambda: _now() - 3600 * (next(_looks) // 20)\n"
    )
    out, work = tmp_path / "dätä-中" / "out", tmp_path / "dätä-中" / "work"
    startup = with_startup(tmp_path / "startup", code)
    as_undisturbed(out, work, **ASCII, **startup)
    # Outputs from the future are kept, and those of the past too.
    for path in out.rglob("*"):
        os.utime(path, (time.time() + 1e6, time.time() + 1e6))
    ran = harmony(heads, out, "participant", "-w", work, *FIRST)
    assert ran.returncode == 0
    assert "1 unchanged" in ran.stdout
    ran = harmony(heads, out, "group", **ASCII)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
def test_signals_end_a_run_at_once_and_the_next_one_goes_on(
    heads: Path, undisturbed: Path, tmp_path: Path
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    command = (heads, out, "participant", "-w", work, *OPTIONS)

    def begin(node: str) -> subprocess.Popen[str]:
        """Start a run, and wait until a step of the first scan is running or completed."""
        shutil.rmtree(work, ignore_errors=True)
        run, scan = start(*command), work / "bids_harmony" / "sub_01_wf"
        for _ in range(1200):
            if [*scan.glob(node), *scan.glob(f"*/{node}")]:
                return run
            time.sleep(0.1)
        raise AssertionError(f"{node} was not reached")

    def ended(run: subprocess.Popen[str], code: int = 130) -> None:
        """Check that a run ends in time, says that it was interrupted, and leaves no process."""
        before = time.monotonic()
        said, _ = run.communicate(timeout=60)
        assert time.monotonic() - before < 10
        assert run.returncode == code, said
        if code == 130:
            assert "Interrupted." in said
            assert "The same command continues" in said
            assert "Traceback" not in said, said
        for _ in range(50):
            if not (left := in_group(run.pid)):
                break
            time.sleep(0.1)
        assert left == []
        if out.exists():
            assert_whole(out)

    run = begin("brain_mask")
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    ended(run)

    run = begin("check")
    # Two runs: the second is sent away, and the first does not notice.
    for folder in (work, tmp_path / "other"):
        second = harmony(heads, out, "participant", "-w", folder, *OPTIONS)
        assert second.returncode == 2
        assert "Another run is processing" in second.stderr
        assert_sentences(second.stderr)
    assert run.poll() is None
    run.terminate()
    ended(run)

    run = begin("register")
    run.kill()
    ended(run, -signal.SIGKILL)

    run = begin("normalize")
    (scan, *_) = [scan for server in children(run.pid) for scan in children(server)]
    os.kill(scan, signal.SIGKILL)
    said, _ = run.communicate(timeout=900)
    assert run.returncode == 1, said
    assert "was killed, most likely because memory ran out" in said
    assert "1 completed, 1 failed" in said
    assert_whole(out)
    assert harmony(*command).returncode == 0
    assert_same(tree(undisturbed), tree(out))


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def in_group(group: int) -> list[str]:
    """Processes of a group that still run."""
    found = subprocess.run(
        ["ps", "-A", "-o", "pgid=,stat=,pid="], capture_output=True, text=True, check=True
    )
    rows = map(str.split, found.stdout.splitlines())
    return [pid for row, stat, pid in rows if int(row) == group and stat[0] not in "ZX"]
