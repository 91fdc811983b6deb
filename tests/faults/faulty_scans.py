"""Files that stand where a T1w scan should: what is wrong with each is its function's name."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_to_output
from scipy import ndimage
from t1w_images import affine, scan

#: Byte offsets in a NIfTI-1 header, and the fields there.
DIM, PIXDIM, VOX_OFFSET, SCALE = (40, "8h"), (76, "4f"), (108, "f"), (112, "2f")
DATATYPE, FORMS = (70, "2h"), (252, "2h")
MIB = bytes(2**20)


def raw(*changes: tuple[tuple[int, str], tuple[float, ...]]) -> bytes:
    """A good scan's bytes, with some fields of its header changed."""
    content = bytearray(_good())
    for (place, form), values in changes:
        struct.pack_into("<" + form, content, place, *values)
    return bytes(content)


@cache
def _good() -> bytes:
    img = nib.Nifti1Image(scan(), affine())
    img.set_qform(affine(), 1)
    content: bytes = img.to_bytes()
    return content


def zipped(path: Path, *changes: tuple[tuple[int, str], tuple[float, ...]]) -> None:
    path.write_bytes(gzip.compress(raw(*changes), 1))


def gzip_bomb(path: Path) -> None:
    """Write a good scan with 256 MB of zeros behind it, in 1.5 MB."""
    with gzip.open(path, "wb", 1) as file:
        file.write(raw())
        for _ in range(256):
            file.write(MIB)


def huge_file(path: Path) -> None:
    """Write 32 GB of zeros that take no space."""
    path = path.with_suffix("")
    path.write_bytes(raw((DIM, (3, 2000, 2000, 2000, 1, 1, 1, 1)))[:352])
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
        lambda p: zipped(p, (PIXDIM, (1, np.nan, 4, 4)), (FORMS, (1, 0))),
        "impossible geometry",
    ),
    "zero zoom": (
        lambda p: zipped(p, (PIXDIM, (1, 0, 4, 4)), (FORMS, (1, 0))),
        "a part of the head only",
    ),
    "infinite offset": (lambda p: zipped(p, (VOX_OFFSET, (np.inf,))), "cannot be read"),
    "unknown datatype": (lambda p: zipped(p, (DATATYPE, (12345, 32))), "cannot be read"),
    "overflowing slope": (lambda p: zipped(p, (SCALE, (1e30, 0))), "NaN or infinite"),
    "gzip bomb": (gzip_bomb, "unpacks to more than"),
    "huge file": (huge_file, "which no T1w scan has"),
    "plain named gz": (lambda p: p.write_bytes(raw()), "cannot be read"),
    "gz named plain": (lambda p: plain(p, gzip.compress(raw(), 1)), "cannot be read"),
    "dicom": (lambda p: plain(p, bytes(128) + b"DICM" + bytes(2000)), "cannot be read"),
    "mgh": (mgh, "cannot be read"),
    "named pipe": (os.mkfifo, "it is not a file"),
}
#: Unusual scans that are processed, and the warning, if any.
ODD = {
    "oblique by 40 degrees": "",
    "5-mm slices": "",
    "0.4-mm slices": "",
    "padding": "taken as padding",
    "NaN around": "around the brain were NaN or infinite",
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
