"""Measure the wall time, CPU time and peak memory of a command (Linux)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

PERIOD_S = 0.1


def measure(*command: object, **environment: str) -> dict[str, float]:
    """Run Python with some arguments; exit if it fails.

    Returns
    -------
    dict
        ``wall_s`` and ``cpu_s`` in seconds, and ``peak_gb``. CPU time and memory are those of the
        process and its descendants.
    """
    start, peak = time.perf_counter(), 0.0
    argv = [sys.executable, *map(str, command)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    while True:
        pid, code, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        peak = max(peak, memory_gb(process.pid))
        time.sleep(PERIOD_S)
    if code:
        sys.exit(f"{' '.join(argv)} exited with code {os.waitstatus_to_exitcode(code)}.")
    wall, cpu = time.perf_counter() - start, used.ru_utime + used.ru_stime
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "peak_gb": round(peak, 2)}


def memory_gb(pid: int) -> float:
    """Return the memory of a process and its descendants; shared pages count once."""
    memory = 0.0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            memory += int(line.split()[1]) / 1e6 if line.startswith("Pss:") else 0.0
        for thread in Path(f"/proc/{pid}/task").iterdir():
            memory += sum(map(memory_gb, map(int, (thread / "children").read_text().split())))
    return memory
