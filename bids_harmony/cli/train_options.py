"""The options of the ``train`` level."""

from __future__ import annotations

import argparse
from typing import Any

from bids_harmony.cli.arguments import AsTuple, add_option, default_of
from bids_harmony.text import plain_number
from bids_harmony.training.config import MAPS, RECIPES, TrainOptions


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the group of options that only ``train`` knows; their names begin with ``train_``."""
    group = parser.add_argument_group("training (levels train and evaluate)")

    def option(name: str, text: str, **kwargs: Any) -> None:
        default = default_of(name, TrainOptions).replace("None", "as the recipe says")
        shown = f"{text} (default: {default})"
        add_option(
            group, "--" + name.replace("_", "-"), dest=f"train_{name}", help=shown, **kwargs
        )

    add_option(
        group,
        "--reference-site",
        dest="train_reference_site",
        type=plain_number,
        metavar="SITE",
        help="site all others are mapped to (default: the one with most scans)",
    )
    add_option(
        group,
        "--target",
        "--targets",
        dest="train_targets",
        nargs="+",
        action=AsTuple,
        metavar="COLUMN",
        help="what to predict: columns of numbers or of two classes, or simulated-schizophrenia "
        f"(default: {default_of('targets', TrainOptions)})",
    )
    option("model_name", "name of the bundle, written to OUTPUT_DIR/models", metavar="NAME")
    option("map", "what follows a site's intensity mapping", choices=MAPS)
    option("predictor", "how predictors are trained", choices=RECIPES)
    option("predictor_steps", "steps of each predictor's network", type=int, metavar="N")
    add_option(
        group,
        "--fast-dev-run",
        dest="train_fast_dev_run",
        action="store_true",
        help="a few steps of everything, to see that it runs",
    )
    option("holdout", "part of each site's subjects kept for figures", type=float, metavar="X")
    option("validation", "part kept for setting the guard's limits", type=float, metavar="X")
    option("folds", "networks in a predictor's ensemble", type=int, metavar="N")
