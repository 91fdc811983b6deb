"""Run the graph's nodes as Slurm jobs: nipype's SLURM plugin, mended.

Nipype 1.11's plugin leaves its jobs running when it ends before them; ends when the controller
cannot be reached; ends, instead of reporting one failed node, when a job was cancelled; takes the
result of an earlier run for that of a job that never started; and asks about every job on its own
at every round. Here

* one ``squeue`` asks about all jobs, at most every ``poll_seconds``; while Slurm does not answer,
  the run waits and says so, at submission too;
* a node is done when its folder says so, and a job that ended without that is a failure of its
  scan alone, with Slurm's reason for it;
* whatever ends the run, its jobs are cancelled; those of a run that was killed are cancelled
  before their nodes are submitted again.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from nipype.pipeline.engine.utils import load_resultfile
from nipype.pipeline.plugins.slurm import SLURMPlugin
from nipype.utils.filemanip import loadpkl

from bids_harmony.errors import UsageError

#: States after which a job does nothing more. Any other may still lead to a result.
ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "TIMEOUT",
})  # fmt: skip
#: What sbatch says when the same submission may succeed later.
PASSING = re.compile(
    r"unable to contact|timed out|temporarily|connection refused|not available at the moment|"
    r"zero bytes|submit limit|try again|communication",
    re.IGNORECASE,
)
AGAIN = "The same command continues."
LOST = (
    "lost its node",
    f"{AGAIN} With --requeue in the plugin file's sbatch_args Slurm starts such jobs again.",
)
#: How jobs end without a result, and what to do about it.
ENDINGS = {
    "CANCELLED": ("was cancelled", AGAIN),
    "TIMEOUT": (
        "reached its time limit",
        f"Raise --time in the plugin file's sbatch_args. {AGAIN}",
    ),
    "DEADLINE": ("reached its deadline", AGAIN),
    "OUT_OF_MEMORY": (
        "ran out of memory",
        f"Raise --mem in the plugin file's sbatch_args. {AGAIN}",
    ),
    "NODE_FAIL": LOST,
    "BOOT_FAIL": LOST,
    "PREEMPTED": ("was preempted", LOST[1]),
}


@dataclass
class Job:
    """A submitted job.

    Attributes
    ----------
    node : str
        Name of the graph's node.
    script : pathlib.Path
        Nipype's batch script; what the job prints goes beside it.
    state, reason : str
        What squeue said last; both empty once it does not list the job any more.
    ended : float or None
        When the job was first seen ended without a result (:func:`time.monotonic`).
    """

    node: str
    script: Path
    state: str = "PENDING"
    reason: str = ""
    ended: float | None = None
    held: bool = False


class SlurmPlugin(SLURMPlugin):
    """Nipype's ``SLURM`` that outlives what happens on a cluster.

    Parameters
    ----------
    plugin_args : dict
        Nipype's ``template``, ``sbatch_args`` and ``max_jobs``, and ``poll_seconds`` (default 10)
        between two questions to Slurm, ``grace_seconds`` (60) that a network file system may take
        to show the result of a job that ended.
    say : callable
        Where messages to the user go.
    """

    def __init__(self, plugin_args: dict[str, Any], say: Callable[[str], None]) -> None:
        super().__init__(plugin_args=plugin_args)
        self.say = say
        self.poll = float(plugin_args.get("poll_seconds", 10))
        self.grace = float(plugin_args.get("grace_seconds", 60))
        self.jobs: dict[int, Job] = {}
        self.leftovers: dict[str, int] = {}
        self.asked = -self.poll
        self.silent = False

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run the graph; afterwards no job of it is left, however it ended."""
        self.leftovers = {
            name: job
            for job, (state, _, name) in self._ask_until_answered().items()
            if state not in ENDED
        }
        try:
            super().run(graph, config, updatehash=updatehash)
        finally:
            self.stop()

    def stop(self) -> None:
        """Cancel the jobs that have not ended."""
        jobs = [str(job) for job in self._pending]
        self._pending.clear()
        if jobs and (error := _slurm("scancel", *jobs)[1]):
            self.say(f"Warning: these Slurm jobs could not be cancelled: {error}")
            self.say(f"  When Slurm answers, run: scancel {' '.join(jobs)}")

    def _submit_batchtask(self, scriptfile: str, node: Any) -> int:
        folder = Path(node.output_dir())
        for old in folder.glob("result_*.pklz"):
            # It belongs to other inputs, and a job that never starts would leave it there.
            old.unlink()
        arguments = node.plugin_args.get("sbatch_args", "")
        if self._sbatch_args and not node.plugin_args.get("overwrite"):
            arguments = f"{self._sbatch_args} {arguments}"
        scan = [*node.fullname.split("."), ""][1]
        name = f"{node.name}.{scan}.{sha256(str(folder).encode()).hexdigest()[:16]}"
        script, told = Path(scriptfile), False
        while True:
            if name in self.leftovers:
                self._cancel_and_wait(self.leftovers.pop(name))
            out, error = _slurm(
                "sbatch", "--parsable", f"--job-name={name}",
                f"--output={script.parent / 'slurm-%j.out'}", *shlex.split(arguments), scriptfile,
            )  # fmt: skip
            if not error:
                break
            if not PASSING.search(error):
                raise UsageError(
                    f"sbatch refuses the jobs ({error}).",
                    "Correct the plugin file's sbatch_args, or the script named as template.",
                )
            if not told:
                self.say(f"Warning: Slurm does not take a job now; trying again ({error}).")
                told = True
            time.sleep(self.poll)
            # A submission that timed out may have succeeded: that job must not run beside its
            # successor.
            known = self._ask_until_answered()
            self.leftovers |= {
                n: j for j, (s, _, n) in known.items() if n == name and s not in ENDED
            }
        taskid = int(out.split(";")[0])
        self._pending[taskid] = str(folder)
        self.jobs[taskid] = Job(node.name, script)
        return taskid

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        self._refresh()
        job = self.jobs[taskid]
        if job.state and job.state not in ENDED:
            return None
        result = read_result(Path(self._pending[taskid])) or self._read_crash(job)
        if result is not None:
            return result
        job.ended = job.ended or time.monotonic()
        if job.state in ("", "COMPLETED") and time.monotonic() - job.ended < self.grace:
            return None
        return {"result": None, "traceback": [self._why(taskid, job)]}

    def _clear_task(self, taskid: int) -> None:
        super()._clear_task(taskid)
        del self.jobs[taskid]

    def _report_crash(self, node: Any, result: dict[str, Any] | None = None) -> Any:
        if result is not None and isinstance(result["traceback"], str):
            # Nipype passes text where a node failed in this process, and adds a list to it.
            result["traceback"] = result["traceback"].splitlines(keepends=True)
        return super()._report_crash(node, result=result)

    def _refresh(self) -> None:
        """Ask Slurm about all jobs, unless it was asked a moment ago."""
        if time.monotonic() - self.asked < self.poll:
            return
        known = self._ask()
        self.asked = time.monotonic()
        if known is None:
            return
        for taskid, job in self.jobs.items():
            job.state, job.reason, _ = known.get(taskid, ("", "", ""))
            if not job.held and re.search(r"held", job.reason, re.IGNORECASE):
                job.held = True
                self.say(
                    f"Warning: Slurm holds job {taskid} ({job.node}: {job.reason}). "
                    f"`scontrol release {taskid}` lets it go on."
                )

    def _ask(self) -> dict[int, tuple[str, str, str]] | None:
        """State, reason and name of the user's jobs; None while Slurm does not answer."""
        out, error = _slurm("squeue", "--me", "--noheader", "--states=all", "--format=%A|%T|%r|%j")
        self._note_silence(error)
        if error:
            return None
        rows = (line.strip().split("|", 3) for line in out.splitlines())
        return {int(job): (state, reason, name) for job, state, reason, name in rows}

    def _ask_until_answered(self) -> dict[int, tuple[str, str, str]]:
        while (known := self._ask()) is None:
            time.sleep(self.poll)
        return known

    def _cancel_and_wait(self, job: int) -> None:
        """Wait for the end of an earlier run's job, which would write to the same folder."""
        self.say(f"Slurm job {job} of an earlier run is cancelled.")
        _slurm("scancel", str(job))
        while self._ask_until_answered().get(job, ("COMPLETED",))[0] not in ENDED:
            time.sleep(min(self.poll, 1))

    def _note_silence(self, error: str) -> None:
        """Tell once that Slurm stopped answering, and once that it answers again."""
        if bool(error) != self.silent:
            self.silent = bool(error)
            self.say(
                f"Warning: Slurm does not answer; waiting for it ({error})."
                if error
                else "Slurm answers again."
            )

    def _read_crash(self, job: Job) -> dict[str, Any] | None:
        """Read what nipype leaves beside the script when a node could not even be loaded."""
        name = job.script.name.removeprefix("batchscript_pyscript_").removesuffix(".sh")
        path = job.script.with_name(f"crashdump_{name}.pklz")
        return loadpkl(str(path)) if path.is_file() else None

    def _why(self, taskid: int, job: Job) -> str:
        """Say how a job without result ended, as an error that the scan's record quotes."""
        state = job.state
        if not state:  # squeue forgets jobs after some minutes; accounting, where kept, does not
            out, _ = _slurm("sacct", "-X", "-n", "-P", "-j", str(taskid), "-o", "State")
            state = out.split()[0] if out.strip() else ""
        log = job.script.with_name(f"slurm-{taskid}.out")
        how, remedy = ENDINGS.get(state, ("ended without a result", f"See {log}."))
        return (
            f"bids_harmony.errors.ScanError: The Slurm job {taskid} (step {job.node}) {how}. "
            f"{remedy}\n"
        )


