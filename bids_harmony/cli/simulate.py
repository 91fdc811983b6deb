"""``bids_harmony-simulate``: a made-up multi-site BIDS dataset with known truth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bids_harmony import __version__
from bids_harmony.cli.run import use_utf8
from bids_harmony.config import available_cpus
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

    add = parser.add_argument_group("Sites and heads").add_argument
    add("--sites", "--n-sites", type=int, default=3, metavar="N", help="number of sites [3]")
    add("--subjects", "--n-subjects", type=int, nargs="+", default=[2], metavar="M",
        help="heads per site, one number for all or one for each; with --travelling, heads in "
        "all [2]")  # fmt: skip
    add("--travelling", "--traveling", action="store_true",
        help="scan the same heads at every site, one session per site")  # fmt: skip
    add("--confound", type=float, default=0.0, metavar="YEARS",
        help="site 1's heads are this much older on average than the others'; every site still "
        "spans 18 to 85 years [0]")  # fmt: skip
    add("--seed", type=int, default=0, metavar="S",
        help="same seed, same dataset, byte by byte [0]")  # fmt: skip

    add = parser.add_argument_group("What heads are like").add_argument
    add("--diagnosis-effect", type=float, default=1.0, metavar="SIZE",
        help="how strongly the made-up diagnosis widens ventricles and thins cortex: 0 not at "
        "all, 1 plain to see in a few dozen heads [1]")  # fmt: skip
    add("--anatomies", type=Path, metavar="DIR",
        help="make heads from the label maps (NIfTI) in this folder in turn: FreeSurfer's labels "
        "and SimNIBS's for the rest of the head, or those of DIR/labels.tsv (columns index and "
        "tissue) [one template]")  # fmt: skip
    add("--pathology", type=float, default=0.0, metavar="SHARE",
        help="share of heads, 0 to 1, with a lesion, a resection or strong "
        "atrophy [0]")  # fmt: skip

    add = parser.add_argument_group("What scans are like").add_argument
    add("--resolution", type=float, default=0.0, metavar="MM",
        help="no voxel finer than this, 0.8 to 4; small and fast datasets "
        "[each site's own]")  # fmt: skip
    add("--stripped-sites", type=int, nargs="+", default=[], metavar="K",
        help="numbers of the sites that deliver scans without skull [none]")  # fmt: skip
    add("--bad", type=float, default=0.0, metavar="SHARE",
        help="share of scans, 0 to 1, that are bad, evenly of all kinds; the truth's scans.tsv "
        "says which. Wrong masks come in derivatives/masks, for --derivatives [0]")  # fmt: skip
    add("--bad-kinds", nargs="+", metavar="KIND",
        help="only these kinds of bad scans: ghosting, wrong-contrast, cropped, noise, "
        "wrong-orientation, wrong-mask, lesion [all]")  # fmt: skip

    add = parser.add_argument_group("Running").add_argument
    add("--nprocs", type=int, default=min(available_cpus(), MAX_DEFAULT_NPROCS), metavar="P",
        help="heads made at the same time, about 0.3 GB each "
        "[processors, at most 8: %(default)s]")  # fmt: skip
    add("--overwrite", action="store_true",
        help="replace a simulated dataset in OUT; derivatives that others wrote "
        "stay")  # fmt: skip
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
        return _simulate(vars(build_parser().parse_args(argv)))
    finally:
        flush()


def _simulate(options: dict[str, object]) -> int:
    """Make the dataset, and say where it is or why it is not."""
    # Numerical libraries are loaded only once there is something to do.
    from bids_harmony.simulation.dataset import MASKS, simulate_dataset
    from bids_harmony.simulation.defects import KINDS

    program, out = "bids_harmony-simulate", Path(str(options.pop("output_dir")))
    options["n_sites"], options["n_subjects"] = options.pop("sites"), options.pop("subjects")
    options["bad_kinds"] = options["bad_kinds"] or tuple(KINDS)
    try:
        simulate_dataset(out, **options, progress=say)  # type: ignore[arg-type]
    except HarmonyError as error:
        say(f"{program}: error: {error}", error=True)
        return error.exit_code
    except OSError as error:
        say(f"{program}: error: {error}. Check space and rights.", error=True)
        return EXIT_SOFTWARE
    except KeyboardInterrupt:
        say(f"{program}: stopped; run again with --overwrite.", error=True)
        return 130
    say(f"Wrote {out}; the truth is in {out / 'derivatives' / 'truth'}.\nNow run:")
    masks = f" --derivatives masks={out / MASKS}" if (out / MASKS).is_dir() else ""
    say(f"  bids_harmony {out} {out / 'derivatives' / 'bids_harmony'} participant{masks}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
