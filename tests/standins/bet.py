"""Stand-in for FSL's bet: checks its arguments, records them, and finds the brain by deepbet."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

VALUES = {"-f", "-g", "-r", "-c"}
SWITCHES = {"-m", "-R", "-n", "-o", "-s", "-S", "-B", "-v"}


def main(argv: list[str]) -> int:
    if len(argv) < 2:
        print("Usage: bet <input> <output> [options]", file=sys.stderr)
        return 1
    source, out, options = argv[0], argv[1], argv[2:]
    given = {}
    while options:
        flag = options.pop(0)
        if flag in VALUES:
            given[flag] = float(options.pop(0))
        elif flag in SWITCHES:
            given[flag] = True
        else:
            print(f"bet: unknown option {flag}", file=sys.stderr)
            return 1
    if not Path(source).exists():
        print(f"Cannot open volume {source} for reading!", file=sys.stderr)
        return 1
    if os.environ["FSLOUTPUTTYPE"] != "NIFTI_GZ":
        return 1
    with open(os.environ["STANDIN_LOG"], "a") as log:
        log.write(json.dumps(["bet", *argv]) + "\n")

    from bids_harmony.anat.brain import deepbet_mask

    img = nib.load(source)
    mask = deepbet_mask(img)
    stem = out.removesuffix(".nii.gz")
    nib.save(
        nib.Nifti1Image(np.where(mask, np.asarray(img.dataobj), 0), img.affine), f"{stem}.nii.gz"
    )
    if "-m" in given:
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), img.affine), f"{stem}_mask.nii.gz")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