def read_result(folder: Path) -> dict[str, Any] | None:
    """Read what a job left in its node's folder.

    Parameters
    ----------
    folder : pathlib.Path
        The node's folder in the work directory.

    Returns
    -------
    dict or None
        ``result`` and ``traceback`` (a list of lines where the node raised, else None); None
        where the node is not done.
    """
    path = next(folder.glob("result_*.pklz"), None)
    if path is None:
        return None
    try:
        content = load_resultfile(path)
    except Exception:  # noqa: BLE001  (a pickle that is not whole yet raises anything)
        return None
    if isinstance(content, dict):
        # The node raised. Out of the way, lest it be taken for a result.
        path.rename(folder / "crashstore.pklz")
        return {"result": content["result"], "traceback": content["traceback"]}
    hashes = [p.name for p in folder.glob("_0x*.json")]
    if not hashes or any(name.endswith("_unfinished.json") for name in hashes):
        return None
    return {"result": content, "traceback": None}


def _slurm(*command: str) -> tuple[str, str]:
    """Run a Slurm command; return what it printed, and why it failed in one line or ``""``."""
    try:
        done = subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            env=os.environ,
        )
    except OSError as error:
        return "", f"{command[0]}: {error.strerror}"
    if done.returncode == 0:
        return done.stdout, ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return done.stdout, lines[-1].rstrip(".") if lines else f"{command[0]}: code {done.returncode}"
