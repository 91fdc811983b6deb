"""Stand-ins for the programs of FSL, and for dc, told apart by the first argument.

``install`` puts them where FSL has them, beside the script ``bet``. Those that register write a
matrix in FSL's convention (scaled voxels, flipped for images stored left to right), so what reads
it is tested for real. Like FSL's, they write to stderr where nothing is wrong.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

PROGRAMS = ("bet2", "imtest", "remove_ext", "fslval", "fslstats", "flirt")
FLIRT = {"-in", "-ref", "-out", "-omat", "-dof", "-cost", "-searchcost", "-bins", "-interp"}
ENDINGS = (".nii.gz", ".nii")


def install(folder: Path, version: str = "6.0.0") -> dict[str, str]:
    """Make an FSLDIR and, beside it, a folder with dc; return the environment that finds them."""
    fsldir, unix = folder / "fsl", folder / "unix"
    for program in (*(fsldir / "bin" / name for name in PROGRAMS), unix / "dc"):
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


def stem(name: str) -> str:
    return next((name.removesuffix(end) for end in ENDINGS if name.endswith(end)), name)


def found(name: str) -> str | None:
    return next((f"{stem(name)}{end}" for end in ENDINGS if Path(stem(name) + end).exists()), None)


def fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


def remove_ext(argv: list[str]) -> int:
    print(" ".join(map(stem, argv)))
    return 0


def imtest(argv: list[str]) -> int:
    print(int(bool(argv and found(argv[0]))))
    return 0


def dc(argv: list[str]) -> int:
    """Calculate as ``dc -`` does with the digits that ``0 k`` leaves."""
    stack = [0.0, 0.0]
    for word in sys.stdin.read().split():
        if word == "k":
            stack.pop()
        elif word == "p":
            print(int(stack[-1]))
        elif word in "-+/^":
            b, a = stack.pop(), stack.pop()
            stack.append({"-": a - b, "+": a + b, "^": a**b, "/": a / b if b else 0}[word])
        else:
            stack.append(float(word.replace("_", "-")))
    return 0


def fslval(argv: list[str]) -> int:
    import nibabel as nib

    print(nib.load(found(argv[0])).header[argv[1].rstrip("1234")][int(argv[1][-1])], "")
    return 0


def fslstats(argv: list[str]) -> int:
    if found(argv[0]) is None:
        return fail(f"Image Exception : #63 :: No image files match: {argv[0]}")

    import nibabel as nib
    import numpy as np

    assert argv[1:] == ["-l", "0.001", "-C"]
    print(*np.mean(np.nonzero(np.asarray(nib.load(found(argv[0])).dataobj) > 0.001), axis=1))
    return 0


def bet2(argv: list[str]) -> int:
    """Find a head's brain by deepbet, and a small made-up one by its brightness."""
    print("bet2: /lib/libz.so.1: no version information available", file=sys.stderr)
    if len(argv) < 2 or (source := found(argv[0])) is None:
        return fail(f"Image Exception : #63 :: No image files match: {argv[:1]}")
    if os.environ["FSLOUTPUTTYPE"] != "NIFTI_GZ":
        return fail("the output's type is not the one wanted")

    import nibabel as nib
    import numpy as np

    img = nib.load(source)
    data = np.asarray(img.dataobj, dtype=np.float32)
    if max(data.shape) <= 64:
        mask = data > data.max() / 2
    else:
        from bids_harmony.anat.brain import deepbet_mask

        mask = deepbet_mask(img)
    out = stem(argv[1])
    nib.save(nib.Nifti1Image(np.where(mask, data, 0), img.affine), f"{out}.nii.gz")
    if "-m" in argv:
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), img.affine), f"{out}_mask.nii.gz")
    return 0


def flirt(argv: list[str]) -> int:
    given, options = {}, list(argv)
    while options:
        flag = options.pop(0)
        if flag not in FLIRT or not options:
            return fail(f"Unrecognised option {flag}")
        given[flag] = options.pop(0)
    if missing := {"-in", "-ref", "-omat"} - set(given):
        return fail(f"flirt: missing {missing}")
    for flag in ("-in", "-ref"):
        if not Path(given[flag]).exists():
            return fail(f"Cannot open volume {given[flag]} for reading!")
    if given.get("-dof", "12") not in {"6", "7", "9", "12"}:
        return 1
    if given.get("-cost", "corratio") not in {"mutualinfo", "corratio", "normcorr", "normmi"}:
        return 1
    if log := os.environ.get("STANDIN_LOG"):
        with open(log, "a") as stream:
            stream.write(shlex.join(["flirt", *argv]) + "\n")

    import nibabel as nib
    import nitransforms as nt

    from bids_harmony.anat.affine import register_affine, resample

    with tempfile.TemporaryDirectory() as scratch:
        itk = register_affine(
            nib.load(given["-in"]), nib.load(given["-ref"]), Path(scratch) / "a.txt", sloppy=True
        )
        affine = nt.linear.load(str(itk), fmt="itk", reference=given["-ref"], moving=given["-in"])
        affine.to_filename(given["-omat"], fmt="fsl", moving=given["-in"])
        if "-out" in given:
            moved = resample(nib.load(given["-in"]), nib.load(given["-ref"]), itk)
            nib.save(moved, given["-out"])
    return 0


if __name__ == "__main__":
    programs = {f.__name__: f for f in (bet2, imtest, remove_ext, fslval, fslstats, flirt, dc)}
    sys.exit(programs[sys.argv[1]](sys.argv[2:]))
