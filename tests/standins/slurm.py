"""Stand-in for sbatch, squeue and scancel, told apart by the first argument.

Jobs are processes of this machine. What each command was called with goes to ``calls`` in the
folder ``STANDIN_SLURM``; files there bring on what happens on a cluster:

* ``forget``: squeue knows no job that ended, as after ``MinJobAge``;
* ``end_as``: ``NAME STATE``: jobs so named end at once, in that state.
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


def job_file(number: int | str) -> Path:
    return HOME / "jobs" / f"{number}.json"


def sbatch(argv: list[str]) -> None:
    options = dict(pairwise(argv))
    number = len(list(job_file(0).parent.glob("*.json"))) + 1
    job = {"state": "RUNNING", "pid": 0}
    end = HOME / "end_as"
    name, state = end.read_text().split() if end.exists() else ("nobody", "")
    if name in options["-J"]:
        job["state"] = state
    else:
        log = options["-o"].replace("%j", str(number))
        run = f'bash "$0" > "{log}" 2>&1; echo $? > "{job_file(number).with_suffix(".code")}"'
        job["pid"] = subprocess.Popen(
            ["/bin/sh", "-c", run, argv[-1]],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).pid
    job_file(number).write_text(json.dumps(job))
    print(f"Submitted batch job {number}")


def runs(number: str) -> bool:
    ended = job_file(number).with_suffix(".code").exists()
    return not ended and json.loads(job_file(number).read_text())["state"] == "RUNNING"


def squeue(argv: list[str]) -> None:
    number = argv[argv.index("-j") + 1]
    if runs(number):
        print(f"JOBID STATE\n{number} RUNNING")
    elif (HOME / "forget").exists():
        sys.exit("slurm_load_jobs error: Invalid job id specified")


def scancel(argv: list[str]) -> None:
    for number in argv:
        if runs(number):
            os.killpg(json.loads(job_file(number).read_text())["pid"], signal.SIGKILL)
        job_file(number).write_text(json.dumps({"state": "CANCELLED"}))


command, *arguments = sys.argv[1:]
with (HOME / "calls").open("a") as stream:
    stream.write(json.dumps([command, *arguments]) + "\n")
{"sbatch": sbatch, "squeue": squeue, "scancel": scancel}[command](arguments)
