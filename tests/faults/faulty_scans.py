"""Files that stand where a T1w scan should: what is wrong with each is its function's name."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_to_output
from scipy import ndimage
from t1w_images import (
    CODES,
    DATATYPE,
    DIM,
    NAN,
    PIXDIM,
    QUATERNION,
    SHAPE,
    SLOPE,
    VOX_OFFSET,
    Change,
    affine,
    nifti,
    scan,
    srow,
    write,
)

MIB = bytes(2**20)
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"
ANNEXED = Path(".git", "annex", "objects", "x")
RGB = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
FAR = np.array([[4, 0, 0, 0], [0, 4, 0, 3.6e16], [0, 0, 4, 0], [0, 0, 0, 1]])
SINGULAR = affine()[:, [0, 0, 2, 3]]
EVERY_FOURTH = np.arange(SHAPE[0])[:, None, None] % 4 == 0


def zipped(path: Path, *changes: Change) -> None:
    path.write_bytes(gzip.compress(nifti(*changes), 1))


def damaged(path: Path, *, keep: float = 1.0, zeros: int = 0) -> None:
    """Write a scan that is cut short, or holds zeros in its middle."""
    content = bytearray(write(path, scan()).read_bytes())
    middle = len(content) // 2
    content[middle : middle + zeros] = bytes(zeros)
    path.write_bytes(bytes(content[: int(keep * len(content))]))


def gzip_bomb(path: Path) -> None:
    """Write a good scan with 256 MB of zeros behind it, in 1.5 MB."""
    with gzip.open(path, "wb", 1) as file:
        file.write(nifti())
        for _ in range(256):
            file.write(MIB)


def huge_file(path: Path) -> None:
    """Write 32 GB of zeros that take no space."""
    path = path.with_suffix("")
    path.write_bytes(nifti((DIM, (3, 2000, 2000, 2000, 1, 1, 1, 1)))[:352])
    os.truncate(path, 352 + 4 * 2000**3)


def mgh(path: Path) -> None:
    other = path.with_name("x.mgz")
    nib.save(nib.MGHImage(scan(), affine()), other)
    other.rename(path)


def plain(path: Path, content: bytes) -> None:
    path.with_suffix("").write_bytes(content)


#: By name: what writes the file, and why it cannot be used.
UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "billions of voxels": (
        lambda p: zipped(p, (DIM, (3, 30000, 30000, 30000, 1, 1, 1, 1))),
        "claims 30000 x 30000 x 30000",
    ),
    "negative size": (lambda p: zipped(p, (DIM, (3, -48, 56, 40, 1, 1, 1, 1))), "cannot be read"),
    "nan zoom": (
        lambda p: zipped(p, (PIXDIM, (1, NAN, 4, 4)), (CODES, (1, 0))),
        "no valid affine",
    ),
    "zero zoom": (
        lambda p: zipped(p, (PIXDIM, (1, 0, 4, 4)), (CODES, (1, 0))),
        "only a part of the head",
    ),
    "infinite offset": (lambda p: zipped(p, (VOX_OFFSET, (np.inf,))), "cannot be read"),
    "unknown datatype": (lambda p: zipped(p, (DATATYPE, (12345, 32))), "cannot be read"),
    "overflowing slope": (lambda p: zipped(p, (SLOPE, (1e30, 0))), "NaN or infinite"),
    "gzip bomb": (gzip_bomb, "unpacks to more than"),
    "huge file": (huge_file, "claims 2000 x 2000 x 2000 voxels"),
    "plain named gz": (lambda p: p.write_bytes(nifti()), "cannot be read"),
    "gz named plain": (lambda p: plain(p, gzip.compress(nifti(), 1)), "cannot be read"),
    "dicom": (lambda p: plain(p, bytes(128) + b"DICM" + bytes(2000)), "cannot be read"),
    "mgh": (mgh, "cannot be read"),
    "named pipe": (os.mkfifo, "it is not a file"),
    "truncated": (lambda p: damaged(p, keep=0.5), "cannot be read"),
    "corrupt": (lambda p: damaged(p, zeros=2000), "cannot be read"),
    "zero bytes": (lambda p: p.write_bytes(b""), "cannot be read"),
    "text": (lambda p: p.write_text("not an image"), "cannot be read"),
    "broken link": (lambda p: p.symlink_to(ANNEXED), "run `datalad get`"),
    "Git LFS": (lambda p: p.write_text(LFS), "run `git lfs pull`"),
    "4-D": (lambda p: write(p, np.stack([scan(), scan()], -1)), "not a 3-D image"),
    "one slice": (lambda p: write(p, scan()[:, :, :1]), "not a 3-D image"),
    "RGB": (lambda p: write(p, RGB), "not a 3-D image of real numbers"),
    "complex": (lambda p: write(p, scan(np.complex64)), "not a 3-D image of real numbers"),
    "all zeros": (lambda p: write(p, np.zeros(SHAPE, np.float32)), "the same value"),
    "NaN planes": (lambda p: write(p, np.where(EVERY_FOURTH, NAN, scan())), "NaN or infinite"),
    "absurd voxels": (lambda p: write(p, scan(), np.diag([1e-4, 1e4, 1, 1])), "no valid affine"),
    "far away": (lambda p: write(p, scan(), FAR), "has an origin at a distance of 3.6e+13 m"),
    "singular affine": (lambda p: write(p, scan(), SINGULAR), "no valid affine"),
    "no forms": (lambda p: zipped(p, (CODES, (0, 0))), "neither sform nor qform"),
    "zero sform": (
        lambda p: zipped(p, srow(np.zeros((4, 4))), (CODES, (0, 1))),
        "the sform has voxels of 0 x 0 x 0 mm",
    ),
    "invalid forms": (
        lambda p: zipped(p, srow(np.full((4, 4), NAN)), (QUATERNION, (1, 1, 1))),
        "no valid affine",
    ),
    "invalid qform": (lambda p: zipped(p, (QUATERNION, (1, 1, 1)), (CODES, (1, 0))), "read"),
    "slab": (lambda p: write(p, scan()[:, :, :10]), "192 x 224 x 40 mm, less than 80 mm"),
    "slab among zeros": (
        lambda p: write(p, np.where(np.arange(SHAPE[1])[:, None] < 10, scan(), 0)),
        "only a part of the head: 192 x 40 x 160 mm",
    ),
}
#: Unusual scans that are processed, and the warning, if any.
ODD = {
    "oblique by 40 degrees": "",
    "5-mm slices": "",
    "0.4-mm slices": "",
    "padding": "the padding value -1000 was set to 0",
    "NaN around": "were NaN or infinite and were set to 0",
}


def odd_scans(img: nib.Nifti1Image) -> dict[str, nib.Nifti1Image]:
    """Make the scans of :data:`ODD` of a good one."""
    data = img.get_fdata(dtype=np.float32)
    turned = np.eye(4)
    turned[:3, :3] = [[1, 0, 0], [0, np.cos(0.7), -np.sin(0.7)], [0, np.sin(0.7), np.cos(0.7)]]
    ras = nib.as_closest_canonical(nib.Nifti1Image(data, img.affine))
    high = np.indices(data.shape)[0] > 0.97 * data.shape[0]
    around = ndimage.binary_dilation(data > 0.1 * np.percentile(data, 99), iterations=3)
    around = ndimage.binary_fill_holes(around)
    odd = {
        "oblique by 40 degrees": nib.Nifti1Image(data, turned @ img.affine),
        "5-mm slices": resample_to_output(ras, (2, 2, 5), order=1),
        "0.4-mm slices": resample_to_output(ras, (2, 2, 0.4), order=1),
        "padding": nib.Nifti1Image(np.where(high, -1000, data), img.affine),
        "NaN around": nib.Nifti1Image(np.where(around, data, np.nan), img.affine),
    }
    for made in odd.values():
        made.set_sform(made.affine, 1)
        made.set_qform(made.affine, 1)
    return odd
