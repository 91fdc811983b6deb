"""The ``bids_harmony-simulate`` command: simulate a multi-site BIDS dataset with ground truth."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from bids_harmony import __version__
from bids_harmony.cli.checks import check_writable
from bids_harmony.cli.parser import bounded
from bids_harmony.cli.run import exit_code, use_utf8
from bids_harmony.config import available_cpus
from bids_harmony.errors import EXIT_OK, MissingProgramError
from bids_harmony.simulation import KINDS

LOGGER = logging.getLogger(__name__)

PROGRAM = "bids_harmony-simulate"


# fmt: off
def build_parser() -> argparse.ArgumentParser:
    """Return the argument parser of the command."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Write a BIDS dataset of simulated T1w scans from several simulated scanners, "
        "and its ground truth (brain masks, volumes, effects, scanners, artifacts) in "
        "derivatives/truth. The diagnosis is simulated, too.",
        epilog=f"Example: {PROGRAM} /tmp/heads --sites 3 --subjects 2 --seed 1",
    )
    add = parser.add_argument
    nprocs = min(available_cpus(), 8)
    add("output_dir", type=Path, metavar="OUT", help="folder of the dataset")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    add("--sites", dest="n_sites", type=bounded(1, 1000), default=3, metavar="N",
        help="number of sites [3]")
    add("--subjects", dest="n_subjects", type=bounded(1, 100_000), default=2, metavar="M",
        help="subjects per site; with --travelling, in total [2]")
    add("--travelling", action="store_true",
        help="scan the same subjects at every site, one session per site")
    add("--seed", type=bounded(0, 2**32), default=0, metavar="S",
        help="random seed [0]")
    add("--diagnosis-effect", type=bounded(0.0, 2.0), default=1.0, metavar="SIZE",
        help="effect size of the simulated diagnosis on ventricles and cortex; 0: none [1]")
    add("--resolution", type=bounded(0.8, 4.0), default=0.8, metavar="MM",
        help="smallest voxel size [0.8]")
    add("--bad", type=bounded(0.0, 1.0), default=0.0, metavar="SHARE",
        help="fraction of defective scans, listed in the ground truth's scans.tsv; wrong masks "
        "are in derivatives/masks, for --derivatives [0]")
    add("--bad-kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND",
        help=f"kinds of defective scans: {', '.join(KINDS)} [all]")
    add("--nprocs", type=bounded(1, 1000), default=nprocs, metavar="P",
        help="number of processes, up to 1 GB each [available CPUs, at most 8]")
    return parser


# fmt: on
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bids_harmony-simulate``.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; by default those of the command line.

    Returns
    -------
    int
        Exit code: 0, 2 if an argument is invalid, 70 if writing fails, 127 if TorchIO is missing.
    """
    if argv is None:
        use_utf8()
    return exit_code(PROGRAM, lambda: simulate(argv))


def simulate(argv: Sequence[str] | None) -> int:
    """Write the dataset, print its location, and return the exit code."""
    options = vars(build_parser().parse_args(argv))
    if find_spec("torchio") is None:
        raise MissingProgramError(
            "The simulation needs TorchIO.", "Install it: pip install 'bids_harmony[simulate]'."
        )
    # Imported late, so that --help is fast.
    from bids_harmony.simulation.dataset import MASKS, simulate_dataset

    out = options.pop("output_dir").absolute()
    check_writable(out, "The output folder")
    simulate_dataset(out, **options)
    LOGGER.info(
        f"Wrote {out}, with its ground truth in {out / 'derivatives' / 'truth'}.\nNow run:"
    )
    masks = f" --derivatives {out / MASKS}" if (out / MASKS).is_dir() else ""
    LOGGER.info(f"  bids_harmony {out} {out / 'derivatives' / 'bids_harmony'} participant{masks}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
