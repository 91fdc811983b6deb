"""Stand-ins for the programs of FSL, told apart by the first argument.

``install`` puts them where FSL has them, beside the script ``bet``. ``flirt`` writes a matrix in
FSL's convention (scaled voxels, flipped for images stored left to right), so what reads it is
tested for real. Like FSL's, they write to stderr where nothing is wrong.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

#: What ``bet`` needs besides; the stand-in does not call them.
NEEDED = ("imtest", "remove_ext", "fslval", "fslstats")


def install(folder: Path, version: str = "6.0.0") -> dict[str, str]:
    """Make an FSLDIR and, beside it, a folder with dc; return the environment that finds them."""
    fsldir, unix = folder / "fsl", folder / "unix"
    for program in (*(fsldir / "bin" / name for name in ("bet2", "flirt", *NEEDED)), unix / "dc"):
        program.parent.mkdir(parents=True, exist_ok=True)
        command = shlex.join([sys.executable, __file__, program.name])
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o755)
    shutil.copy(Path(__file__).with_name("bet"), fsldir / "bin" / "bet")
    (fsldir / "bin" / "bet").chmod(0o755)
    (fsldir / "etc").mkdir(exist_ok=True)
    (fsldir / "etc" / "fslversion").write_text(f"{version}\n")
    return {
        "FSLDIR": str(fsldir),
        "PATH": f"{fsldir}/bin:{unix}:{os.environ['PATH']}",
        "STANDIN_LOG": str(folder / "calls"),
    }


def bet2(source: str, out: str, *options: str) -> None:
    """Find a head's brain by deepbet, and a small made-up one by its brightness."""
    import nibabel as nib
    import numpy as np

    print("bet2: /lib/libz.so.1: no version information available", file=sys.stderr)
    assert os.environ["FSLOUTPUTTYPE"] == "NIFTI_GZ"
    assert "-m" in options
    img = nib.load(source)
    data = np.asarray(img.dataobj, dtype=np.float32)
    mask = data > data.max() / 2
    if max(data.shape) > 64:
        from bids_harmony.anat.brain import deepbet_mask

        mask = deepbet_mask(img)
    mask_file = f"{out.removesuffix('.nii.gz')}_mask.nii.gz"
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), img.affine), mask_file)


def flirt(*arguments: str) -> None:
    import nibabel as nib
    import nitransforms as nt

    from bids_harmony.anat.affine import register_affine

    with open(os.environ["STANDIN_LOG"], "a") as stream:
        stream.write(shlex.join(["flirt", *arguments]) + "\n")
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert set(given) == {"-in", "-ref", "-out", "-omat", "-dof", "-cost"}
    moving, reference = given["-in"], given["-ref"]
    with tempfile.TemporaryDirectory() as scratch:
        itk = register_affine(
            nib.load(moving), nib.load(reference), Path(scratch) / "a.txt", sloppy=True
        )
        affine = nt.linear.load(str(itk), fmt="itk", reference=reference, moving=moving)
        affine.to_filename(given["-omat"], fmt="fsl", moving=moving)


if __name__ == "__main__":
    {"bet2": bet2, "flirt": flirt}[sys.argv[1]](*sys.argv[2:])
