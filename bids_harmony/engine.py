"""Run the graph: nipype's MultiProc with survivors after a killed worker, and progress.

Its plugin for Slurm is mended in :mod:`bids_harmony.slurm`.
"""

from __future__ import annotations

import gc
import gzip
import logging
import os
import shutil
import signal
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, MutableMapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.pipeline.plugins import base as scheduler
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, run_node

from bids_harmony.console import say
from bids_harmony.errors import MissingProgramError, UsageError
from bids_harmony.files import write_json
from bids_harmony.outputs import load_record
from bids_harmony.processes import end_with_parent
from bids_harmony.text import TextError, read_text

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

KILLED = (
    "bids_harmony.errors.ScanError: The process that ran {name} was killed, most likely because "
    "memory ran out. Lower --nprocs, or give the job more memory."
)

#: Processes of a pool, which forgets them when it is shut down, whether or not they ended.
Workers = MutableMapping[int, Any]


# A clock that is set back would put nipype's scheduler to sleep for as long.
scheduler.time = time.monotonic


class QuietFileHandler(logging.FileHandler):
    """A log file that may fail: on a full disk each message would print a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Say nothing."""


class SurvivingMultiProcPlugin(MultiProcPlugin):
    """MultiProc that goes on after a worker process was killed.

    Nipype's plugin, like niworkflows', waits forever for a worker that the kernel killed. Here
    every node that was running in the broken pool is tried once more in a process of its own,
    so only the one that cannot run fails. Nipype's is the base because its scheduler queues
    ``use_gpu`` nodes, which niworkflows' does not.
    """

    pool: ProcessPoolExecutor

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self._pools: list[tuple[ProcessPoolExecutor, Workers]] = []
        self._managers: set[Any] = set()
        self._stopped = False
        # Pools are made by the thread of a broken one too.
        self._changing = threading.Lock()
        # No worker has started in nipype's own pool yet.
        self.pool = self._new_pool(self.processors)

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run an expanded graph; raise what nipype raises for nodes that failed."""
        # The scheduler collects garbage at every round: over all that is imported by now, and over
        # the expanded graph of a chunk of scans, it took a third of a core. Afterwards the graph
        # must be free to go.
        gc.freeze()
        try:
            super().run(graph, config, updatehash)
        finally:
            gc.unfreeze()

    def _new_pool(self, n_workers: int) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(max_workers=n_workers, initializer=start_worker)
        self._pools.append((pool, pool._processes))
        return pool

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        try:
            self._start(self.pool, self._taskid, node, updatehash, retry=True)
        except BrokenProcessPool:
            self.pool = self._new_pool(self.processors)
            self._start(self.pool, self._taskid, node, updatehash, retry=True)
        return int(self._taskid)

    def _clear_task(self, taskid: int) -> None:
        super()._clear_task(taskid)
        # Nipype keeps what every node returned to the end of the run: 0.25 MB for each scan.
        del self._taskresult[taskid]

    def _sort_jobs(self, jobids: Iterable[int], scheduler: str = "tsort") -> list[int]:
        """Finish scans one after the other, so that a run cut short leaves whole scans."""
        return sorted(jobids, key=lambda job: (self.procs[job].fullname.split(".")[1], job))

    def stop(self) -> None:
        """End the workers at once, without waiting for what they do."""
        with self._changing:
            self._stopped = True
        for pool, workers in self._pools:
            _end_workers(workers)
            pool.shutdown(wait=False, cancel_futures=True)
        for manager in self._managers:
            # Python's own end does not expect one that is about to end too (EBADF).
            manager.join(10)

    def _start(
        self, pool: ProcessPoolExecutor, taskid: int, node: Any, updatehash: bool, *, retry: bool
    ) -> None:
        workers = pool._processes
        future = pool.submit(run_node, node, updatehash, taskid)
        self._task_obj[taskid] = future
        if (manager := pool._executor_manager_thread) is not None:
            self._managers.add(manager)

        def finished(future: Future[Any]) -> None:
            error = future.exception()
            if error is None:
                self._taskresult[taskid] = future.result()
            elif retry and isinstance(error, BrokenProcessPool):
                with self._changing:
                    if self._stopped:
                        return
                    # The pool fails its tasks before it ends the workers that still run them.
                    _end_workers(workers)
                    own_pool = self._new_pool(1)
                    self._start(own_pool, taskid, node, updatehash, retry=False)
                    own_pool.shutdown(wait=False)
            elif not self._stopped:
                killed = isinstance(error, BrokenProcessPool)
                # With what happened in the worker before: nipype's own errors often follow one.
                whole = "".join(traceback.format_exception(error))
                text = KILLED.format(name=node.name) if killed else whole
                self._taskresult[taskid] = {"result": None, "traceback": [text], "taskid": taskid}

        future.add_done_callback(finished)


def start_worker() -> None:
    """Make a worker the leader of a process group, in which it can be ended with its children."""
    os.setpgid(0, 0)
    end_with_parent()


def _end_workers(workers: Workers) -> None:
    for process in list(workers.values()):
        # With the programs that it started, such as FSL's, which would write on.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join(10)


def run_graph(workflow: Any, config: RunConfig, progress: Any) -> Exception | None:
    """Run a graph to its end; return what nipype raises there for nodes that failed."""
    chosen = plugin(config, progress)
    try:
        workflow.run(**chosen)
    except Exception as error:  # noqa: BLE001
        # Once for all nodes; each has its crash file.
        return error
    finally:
        # Also where nipype gave up midway, as where it could not write a crash file.
        if hasattr(chosen["plugin"], "stop"):
            chosen["plugin"].stop()
    return None


def discard_outdated(folder: Path, inputs: dict[str, str | None]) -> None:
    """Remove a scan's work folder where it was made from other files, or holds a damaged result.

    Nipype tells images that are named in text, as the raw scan is, by their names alone. And it
    would stop the whole run at a result that a full disk or a lost machine left half-written.

    Parameters
    ----------
    folder : pathlib.Path
        The scan's work folder.
    inputs : dict
        Digests of the files that the scan's results depend on; they are kept in the folder.
    """
    made_from = folder / "inputs.json"
    if load_record(made_from) != inputs or any(map(_is_damaged, folder.rglob("*.pklz"))):
        shutil.rmtree(folder, ignore_errors=True)
    write_json(made_from, inputs)


def _is_damaged(path: Path) -> bool:
    """Tell whether a result of nipype cannot be unpacked."""
    try:
        with gzip.open(path) as file:
            while file.read(2**20):
                pass
    except (OSError, EOFError, zlib.error):
        return True
    return False


def plugin(config: RunConfig, progress: Progress) -> dict[str, Any]:
    """Choose nipype's execution plugin and its arguments.

    Raises
    ------
    UsageError, MissingProgramError
        See :func:`read_plugin_file`.
    """
    name, given = "MultiProc", dict[str, Any]()
    if config.use_plugin is not None:
        name, given = read_plugin_file(config.use_plugin)
    if name == "SLURM":
        from bids_harmony.slurm import SlurmPlugin

        return {"plugin": SlurmPlugin({**given, "status_callback": progress}, progress.say)}
    args: dict[str, Any] = {"status_callback": progress}
    if name not in ("MultiProc", "LegacyMultiProc"):
        return {"plugin": name, "plugin_args": given | args}
    args |= {"n_procs": config.nprocs, "raise_insufficient": False}
    if config.mem_gb is not None:
        args["memory_gb"] = config.mem_gb
    return {"plugin": SurvivingMultiProcPlugin(plugin_args=args | given)}


def read_plugin_file(path: Path) -> tuple[str, dict[str, Any]]:
    """Read ``--use-plugin``: nipype's name of a plugin, and its arguments.

    Raises
    ------
    UsageError
        When the file is not YAML of this form, or nipype has no such plugin, or one that hands
        the graph over and does not see how it ends.
    MissingProgramError
        When Slurm is asked for and ``sbatch`` is not there.
    """
    import yaml
    from nipype.pipeline import plugins

    remedy = "It must hold `plugin: SLURM`, for example, and a mapping `plugin_args:`."
    try:
        text, notes = read_text(path)
        values = yaml.safe_load(text)
        name, args = values["plugin"], values.get("plugin_args") or {}
        known = hasattr(plugins, f"{name}Plugin")
    except TextError as error:
        raise UsageError(f"The plugin file {path} cannot be read ({error}).", remedy) from error
    except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"The plugin file {path} cannot be used.", remedy) from error
    for note in notes:
        say(f"Warning: {path} {note}.")
    if not known or not isinstance(args, dict):
        raise UsageError(f"The plugin file {path} names no plugin of nipype ({name}).", remedy)
    if name.endswith("Graph"):
        raise UsageError(
            f"The plugin {name} of {path} submits jobs and does not see how they end.",
            f"Use {name.removesuffix('Graph')}.",
        )
    if name == "SLURM" and shutil.which("sbatch") is None:
        raise MissingProgramError(
            f"{path} asks for Slurm, and sbatch is not on PATH.",
            "Run the command where jobs can be submitted, outside the container.",
        )
    return name, args


def nipype_settings(config: RunConfig) -> dict[str, str]:
    """Nipype's ``execution`` settings: readable crash files, checks by content, quick polling."""
    return {
        "crashfile_format": "txt",
        "hash_method": "content",
        "poll_sleep_duration": "0.05",
        "stop_on_first_crash": str(config.stop_on_first_crash).lower(),
        "check_version": "false",
        "create_report": "false",
    }


