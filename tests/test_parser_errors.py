"""What is answered to what may not be written on the command line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import refuse


@pytest.mark.parametrize(
    ("options", "cause", "remedy"),
    [
        ("--nprocs 0", "--nprocs is 0", "at least 1"),
        ("--nprocs x", "--nprocs 'x' is not a whole number", "whole number"),
        ("--nprocs 1.5", "is not a whole number", "whole number"),
        ("--omp-nthreads -1", "--omp-nthreads is -1", "at least 1"),
        ("--n-atlases 0", "--n-atlases is 0", "at least 1"),
        ("--random-seed -1", "--random-seed is -1", "at least 0"),
        ("--random-seed 4294967296", "--random-seed is", "below"),
        ("--device gpu", "--device is 'gpu'", "auto, cpu, cuda"),
        ("--skull-strip hd-bet", "--skull-strip is 'hd-bet'", "deepbet"),
        ("--registration spm", "--registration is 'spm'", "flirt"),
        ("--mem lots", "--mem lots is no amount", "--mem 8"),
        ("--mem 1.2.3", "--mem 1.2.3 is no amount", "--mem 8"),
        ("--mem 0", "--mem is 0 GB", "GB"),
        ("--mem 16000", "is 16000 GB", "--mem-mb 16000"),
        ("--mem-mb 8GB", "--mem-mb 8GB", "MB"),
        ("--holdout much", "--holdout 'much' is not a number", "number"),
        ("--output-spaces MNI152NLin6Asym", "no such space", "T1w"),
        ("--skull-strip multi-atlas", "needs atlases", "--atlas-dir"),
        ("--run-uuid ../x", "cannot name a folder", "letters"),
        ("--reports-only --run-uuid none", "no earlier run", "--run-uuid"),
        ("--participant-lable 01", "Unknown argument: --participant-lable", "--participant-label"),
        ("--participant 01", "Unknown argument: --participant", "--participant-label"),
        ("extra", "Unknown argument: extra", "--help"),
        ("--participant-label", "--participant-label: expected at least one", "--help"),
        ("--template absent.nii", "--template does not exist", "path"),
        ("--template .", "--template is not a file", "file"),
        ("--bundle absent", "--bundle does not exist", "path"),
        ("--use-plugin absent", "--use-plugin does not exist", "path"),
        ("--config-file absent", "cannot be read", "path"),
        ("--bids-filter-file absent", "cannot be read", "path"),
        ("-d x=absent", "--derivatives x does not exist", "path"),
    ],
)  # fmt: skip
def test_wrong_values(paths: list[str], options: str, cause: str, remedy: str) -> None:
    error = refuse([*paths, "participant", *options.split()])
    assert cause in error.cause
    assert remedy in error.remedy


def test_wrong_levels(paths: list[str]) -> None:
    error = refuse([*paths, "subject"])
    assert error.cause == "The level is 'subject'."
    assert "participant" in error.remedy


def test_positionals_behind_a_list_are_missed(paths: list[str]) -> None:
    error = refuse(["--participant-label", "01", *paths, "participant"])
    assert error.cause.startswith("Missing: ")
    assert error.remedy.endswith("bids_harmony BIDS_DIR OUTPUT_DIR participant [options].")


def test_errors_reach_the_user_as_two_sentences(paths: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bids_harmony", *paths, "participant", "--nprocs", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "bids_harmony: error: --nprocs is 0.",
        "  It must be at least 1.",
    ]
