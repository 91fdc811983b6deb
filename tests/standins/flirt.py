"""Stand-in for FSL's flirt: checks and records its arguments, and registers by antspyx.

Its matrix is in FSL's convention (scaled voxels, flipped for images stored left to right), so
what reads it is tested for real.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import nitransforms as nt

VALUES = {"-in", "-ref", "-out", "-omat", "-dof", "-cost", "-searchcost", "-bins", "-interp"}


def main(argv: list[str]) -> int:
    given, options = {}, list(argv)
    while options:
        flag = options.pop(0)
        if flag not in VALUES or not options:
            print(f"Unrecognised option {flag}", file=sys.stderr)
            return 1
        given[flag] = options.pop(0)
    if missing := {"-in", "-ref", "-omat"} - set(given):
        print(f"flirt: missing {missing}", file=sys.stderr)
        return 1
    for flag in ("-in", "-ref"):
        if not Path(given[flag]).exists():
            print(f"Cannot open volume {given[flag]} for reading!", file=sys.stderr)
            return 1
    if given.get("-dof", "12") not in {"6", "7", "9", "12"}:
        return 1
    if given.get("-cost", "corratio") not in {"mutualinfo", "corratio", "normcorr", "normmi"}:
        return 1
    with open(os.environ["STANDIN_LOG"], "a") as log:
        log.write(json.dumps(["flirt", *argv]) + "\n")

    from bids_harmony.anat.affine import register_affine, resample

    with tempfile.TemporaryDirectory() as scratch:
        itk = register_affine(
            nib.load(given["-in"]), nib.load(given["-ref"]), Path(scratch) / "a.txt", sloppy=True
        )
        found = nt.linear.load(str(itk), fmt="itk", reference=given["-ref"], moving=given["-in"])
        found.to_filename(given["-omat"], fmt="fsl", moving=given["-in"])
        if "-out" in given:
            moved = resample(nib.load(given["-in"]), nib.load(given["-ref"]), itk)
            nib.save(moved, given["-out"])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
