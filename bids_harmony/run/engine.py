"""Run the workflows of scans, each in its own process or with a nipype plugin.

Each workflow runs in an empty folder, so that intermediate files of an earlier run, another
version or other options cannot affect its results. Only the output folder carries over between
runs: completed scans, and the preprocessing results of the others.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.pipeline import engine as pe
from nipype.pipeline import plugins
from nipype.pipeline.plugins.slurm import SLURMPlugin
from nipype.utils.profiler import get_system_total_memory_gb

from bids_harmony.console import set_up_logging
from bids_harmony.errors import MissingProgramError, UsageError, concerns_all, machine_error
from bids_harmony.files import TextError, read_text
from bids_harmony.processes import in_processes

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

#: Memory of one scan's process, in GB.
SCAN_GB = 2.0
#: Processes that share a GPU's memory.
GPU_PROCESSES = 4
#: Scans in one graph of a plugin: nipype slows down with the square of its nodes.
BATCH = 40
#: Modules used by the process of every scan, imported once.
PRELOAD = (
    "ants", "deepbet", "bids.layout", "nilearn.datasets", "bids_harmony.reports.figures",
    "bids_harmony.workflows.harmonize", "bids_harmony.workflows.preprocess",
)  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """The reason why a scan failed.

    Attributes
    ----------
    cause, remedy : str
        One sentence each; the remedy may be empty.
    crash_file : str or None
        Name of the crash file with the traceback, if any.
    """

    cause: str
    remedy: str = ""
    crash_file: str | None = None


@dataclass(frozen=True)
class Job:
    """A workflow of one scan.

    Attributes
    ----------
    part : {"preprocess", "harmonize"}
        Which workflow to build.
    name : str
        Name of the workflow.
    settings : dict
        Arguments of :func:`~bids_harmony.workflows.preprocess.init_preprocess_wf` or
        :func:`~bids_harmony.workflows.harmonize.init_harmonize_wf`.
    """

    part: str
    name: str
    settings: dict[str, Any]


def run_jobs(
    jobs: Iterable[Job], n_jobs: int, config: RunConfig, *, on_gpu: bool
) -> Iterator[tuple[Job, Failure | None]]:
    """Run workflows in parallel; yield each finished job with its failure, or None.

    With ``--use-plugin``, a nipype plugin runs them in batches of :data:`BATCH`. Otherwise each
    runs in its own process.

    Raises
    ------
    OSError
        If the system error would affect all scans, such as a full disk.
    """
    if config.use_plugin is not None:
        waiting = iter(jobs)
        while batch := list(islice(waiting, BATCH)):
            run_workflows(batch, config, load_plugin(config.use_plugin))
            yield from ((job, read_failure(crash_folder(config, job), job.name)) for job in batch)
        return
    nprocs, threads = resources(config, n_jobs, on_gpu=on_gpu)
    calls = (([job], replace(config, omp_nthreads=threads)) for job in jobs)
    for ended in in_processes(run_workflows, calls, nprocs, preload=PRELOAD):
        ((job,), _), error = ended.call, ended.error
        failure = read_failure(crash_folder(config, job), job.name)
        if failure is None and error is not None:
            if isinstance(error, OSError) and concerns_all(error):
                raise error
            failure = Failure(getattr(error, "cause", repr(error)), getattr(error, "remedy", ""))
        yield job, failure


def resources(config: RunConfig, n_jobs: int, *, on_gpu: bool) -> tuple[int, int]:
    """Return the number of processes, and of threads of each.

    Processes are limited by ``--nprocs``, by memory (:data:`SCAN_GB` per process) and, on a GPU,
    by :data:`GPU_PROCESSES`.
    """
    memory_gb = config.mem_gb or 0.9 * get_system_total_memory_gb()
    limits = (config.nprocs, n_jobs, int(memory_gb / SCAN_GB), *[GPU_PROCESSES] * on_gpu)
    nprocs = max(1, min(limits))
    return nprocs, max(1, min(config.omp_nthreads, config.nprocs // nprocs))


def work_folder(config: RunConfig, job_name: str = "") -> Path:
    """Return the folder of intermediate files of all scans, or of one workflow."""
    return config.work_dir / "bids_harmony" / job_name


def crash_folder(config: RunConfig, job: Job) -> Path:
    """Return the folder of a scan's crash files."""
    return config.log_dir / job.name


def run_workflows(jobs: Sequence[Job], config: RunConfig, plugin: Any = "Linear") -> None:
    """Run workflows to the end in this process; each failed node leaves a crash file."""
    from bids_harmony.workflows.harmonize import init_harmonize_wf
    from bids_harmony.workflows.preprocess import init_preprocess_wf

    init = {
        "preprocess": init_preprocess_wf,
        "harmonize": partial(init_harmonize_wf, omp_nthreads=config.omp_nthreads),
    }
    set_up_logging(file=config.log_file)
    for name in ("workflow", "interface", "utils"):
        logging.getLogger(f"nipype.{name}").setLevel(min(logging.INFO, config.log_level))
    workflow = pe.Workflow(name="bids_harmony", base_dir=str(config.work_dir))
    workflow.config["execution"].update(
        crashfile_format="txt",
        hash_method="timestamp",
        poll_sleep_duration="0.5",
        check_version="false",
        create_report="false",
    )
    for job in jobs:
        scan_wf = init[job.part](**job.settings)
        scan_wf.base_dir = str(work_folder(config))
        shutil.rmtree(work_folder(config, job.name), ignore_errors=True)
        for name in scan_wf.list_node_names():
            crash_dir = {"crashdump_dir": str(crash_folder(config, job))}
            scan_wf.get_node(name).config = {"execution": crash_dir}
        workflow.add_nodes([scan_wf])
    try:
        workflow.run(plugin=plugin)
    except Exception:
        # Nipype raises one error for all failed nodes; their crash files have the details.
        if not any(map(any, (crash_folder(config, job).glob("crash-*") for job in jobs))):
            raise


