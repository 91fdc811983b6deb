"""A machine that fails: full and read-only disks, killed processes, clocks, other runs."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import (
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
from bids_harmony.errors import machine_error
from bids_harmony.run.engine import failure_text

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


def of_first(out: Path) -> dict[str, bytes]:
    """Outputs of the first participant, and those of the dataset as a whole."""
    return {name: content for name, content in tree(out).items() if "sub-02" not in name}


def members(group: int) -> list[str]:
    """Processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(stat.parent.name)
    return found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("OSError: [Errno 28] No space left on device: '/out/x.json'", "The disk is full"),
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("OSError: [Errno 122] Disk quota exceeded: '/out/x.json'", "disk quota is used up"),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 3 GiB", "Memory ran out"),
        ("MemoryError", "Memory ran out"),
    ],
)
def test_what_a_machine_refuses_has_its_cause_and_remedy(text: str, says: str) -> None:
    cause, remedy = failure_text(f"Traceback (most recent call last):\n  File x\n{text}\n\n")
    assert says in cause
    assert remedy
    assert ("/out/x.json" in cause) == ("/out/x.json" in text)
    assert machine_error(errno.ENOENT) is None


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


@pytest.mark.slow
def test_a_full_disk_is_said_wherever_it_strikes_and_the_run_goes_on(
    heads: Path, first_alone: Path, disk: Path, tmp_path: Path
) -> None:
    # The work folder has served another output folder before.
    work, out = tmp_path / "work", disk / "out"
    shutil.copytree(heads.parent / "work", work)
    command = (heads, out, "participant", "-w", work, *FIRST)
    wanted = of_first(first_alone)
    inodes = [f"nr_inodes={n}" for n in (3, 12)]
    sizes = [f"nr_inodes=9999,size={n}k" for n in (8, 1500, 2700, 3300)]
    written = []
    for size in inodes + sizes:
        if size in sizes[:2]:
            shutil.rmtree(out)
        resize(disk, size)
        done = harmony(*command)
        said = done.stdout + done.stderr
        assert done.returncode in (1, 70), f"{size}: {said}"
        assert "Traceback" not in said, size
        assert "The disk is full" in said, f"{size}: {said}"
        assert "Free some space" in said
        assert_whole(out)
        written.append(sorted(name for name in tree(out) if not name.endswith(".html")))
    # The disk was full before the first image, among the images, and after the last: a scan has
    # all outputs of both parts (four images), of the first (three), or none.
    images = [sum(name.endswith(".nii.gz") for name in names) for names in written]
    assert sum(name.endswith(".nii.gz") for name in wanted) == 4
    assert {0, 4} <= set(images) <= {0, 3, 4}
    resize(disk, "size=64m,nr_inodes=9999")
    done = harmony(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(wanted, of_first(out))


@pytest.mark.slow
def test_a_full_work_disk_fails_the_scan_and_the_run_goes_on(
    heads: Path, first_alone: Path, disk: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    resize(disk, "size=3m")
    command = (heads, out, "participant", "-w", disk, *FIRST)
    done = harmony(*command)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "The disk is full" in record_of(out, "01")["error"]["cause"]
    assert "Free some space" in record_of(out, "01")["error"]["remedy"]
    resize(disk, "size=64m")
    done = harmony(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(of_first(first_alone), of_first(out))


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_said(
    heads: Path, first_alone: Path, tmp_path: Path
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        done = harmony(heads, out, "participant", "-w", work, *FIRST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "may not become so large" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert_whole(out)
    done = harmony(heads, out, "participant", "-w", work, *FIRST)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(of_first(first_alone), of_first(out))


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_nothing(
    heads: Path, first_alone: Path, tmp_path: Path
) -> None:
    # An hour at every twentieth look at it.
    code = (
        "import itertools, time\n"
        "_now, _looks = time.time, itertools.count()\n"
        "time.time = lambda: _now() - 3600 * (next(_looks) // 20)\n"
    )
    out = tmp_path / "out"
    startup = with_startup(tmp_path / "startup", code)
    done = harmony(heads, out, "participant", "-w", tmp_path / "work", *FIRST, **startup)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(of_first(first_alone), of_first(out))
    # Outputs from the future are kept, and those of the past too.
    for path in out.rglob("*"):
        os.utime(path, (time.time() + 1e6, time.time() + 1e6))
    done = harmony(heads, out, "participant", "-w", tmp_path / "work", *FIRST)
    assert done.returncode == 0
    assert "1 unchanged" in done.stdout


@pytest.mark.slow
def test_a_damaged_work_folder_is_computed_again(
    heads: Path, first_alone: Path, tmp_path: Path
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    shutil.copytree(heads.parent / "work", work)
    damaged = [*work.rglob("result_*.pklz")]
    assert len(damaged) > 5
    for path in damaged:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = harmony(heads, out, "participant", "-w", work, *FIRST)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(of_first(first_alone), of_first(out))


@pytest.mark.slow
def test_signals_end_a_run_at_once_and_the_next_one_goes_on(
    heads: Path, undisturbed: Path, tmp_path: Path
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    command = (heads, out, "participant", "-w", work, *OPTIONS)

    def begin(node: str) -> subprocess.Popen[str]:
        """Start a run, and wait until a step of the first scan is running or completed."""
        shutil.rmtree(work, ignore_errors=True)
        run, step = start(*command), work / "bids_harmony" / "sub_01_wf" / node
        for _ in range(1200):
            if step.exists():
                return run
            time.sleep(0.1)
        raise AssertionError(f"{step} was not reached")

    def ended(run: subprocess.Popen[str], *, killed: bool = False, limit: float = 10) -> None:
        """Check that a run ends in time, says that it was interrupted, and leaves no process."""
        before = time.monotonic()
        said, _ = run.communicate(timeout=60)
        assert time.monotonic() - before < limit
        if not killed:
            assert run.returncode == 130, said
            assert "Interrupted." in said
            assert "The same command continues" in said
            assert "Traceback" not in said, said
        for _ in range(50):
            if not members(run.pid):
                break
            time.sleep(0.1)
        assert members(run.pid) == []
        if out.exists():
            assert_whole(out)

    run = begin("brain_mask")
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    ended(run)

    run = begin("check")
    # Two runs: the second is sent away, and the first does not notice.
    second = harmony(*command)
    assert second.returncode == 2
    assert "Another run is working on" in second.stderr
    assert_sentences(second.stderr)
    elsewhere = harmony(heads, out, "participant", "-w", tmp_path / "other", *OPTIONS)
    assert elsewhere.returncode == 2, elsewhere.stdout
    assert run.poll() is None
    run.terminate()
    ended(run)

    run = begin("register")
    run.kill()
    ended(run, killed=True)

    run = begin("metrics")
    scans = [scan for server in children(run.pid) for scan in children(server)]
    assert scans
    os.kill(scans[0], signal.SIGKILL)
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
