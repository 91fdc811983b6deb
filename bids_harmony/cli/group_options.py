"""The options of looking at the whole dataset: ``group``, and what people say of its scans."""

from __future__ import annotations

import argparse

from bids_harmony.cli.arguments import AsTuple, add_option, parse_path


def add_group_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``group`` knows, and the levels after it."""
    group = parser.add_argument_group("quality (levels group, train and evaluate)")
    add_option(
        group,
        "--qc-ratings",
        nargs="+",
        action=AsTuple,
        type=parse_path,
        metavar="FILE",
        help="ratings saved from the group report, of one or several people; group adds them to "
        "OUTPUT_DIR/qc_ratings.tsv, which is always read; train and evaluate leave out what is "
        "rejected there",
    )