class SlurmPlugin(SLURMPlugin):
    """Nipype's ``SLURM`` plugin, which by itself leaves jobs running if it ends before them.

    In addition to nipype's ``plugin_args``, it accepts ``poll_seconds`` (default 5), the time
    between two queries of the jobs, and ``grace_seconds`` (default 20), the time a network file
    system may take to show the result of a finished job.
    """

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run the graph, and cancel jobs that remain however it ends."""
        os.environ.setdefault("LOGNAME", str(os.getuid()))  # used by nipype in job names
        config["execution"]["poll_sleep_duration"] = str(self.plugin_args.get("poll_seconds", 5))
        config["execution"]["job_finished_timeout"] = self.plugin_args.get("grace_seconds", 20)
        try:
            super().run(graph, config, updatehash)
        finally:
            if self._pending:
                subprocess.run(["scancel", *map(str, self._pending)], check=False)  # noqa: S603, S607

    def _report_crash(self, node: Any, result: dict[str, Any] | None = None) -> Any:
        if result is not None and isinstance(result["traceback"], str):
            # If a node fails in this process, nipype passes a string but then appends a list.
            result = {**result, "traceback": result["traceback"].splitlines(keepends=True)}
        return super()._report_crash(node, result)


def load_plugin(path: Path) -> Any:
    """Return the nipype plugin configured in the file of ``--use-plugin``.

    Raises
    ------
    UsageError
        If the file is invalid, nipype has no such plugin, or the plugin submits the whole graph
        and cannot report how its jobs end.
    MissingProgramError
        If the plugin is Slurm and ``sbatch`` is not on PATH.
    """
    import yaml

    try:
        values = yaml.safe_load(read_text(path)[0])
        name, args = values["plugin"], {**(values.get("plugin_args") or {})}
        if name.endswith("Graph"):
            raise TypeError(f"{name} does not report failed jobs")
        plugin = SlurmPlugin if name == "SLURM" else getattr(plugins, f"{name}Plugin")
    except (TextError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"The plugin file {path} cannot be used ({error}).",
            "It must contain a plugin of nipype, such as `plugin: SLURM`, and a mapping "
            "`plugin_args:`.",
        ) from error
    if name == "SLURM" and shutil.which("sbatch") is None:
        raise MissingProgramError(
            f"The plugin SLURM of {path} needs sbatch, which is not on PATH.",
            "Run the command where jobs can be submitted, outside the container.",
        )
    return plugin(plugin_args=args)


def read_failure(folder: Path, scan: str) -> Failure | None:
    """Return the first failure found in a scan's crash files, or None if there are none.

    The files are renamed to ``<scan>-<step>.txt``, without nipype's time stamp and random number,
    because records contain the name and must be the same in every run.

    Parameters
    ----------
    folder : pathlib.Path
        Folder of nipype's ``crash-*.txt``.
    scan : str
        Name of the scan's workflow.
    """
    found: Failure | None = None
    for path in sorted(folder.glob("crash-*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        node = re.search(r"^Node: (\S+)", text, flags=re.MULTILINE)
        step = node[1].split(".")[-1] if node else "unknown"
        crash = path.rename(folder / f"{scan}-{step}.txt").name
        cause, remedy = failure_text(text)
        if not remedy:
            cause = f"The step {step} failed: {cause}"
            remedy = f"See the traceback in {crash}."
        found = found or Failure(cause, remedy, crash)
    return found


def failure_text(crash: str) -> tuple[str, str]:
    r"""Return cause and remedy from a crash file's text; the remedy of unexpected errors is empty.

    >>> failure_text("Traceback\n\tbids_harmony.errors.ScanError: It is broken. Mend it.\n")
    ('It is broken.', 'Mend it.')
    """
    if known := re.findall(r"bids_harmony\.errors\.\w+: (.+)", crash):
        cause, _, remedy = known[-1].strip().partition(". ")
        return cause.rstrip(".") + ".", remedy
    refused = re.findall(r"\[Errno (\d+)\][^\n']*(?:'([^'\n]+)')?", crash)
    if not refused and re.search(r"^\s*(?:\w+\.)*_?\w*MemoryError\b", crash, re.MULTILINE):
        refused = [(str(errno.ENOMEM), "")]
    if refused:
        number, path = refused[-1]
        if error := machine_error(OSError(int(number), "", path or None)):
            return error.cause, error.remedy
    raised = re.findall(
        r"^[ \t]*((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)$", crash, re.MULTILINE
    )
    return (raised or crash.strip().splitlines())[-1].strip(), ""
