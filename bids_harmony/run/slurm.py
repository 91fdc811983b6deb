"""Nipype's plugin for Slurm, whose jobs end with the run."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from nipype.pipeline.plugins.slurm import SLURMPlugin


class SlurmPlugin(SLURMPlugin):
    """Nipype's ``SLURM``, which by itself leaves its jobs running when it ends before them.

    Beside nipype's ``plugin_args`` it takes ``poll_seconds`` (5) between two rounds of questions
    about the jobs, and ``grace_seconds`` (20) that a network file system may take to show the
    result of a job that ended.
    """

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run the graph; afterwards no job of it is left, however it ended."""
        os.environ.setdefault("LOGNAME", str(os.getuid()))  # which nipype puts into jobs' names
        config["execution"]["poll_sleep_duration"] = str(self.plugin_args.get("poll_seconds", 5))
        config["execution"]["job_finished_timeout"] = self.plugin_args.get("grace_seconds", 20)
        try:
            super().run(graph, config, updatehash)
        finally:
            if self._pending:
                subprocess.run(["scancel", *map(str, self._pending)], check=False)  # noqa: S603, S607

    def _report_crash(self, node: Any, result: dict[str, Any] | None = None) -> Any:
        if result is not None and isinstance(result["traceback"], str):
            # Nipype passes text where a node failed in this process, and adds a list to it.
            result = {**result, "traceback": result["traceback"].splitlines(keepends=True)}
        return super()._report_crash(node, result)
