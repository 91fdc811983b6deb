"""Anatomies made from whole-head label maps, so that heads differ in kind."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from scipy import ndimage

from bids_harmony.anat.check import load_image
from bids_harmony.errors import UsageError
from bids_harmony.simulation.atlas import (
    ORIGIN,
    SHAPE,
    Atlas,
    Mapped,
    bounding_box,
    diagnosis_weight,
    on_lattice,
    signed_distance,
    ventricle_pull,
)
from bids_harmony.simulation.layers import SOFT, Tissue
from bids_harmony.text import read_text, split_table

#: Tables a folder may bring, with the columns ``index`` and ``tissue``.
TABLES = ("labels.tsv", "dseg.tsv")
#: FreeSurfer's labels of the brain, and those of SimNIBS's head atlas (500 and above).
FREESURFER: dict[str, tuple[int, ...]] = {
    "air": (0, 501),
    "wm": (2, 7, 16, 25, 28, 41, 46, 57, 60, 77, 78, 79, 80, 85),
    "gm": (3, 8, 10, 11, 12, 13, 17, 18, 26, 42, 47, 49, 50, 51, 52, 53, 54, 58),
    # 136 to 164: parts of the lateral ventricles that lie apart in some label maps.
    "ventricle": (4, 5, 14, 31, 43, 44, 63, 72, 136, 137, 163, 164),
    "csf": (15, 24, 520),
    "muscle": (30, 62, 502, 508, 509, 514),
    "humour": (506,),
    "soft": (507,),
    "skin": (511,),
    "cord": (512, 530),
    "bone": (515,),
    "marrow": (516,),
}
TISSUES = (*FREESURFER, "fat")
#: The brain's tissues; what lies around them is named as in :class:`Tissue`.
INNER = ("gm", "wm", "ventricle", "csf")
#: Gaps of this width (mm) between gyri belong to the brain mask.
SULCUS_MM = 8.0
#: Volumes (ml) that a whole head has at least.
MIN_ML = {"gm": 150.0, "wm": 150.0, "ventricle": 1.0, "air": 100.0}
#: Depth (mm) of the fat below the skin, where labels do not tell it from muscle.
FAT_MM = 5
#: Blur (standard deviation, mm) that makes partial volumes of sharp labels.
PARTIAL_MM = 0.7
#: Threads that need the same anatomy wait for the one that builds it.
_BUILDING = Lock()


def find_maps(folder: str | Path, n: int) -> list[Path]:
    """List a folder's label maps by name, the first ``n``, each checked.

    Raises
    ------
    UsageError
        When there is no map, or one cannot be used: not a 3-D NIfTI image of whole numbers, a
        label without a tissue, no grey or white matter, no air, no ventricles.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder.", "Give --anatomies a folder of label maps.")
    found = [p for p in sorted(folder.iterdir()) if p.name.endswith((".nii", ".nii.gz"))]
    if not found:
        raise UsageError(f"{folder} holds no NIfTI file.", "Put label maps (.nii.gz) there.")
    table = read_table(folder)
    for path in found[:n]:
        _read_map(path, table)
    return found[:n]


def read_table(folder: Path) -> dict[int, str]:
    """Read which label is which tissue: the folder's table, or FreeSurfer's labels.

    Raises
    ------
    UsageError
        When the table has no such columns, a label that is no number or an unknown tissue.
    """
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        return {label: tissue for tissue, labels in FREESURFER.items() for label in labels}
    remedy = f"It needs the columns index and tissue, with tissues of {', '.join(TISSUES)}."
    try:
        header, rows, _ = split_table(read_text(path)[0])
        cells = [dict(zip(header, row, strict=False)) for _, row in rows]
        table = {int(row["index"]): row["tissue"].lower() for row in cells}
    except (ValueError, KeyError) as error:
        raise UsageError(f"{path} cannot be read as a table of labels.", remedy) from error
    if not table:
        raise UsageError(f"{path} has no label.", remedy)
    if unknown := sorted(set(table.values()) - set(TISSUES)):
        raise UsageError(f"{path} names an unknown tissue, {unknown[0]}.", remedy)
    return table


