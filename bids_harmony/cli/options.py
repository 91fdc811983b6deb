"""The options: names, aliases, groups and help.

Positionals, option names and aliases are those of fMRIPrep, MRIQC and their kin, so that scripts
made for one of them work.
"""

from __future__ import annotations

import argparse

from bids_harmony import __version__
from bids_harmony.cli.arguments import (
    Formatter,
    Parser,
    add_option,
    default_of,
    parse_bundle,
    parse_calibration,
    parse_gb,
    parse_mb,
    parse_path,
)
from bids_harmony.cli.evaluate_options import add_evaluate_options
from bids_harmony.cli.group_options import add_group_options
from bids_harmony.cli.train_options import add_training_options
from bids_harmony.config import CHOICES, LEVELS, RunConfig

PROGRAM = "bids_harmony"
FORM = f"{PROGRAM} BIDS_DIR OUTPUT_DIR participant [options]"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; its results hold only what the user wrote (defaults are RunConfig's)."""
    parser = Parser(
        prog=PROGRAM,
        usage=FORM.replace("participant", "{" + ",".join(LEVELS) + "}"),
        description="Harmonize T1-weighted brain scans to one reference site, and predict brain "
        "age and schizophrenia probability there. Research use only: not a diagnosis.",
        epilog="Options may be written with hyphens or underscores. Exit codes: 0 all scans done, "
        "1 some failed, 2 usage, 66 no T1w, 70 internal error, 78 bundle, 127 missing program, "
        "130 interrupted.",
        formatter_class=Formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "bids_dir", metavar="BIDS_DIR", type=parse_path, help="the raw BIDS dataset"
    )
    parser.add_argument(
        "output_dir", metavar="OUTPUT_DIR", type=parse_path, help="derivatives folder"
    )
    parser.add_argument(
        "level",
        metavar="LEVEL",
        help="participant: each scan from raw to report; calibrate: each site, from its "
        "preprocessed scans in OUTPUT_DIR; group: tables, outliers and one "
        "report of all scans there; train: a new model bundle from its preprocessed scans; "
        "evaluate: predictions with and without harmonization, by cross-validation on them",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    _add_selection(parser)
    _add_tables(parser)
    _add_processing(parser)
    _add_resources(parser)
    _add_run(parser)
    add_group_options(parser)
    add_training_options(parser)
    add_evaluate_options(parser)
    return parser


def _add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which scans (default: every T1w image)")
    add_option(
        group,
        "--participant-label",
        nargs="+",
        action="extend",
        metavar="LABEL",
        help="participants, with or without sub-",
    )
    add_option(
        group,
        "--session-label",
        "--session-id",
        nargs="+",
        action="extend",
        metavar="LABEL",
        help="sessions, with or without ses-",
    )
    add_option(
        group,
        "--bids-filter-file",
        type=parse_path,
        metavar="FILE",
        help='JSON such as {"t1w": {"acquisition": "mprage"}}; null means without, "*" means any',
    )
    add_option(
        group,
        "--skip-bids-validation",
        "--skip-bids-validator",
        action="store_true",
        help="do not warn about the dataset's description",
    )
    add_option(
        group,
        "--bids-database-dir",
        type=parse_path,
        metavar="PATH",
        help="folder of a saved pybids index, made if there is none and then used as it is "
        "(default: the asked subjects are indexed each time, in seconds)",
    )


def _add_tables(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "what is known of a scan (from scans.tsv, sessions.tsv and participants.tsv, the most "
        "specific first)"
    )
    usual = "(default: the usual names are tried)"
    add_option(
        group,
        "--site-column",
        metavar="NAME",
        help="column of the acquisition site (default: the usual names are tried, then the "
        "sidecar's manufacturer, model and field strength)",
    )
    for what in ("age", "sex", "diagnosis"):
        add_option(group, f"--{what}-column", metavar="NAME", help=f"column of the {what} {usual}")
    add_option(
        group,
        "-d",
        "--derivatives",
        nargs="+",
        action="extend",
        metavar="NAME=PATH",
        help="derivatives with brain masks in native space (*_desc-brain_mask.nii.gz), which "
        "then are used as they are",
    )


def _add_processing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("processing (auto: as the bundle was trained)")

    def choice(name: str, text: str) -> None:
        choices = "{" + ",".join(CHOICES[name]) + "}"
        shown = f"{text} (default: {default_of(name, RunConfig)})"
        add_option(group, "--" + name.replace("_", "-"), metavar=choices, help=shown)

    add_option(
        group,
        "--bundle",
        type=parse_bundle,
        metavar="PATH",
        help="folder of a model bundle; 'default' is the one that comes with the program, 'none' "
        f"preprocesses and measures only (default: {default_of('bundle', RunConfig)})",
    )
    add_option(
        group,
        "--calibration",
        type=parse_calibration,
        metavar="PATH",
        help="calibration of a site (site-*_calibration.json), or a folder of some, to use as it "
        "is; sites without one are calibrated from their scans in this run (default: auto, those "
        "that the calibrate level left in OUTPUT_DIR, else the scans of this run)",
    )
    add_option(
        group,
        "--fit-filter",
        metavar="CONDITION",
        help="scans to calibrate sites from, and to train on, such as "
        "'diagnosis == \"control\"' (default: all)",
    )
    choice("skull_strip", "brain mask; auto also recognises scans that are stripped already")
    choice("registration", "affine registration, 12 degrees of freedom")
    add_option(
        group,
        "--template",
        type=parse_path,
        metavar="FILE",
        help="brain-only T1w image to register to (default: the bundle's)",
    )
    add_option(
        group,
        "--atlas-dir",
        type=parse_path,
        metavar="PATH",
        help="T1w images with brain masks, for --skull-strip multi-atlas",
    )
    add_option(
        group,
        "--n-atlases",
        type=int,
        metavar="N",
        help="how many of the most similar atlases are fused "
        f"(default: {default_of('n_atlases', RunConfig)})",
    )
    add_option(
        group,
        "--output-spaces",
        nargs="+",
        metavar="SPACE",
        help="T1w adds the harmonized scan on its native grid; the template grid is always "
        f"written (default: {default_of('output_spaces', RunConfig)})",
    )
    choice(
        "on_guard_fail",
        "where harmonization seems to have changed the anatomy: flag only, or predict from the "
        "raw scan alone",
    )
    add_option(
        group,
        "--correct-age-bias",
        action="store_true",
        help="add age gaps without the part that age alone explains at the reference site; the "
        "uncorrected ones stay the headline",
    )
    choice("device", "where networks run; auto takes a GPU if there is one")
    add_option(
        group,
        "--random-seed",
        type=int,
        metavar="N",
        help="seed of everything that draws numbers "
        f"(default: {default_of('random_seed', RunConfig)})",
    )
    add_option(
        group, "--sloppy", "--testing", action="store_true", help="low quality, for tests only"
    )


def _add_resources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("resources")
    add_option(
        group,
        "--nprocs",
        "--nthreads",
        "--n-cpus",
        "--n-procs",
        type=int,
        metavar="N",
        help="processes at once (default: all CPUs this process may use)",
    )
    add_option(
        group,
        "--omp-nthreads",
        "--ants-nthreads",
        type=int,
        metavar="N",
        help="threads of one process (default: nprocs - 1, at least 1 and at most 8)",
    )
    add_option(
        group,
        "--mem",
        "--mem-gb",
        dest="mem_gb",
        type=parse_gb,
        metavar="GB",
        help="memory the run may use, in GB, or with its unit as in 8GB (default: the machine's)",
    )
    add_option(
        group, "--mem-mb", dest="mem_gb", type=parse_mb, metavar="MB", help="the same, in MB"
    )
    add_option(
        group,
        "--use-plugin",
        "--nipype-plugin-file",
        type=parse_path,
        metavar="FILE",
        help="nipype plugin settings (YAML), for clusters (default: MultiProc on this machine)",
    )
    add_option(
        group,
        "-w",
        "--work-dir",
        type=parse_path,
        metavar="PATH",
        help="intermediate files, from which a run that was stopped continues (default: ./work)",
    )
    add_option(
        group, "--clean-workdir", action="store_true", help="delete a scan's as soon as it is done"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("this run")
    add_option(
        group,
        "--dry-run",
        action="store_true",
        help="list each scan and what would be done with it, and stop",
    )
    add_option(
        group, "--reports-only", action="store_true", help="write the reports again, no more"
    )
    add_option(
        group,
        "--config-file",
        type=parse_path,
        metavar="FILE",
        help="options of an earlier run (logs/<run_uuid>/bids_harmony.json); those on the "
        "command line win",
    )
    add_option(group, "--run-uuid", metavar="ID", help="name of the run's folder in logs/")
    add_option(
        group,
        "--stop-on-first-crash",
        action="store_true",
        help="stop at the first scan that fails (default: the others are finished)",
    )
    add_option(group, "--write-graph", action="store_true", help="draw the workflow")
    add_option(group, "--resource-monitor", action="store_true", help="record memory and CPU use")
    add_option(
        group,
        "--notrack",
        action="store_true",
        help="accepted for scripts that pass it: nothing is ever sent anywhere",
    )
    add_option(group, "-v", "--verbose", action="count", help="say more: -v, -vv, -vvv")
