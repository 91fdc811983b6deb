"""Nipype plugin for Slurm that cancels the remaining jobs when the run ends."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from nipype.pipeline.plugins.slurm import SLURMPlugin


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
