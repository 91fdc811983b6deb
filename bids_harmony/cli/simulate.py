"""``bids_harmony-simulate``: a made-up multi-site BIDS dataset with known truth."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bids_harmony import __version__
from bids_harmony.cli.utf8 import use_utf8
from bids_harmony.console import flush, prepare_streams, say
from bids_harmony.errors import EXIT_OK, EXIT_SOFTWARE, HarmonyError

#: Heads made at once unless told otherwise, where the machine has the processors.
MAX_DEFAULT_NPROCS = 8


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog="bids_harmony-simulate",
        description="Write a BIDS dataset of made-up T1w scans from several made-up scanners, "
        "and its truth (brain masks, volumes, effects, scanners, what is wrong with which scan) "
        "in derivatives/truth. No person was scanned, and the diagnosis is made up.",
        epilog="Example: bids_harmony-simulate /tmp/heads --sites 3 --subjects 2 --seed 1",
    )
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="folder of the new dataset")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    design = parser.add_argument_group("Sites and heads")
    design.add_argument(
        "--sites", "--n-sites", type=int, default=3, metavar="N", help="number of sites [3]"
    )
    design.add_argument(
        "--subjects",
        "--n-subjects",
        type=int,
        nargs="+",
        default=[2],
        metavar="M",
        help="heads per site, one number for all or one for each; with --travelling, heads in "
        "all [2]",
    )
    design.add_argument(
        "--travelling",
        "--traveling",
        action="store_true",
        help="scan the same heads at every site, one session per site",
    )
    design.add_argument(
        "--confound",
        type=float,
        default=0.0,
        metavar="YEARS",
        help="site 1's heads are this much older on average than the others'; every site still "
        "spans 18 to 85 years [0]",
    )
    design.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="S",
        help="same seed, same dataset, byte by byte [0]",
    )

    heads = parser.add_argument_group("What heads are like")
    heads.add_argument(
        "--diagnosis-effect",
        type=float,
        default=1.0,
        metavar="SIZE",
        help="how strongly the made-up diagnosis widens ventricles and thins cortex: 0 not at "
        "all, 1 plain to see in a few dozen heads [1]",
    )
    heads.add_argument(
        "--anatomies",
        type=Path,
        metavar="DIR",
        help="make heads from the label maps (NIfTI) in this folder in turn: FreeSurfer's labels "
        "and SimNIBS's for the rest of the head, or those of DIR/labels.tsv (columns index and "
        "tissue) [one template]",
    )
    heads.add_argument(
        "--pathology",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of heads, 0 to 1, with a lesion, a resection or strong atrophy [0]",
    )

    scans = parser.add_argument_group("What scans are like")
    scans.add_argument(
        "--resolution",
        type=float,
        default=0.0,
        metavar="MM",
        help="no voxel finer than this, 0.8 to 4; small and fast datasets [each site's own]",
    )
    scans.add_argument(
        "--stripped-sites",
        type=int,
        nargs="+",
        default=[],
        metavar="K",
        help="numbers of the sites that deliver scans without skull [none]",
    )
    scans.add_argument(
        "--bad",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of scans, 0 to 1, that are bad, evenly of all kinds; the truth's scans.tsv "
        "says which. Wrong masks come in derivatives/masks, for --derivatives [0]",
    )
    scans.add_argument(
        "--bad-kinds",
        nargs="+",
        metavar="KIND",
        help="only these kinds of bad scans: ghosting, wrong-contrast, cropped, noise, "
        "wrong-orientation, wrong-mask, lesion [all]",
    )

    running = parser.add_argument_group("Running")
    running.add_argument(
        "--nprocs",
        type=int,
        default=min(len(os.sched_getaffinity(0)), MAX_DEFAULT_NPROCS),
        metavar="P",
        help="heads made at the same time, about 0.3 GB each [processors, at most 8: %(default)s]",
    )
    running.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a simulated dataset in OUT; derivatives that others wrote stay",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        0; 2 when an argument is wrong, 70 when writing fails.
    """
    if argv is None:
        use_utf8()
    prepare_streams()
    try:
        return _simulate(build_parser().parse_args(argv))
    finally:
        flush()


def _simulate(args: argparse.Namespace) -> int:
    """Make the dataset, and say where it is or why it is not."""
    # Numerical libraries are loaded only once there is something to do.
    from bids_harmony.simulation.dataset import MASKS, simulate_dataset
    from bids_harmony.simulation.defects import KINDS

    out: Path = args.output_dir
    try:
        simulate_dataset(
            out,
            n_sites=args.sites,
            n_subjects=args.subjects,
            seed=args.seed,
            travelling=args.travelling,
            confound=args.confound,
            diagnosis_effect=args.diagnosis_effect,
            pathology=args.pathology,
            bad=args.bad,
            bad_kinds=args.bad_kinds or tuple(KINDS),
            anatomies=args.anatomies,
            nprocs=args.nprocs,
            resolution=args.resolution,
            stripped_sites=args.stripped_sites,
            overwrite=args.overwrite,
            progress=say,
        )
    except HarmonyError as error:
        say(f"bids_harmony-simulate: error: {error}", error=True)
        return error.exit_code
    except OSError as error:
        say(f"bids_harmony-simulate: error: {error}. Check space and rights.", error=True)
        return EXIT_SOFTWARE
    except KeyboardInterrupt:
        say("bids_harmony-simulate: stopped; run again with --overwrite.", error=True)
        return 130
    say(f"Wrote {out}; the truth is in {out / 'derivatives' / 'truth'}.\nNow run:")
    masks = f" --derivatives masks={out / MASKS}" if (out / MASKS).is_dir() else ""
    say(f"  bids_harmony {out} {out / 'derivatives' / 'bids_harmony'} participant{masks}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