def _read_map(path: Path, table: Mapping[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """Read a label map as RAS+ indices into :data:`TISSUES`, with its affine."""
    try:
        img = nib.as_closest_canonical(load_image(path)[0])
        data = np.asarray(img.dataobj)
    except Exception as error:
        raise UsageError(f"{path} cannot be read ({error}).", "Remove or replace it.") from error
    if data.ndim != 3 or not np.array_equal(data, np.rint(data)):
        raise UsageError(f"{path} is no 3-D map of whole numbers.", "Remove or replace it.")
    known = np.array(sorted(table))
    place = np.searchsorted(known, data).clip(max=known.size - 1)
    if (strange := known[place] != data).any():
        raise UsageError(
            f"{path} has the label {int(data[strange].min())}, whose tissue is not known.",
            f"Describe all labels in {path.parent / TABLES[0]} (columns index and tissue).",
        )
    tissues = np.array([TISSUES.index(table[k]) for k in known.tolist()], dtype=np.uint8)[place]
    voxel_ml = abs(np.linalg.det(img.affine[:3, :3])) / 1000.0
    for name, least in MIN_ML.items():
        if (tissues == TISSUES.index(name)).sum() * voxel_ml < least:
            raise UsageError(
                f"{path} has hardly any {name}.",
                "Give label maps of whole heads, brain, ventricles and air included.",
            )
    return tissues, img.affine


def load_anatomy(path: Path) -> Atlas:
    """Build an atlas from a label map; the last few are kept.

    The brain is moved to the template's place and brought to its volume; its proportions, folds
    and ventricles stay those of the person, who had an age: what a head's own age adds comes on
    top of that.
    """
    with _BUILDING:
        return _build(path)


@lru_cache(maxsize=3)
def _build(path: Path) -> Atlas:
    tissues, affine = _read_map(path, read_table(path.parent))
    grid = np.eye(4)
    grid[:3, 3] = ORIGIN
    shape = tuple(2 * n - 1 for n in SHAPE)
    moved = nib.Nifti1Image(tissues, _to_template(tissues, affine) @ affine)
    air = TISSUES.index("air")
    tissues = np.asarray(resample_from_to(moved, (shape, grid), order=0, cval=air).dataobj)
    is_a = {name: tissues == code for code, name in enumerate(TISSUES)}

    mask = _brain_mask(is_a)
    box = bounding_box(ndimage.binary_dilation(mask, iterations=4))
    tissue_origin = ORIGIN + np.array([part.start for part in box], dtype=np.float32)
    solid = [
        ndimage.gaussian_filter((is_a[name] & mask)[box].astype(np.float32), PARTIAL_MM)
        for name in ("gm", "wm")
    ]
    fractions = np.stack([*solid, 1.0 - solid[0] - solid[1]])
    brain = signed_distance(on_lattice(mask.astype(np.float32), ORIGIN) > 0.5)
    wet = on_lattice(is_a["ventricle"].astype(np.float32), ORIGIN) > 0.5
    ventricle = signed_distance(wet)
    fat = is_a["soft"] & ndimage.binary_dilation(is_a["skin"], iterations=FAT_MM)
    around = np.array(
        [
            Tissue.BRAIN if name in INNER else SOFT if name == "soft" else Tissue[name.upper()]
            for name in TISSUES
        ],
        dtype=np.uint8,
    )
    return Atlas(
        tissues=np.maximum(fractions, 0.0),
        tissue_origin=tissue_origin,
        brain=brain,
        ventricle=ventricle,
        around=Mapped(np.where(fat, np.uint8(Tissue.FAT), around[tissues])),
        pull=ventricle_pull(ventricle),
        diagnosis=diagnosis_weight(),
    )


def _brain_mask(is_a: Mapping[str, np.ndarray]) -> np.ndarray:
    """Tissue of the brain, its ventricles, and the CSF between its gyri (1 mm grid)."""
    solid = np.asarray(ndimage.binary_opening(is_a["gm"] | is_a["wm"] | is_a["ventricle"]))
    box = bounding_box(ndimage.binary_dilation(solid, iterations=2 * round(SULCUS_MM)))
    part = solid[box]
    # Closed by distances: a ball, and quick whatever its size.
    near = ndimage.distance_transform_edt(~part) <= SULCUS_MM
    closed = ndimage.distance_transform_edt(near) > SULCUS_MM
    inside = part | (closed & (is_a["csf"] | is_a["muscle"])[box])
    mask = np.zeros_like(solid)
    mask[box] = ndimage.binary_fill_holes(inside)
    return mask


def _to_template(tissues: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Rotation, shift and size (4 x 4) that bring a brain onto the template's."""
    from nitransforms.io.itk import ITKLinearTransform

    from bids_harmony.anat.affine import register_affine
    from bids_harmony.anat.template import load_template

    values = {"wm": 1.0, "gm": 0.6, "ventricle": 0.15}
    t1w = np.array([values.get(name, 0.0) for name in TISSUES], dtype=np.float32)[tissues]
    brain = nib.Nifti1Image(ndimage.gaussian_filter(t1w, 0.7), affine)
    with tempfile.TemporaryDirectory(prefix="anatomy") as scratch:
        out = register_affine(brain, load_template(2).t1w, Path(scratch) / "affine.txt")
        # ITK's transforms take points of the template to the moved image.
        full = np.linalg.inv(ITKLinearTransform.from_filename(str(out)).to_ras())
    u, stretch, vt = np.linalg.svd(full[:3, :3])
    similar = np.eye(4)
    similar[:3, :3] = u @ vt * np.cbrt(np.prod(stretch))
    # The brain's middle goes where all twelve parameters would put it.
    middle = affine @ np.append(ndimage.center_of_mass(t1w > 0), 1.0)
    similar[:3, 3] = (full @ middle)[:3] - similar[:3, :3] @ middle[:3]
    return similar
