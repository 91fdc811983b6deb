"""Stand-in for sbatch, squeue and scancel, told apart by the first argument.

Jobs are processes of this machine. What each command was called with goes to ``calls`` in the
folder ``STANDIN_SLURM``; files there bring on what happens on a cluster:

* ``forget``: squeue knows no job that ended, as after ``MinJobAge``;
* ``end_as``: lines ``NAME STATE``: jobs so named end at once, in that state.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

HOME = Path(os.environ["STANDIN_SLURM"])


def told(name: str) -> str:
    path = HOME / name
    return path.read_text().strip() if path.exists() else ""


def fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


def jobs() -> dict[int, dict]:
    return {int(p.stem): json.loads(p.read_text()) for p in (HOME / "jobs").glob("*.json")}


def save(number: int, job: dict) -> None:
    part = HOME / "jobs" / f"{number}.part"
    part.write_text(json.dumps(job))
    part.rename(part.with_suffix(".json"))


def state_of(number: int, job: dict) -> str:
    if job["state"] != "RUNNING":
        return job["state"]
    code = HOME / "jobs" / f"{number}.code"
    if not code.exists():
        return "RUNNING"
    return "COMPLETED" if code.read_text().strip() == "0" else "FAILED"


def sbatch(argv: list[str]) -> int:
    options = dict(pairwise(argv))
    number = len(list((HOME / "jobs").glob("*.json"))) + 1
    job = {"name": options["-J"], "state": "RUNNING", "pid": 0}
    ends = dict(line.split() for line in told("end_as").splitlines())
    if end := next((state for part, state in ends.items() if part in job["name"]), None):
        job["state"] = end
    else:
        log = options["-o"].replace("%j", str(number))
        run = f'bash "$0" > "{log}" 2>&1; echo $? > "{HOME}/jobs/{number}.code"'
        job["pid"] = subprocess.Popen(
            ["/bin/sh", "-c", run, argv[-1]],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).pid
    save(number, job)
    print(f"Submitted batch job {number}")
    return 0


def squeue(argv: list[str]) -> int:
    number = int(argv[argv.index("-j") + 1])
    if state_of(number, jobs()[number]) == "RUNNING":
        print(f"JOBID STATE\n{number} RUNNING")
    elif (HOME / "forget").exists():
        return fail("slurm_load_jobs error: Invalid job id specified")
    return 0


def scancel(argv: list[str]) -> int:
    for number in map(int, argv):
        job = jobs()[number]
        if job["pid"] and state_of(number, job) == "RUNNING":
            os.killpg(job["pid"], signal.SIGKILL)
        save(number, job | {"state": "CANCELLED"})
    return 0


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    with (HOME / "calls").open("a") as stream:
        stream.write(json.dumps([command, *arguments]) + "\n")
    commands = {"sbatch": sbatch, "squeue": squeue, "scancel": scancel}
    sys.exit(commands[command](arguments))