def start_log(config: RunConfig) -> None:
    """Send nipype's own messages to the run's log, and with ``-v`` to the screen too."""
    config.log_dir.mkdir(parents=True, exist_ok=True)
    handler = QuietFileHandler(config.log_dir / "execution.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    for name in ("nipype", "nipype.workflow", "nipype.interface", "nipype.utils"):
        logger = logging.getLogger(name)
        for old in list(logger.handlers):
            logger.removeHandler(old)
        logger.propagate = name != "nipype"
        logger.setLevel(min(logging.INFO, config.log_level))
    root = logging.getLogger("nipype")
    root.addHandler(handler)
    if config.verbose:
        console = logging.StreamHandler()
        console.setLevel(config.log_level)
        root.addHandler(console)


class Progress:
    """A line per scan, printed when its last node ends or its first one fails.

    An instance is nipype's ``status_callback``.

    Parameters
    ----------
    names : dict of str to str
        Workflow name of each scan to the name shown.
    last_node : str
        The node whose end means that the scan is done.
    say : callable
        Where the lines go.
    done : int
        Scans of the run that ended before.
    total : int
        Scans of the run.
    word : str
        What is said of a scan whose last node ended.
    on_done : callable, optional
        Called with the workflow name of each scan that is done.
    """

    def __init__(
        self,
        names: dict[str, str],
        last_node: str,
        say: Callable[[str], None],
        *,
        done: int,
        total: int,
        word: str = "done",
        on_done: Callable[[str], None] | None = None,
    ) -> None:
        self.names, self.last_node, self.say, self.on_done = names, last_node, say, on_done
        self.done, self.total, self.word = done, total, word
        self.ended: set[str] = set()
        self.started: dict[str, float] = {}

    def __call__(self, node: Any, status: str) -> None:
        """Take note that a node started, ended or raised."""
        scan = scan_of(node.fullname.split("."), self.names)
        if scan is None or scan in self.ended:
            return
        begin = self.started.setdefault(scan, time.monotonic())
        if status == "exception":
            word = "failed"
        elif status == "end" and node.name == self.last_node:
            word = self.word
        else:
            return
        self.ended.add(scan)
        self.done += 1
        seconds = time.monotonic() - begin
        self.say(f"[{self.done}/{self.total}] {self.names[scan]}: {word} ({seconds:.0f} s)")
        if status == "end" and self.on_done is not None:
            self.on_done(scan)


def scan_of(parts: Iterable[str], names: Iterable[str]) -> str | None:
    """Find which scan's workflow a node belongs to."""
    known = set(names)
    return next((part for part in parts if part in known), None)
