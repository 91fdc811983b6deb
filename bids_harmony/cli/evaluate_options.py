"""The options of the ``evaluate`` level."""

from __future__ import annotations

import argparse

from bids_harmony.cli.arguments import AsTuple, add_option, default_of
from bids_harmony.evaluation import EXPERIMENTS, EvaluateOptions
from bids_harmony.text import plain_number


def add_evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Add the group of options that only ``evaluate`` knows; names begin with ``evaluate_``."""
    group = parser.add_argument_group("experiments (level evaluate)")
    add_option(
        group,
        "--experiments",
        dest="evaluate_experiments",
        nargs="+",
        action=AsTuple,
        choices=EXPERIMENTS,
        metavar="NAME",
        help="sites: trained at the reference, tested at every site; rotations: one or two "
        "training sites in every order; size: from how few persons a site can be calibrated "
        f"(default: {default_of('experiments', EvaluateOptions)})",
    )
    add_option(
        group,
        "--cv-folds",
        dest="evaluate_cv_folds",
        type=int,
        metavar="N",
        help="parts of the participants, each tested by what was trained on the others "
        f"(default: {default_of('cv_folds', EvaluateOptions)})",
    )
    add_option(
        group,
        "--n-seeds",
        "--seeds",
        dest="evaluate_n_seeds",
        type=int,
        metavar="N",
        help="times that everything is trained again with other chance "
        f"(default: {default_of('n_seeds', EvaluateOptions)})",
    )
    add_option(
        group,
        "--train-sites",
        dest="evaluate_train_sites",
        type=plain_number,
        nargs="+",
        action=AsTuple,
        metavar="SITE[+SITE]",
        help="where rotations train: a site, or two joined by +, the reference first; adds the "
        "experiment rotations (default: every site and every two)",
    )
