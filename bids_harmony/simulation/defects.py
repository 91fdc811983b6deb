"""What spoils a scan: defects that a person looking would reject, each with its severity.

Every scan spoilt here is the scan the same seed makes without, except for the defect.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_harmony.simulation.head import Head
from bids_harmony.simulation.scanner import RELAXATION, Scanner, rotation, scan_head

#: What each kind is, and what its severity counts.
KINDS: dict[str, str] = {
    "ghosting": "The head moved: replicas along the phase axis and blur. Severity: movement, mm.",
    "wrong-contrast": "T2-weighted where T1-weighted is expected. Severity: echo time, ms.",
    "cropped": "The field of view cuts the brain. Severity: share of the brain that is lost.",
    "noise": "Noise hides the anatomy. Severity: its standard deviation over white matter's "
    "signal.",
    "wrong-orientation": "The header confuses two axes: it turns the head and gives it the wrong "
    "proportions. Severity: angle, degrees.",
    "wrong-mask": "The mask in derivatives/masks is wrong; the scan is good. Severity: voxels "
    "missing or too many over the brain's.",
    "lesion": "The brain has a lesion. Severity: its volume, mL.",
}
#: Range that the amount of each kind is drawn from; see :func:`draw_defect`.
RANGES: dict[str, tuple[float, float]] = {
    "ghosting": (3.0, 6.0),
    "wrong-contrast": (80.0, 120.0),
    "cropped": (0.15, 0.35),
    "noise": (0.25, 0.45),
    "wrong-orientation": (40.0, 140.0),
    "wrong-mask": (0.3, 0.5),
    "lesion": (0.0, 0.0),
}


#: Ratio of slice thickness to pixel size where a header confuses them.
SWAPPED = (1.5, 2.0)


@dataclass(frozen=True)
class Defect:
    """One way in which one scan is bad.

    Attributes
    ----------
    kind : str
        One of :data:`KINDS`.
    amount : float
        How bad, within :data:`RANGES`.
    axis : int
        Left-right, front-back or up-down (0, 1, 2): of movement, crop, turn or cut.
    end : int
        1: the axis's positive end (right, front, top), -1: its negative end.
    seed : int
        Seed of what else is random.
    """

    kind: str
    amount: float
    axis: int
    end: int
    seed: int


@dataclass(frozen=True)
class SpinEcho(Scanner):
    """A scanner whose protocol was mixed up: a long echo after one excitation."""

    def signal(self, tissue: str) -> float:
        """T2-weighted signal of a tissue relative to white matter's."""
        return self._spin_echo(tissue) / self._spin_echo("wm")

    def _spin_echo(self, tissue: str) -> float:
        t1_low, t1_high, t2_low, t2_high, density = RELAXATION[tissue]
        t1, t2 = (t1_high, t2_high) if self.field_strength > 2 else (t1_low, t2_low)
        rest = 1.0 - np.exp(-self.repetition_ms / t1)
        return float(density * rest * np.exp(-self.echo_ms / t2))


def draw_defect(kind: str, rng: np.random.Generator) -> Defect:
    """Draw how bad a scan of a kind is, and where."""
    axis, end = int(rng.integers(3)), int(rng.choice([-1, 1]))
    if kind == "ghosting":
        axis = int(rng.integers(2))
    elif kind == "cropped":
        axis, end = ((2, 1), (2, -1), (1, 1))[rng.integers(3)]
    amount = float(rng.uniform(*RANGES[kind]))
    return Defect(kind, amount, axis, end, int(rng.integers(2**31)))


def scan_badly(
    head: Head, scanner: Scanner, seed: Any, defect: Defect
) -> tuple[nib.Nifti1Image, nib.Nifti1Image, float]:
    """Scan a head with a defect of the scanner, the head's movement or the header.

    Parameters
    ----------
    head : Head
        The head; it has the lesion already where that is what is wrong.
    scanner : Scanner
        Site's scanner.
    seed : int or sequence of int
        As in :func:`bids_harmony.simulation.scanner.scan_head`.
    defect : Defect
        What is wrong. Kinds that do not touch the scan leave it as it is.

    Returns
    -------
    scan, mask : nibabel.Nifti1Image
        As :func:`bids_harmony.simulation.scanner.scan_head` returns them.
    severity : float
        In the unit of :data:`KINDS`.
    """
    severity = defect.amount
    distort = None
    if defect.kind == "ghosting":
        voxel = scanner.voxel_mm[defect.axis]

        def distort(clean: np.ndarray) -> np.ndarray:
            return move(clean, defect, voxel)

    elif defect.kind == "noise":
        scanner = replace(scanner, noise=defect.amount)
    elif defect.kind == "wrong-contrast":
        values = {**scanner.__dict__, "echo_ms": defect.amount, "repetition_ms": 5000.0}
        scanner = SpinEcho(**values)
    scan, mask = scan_head(head, scanner, seed, distort=distort)
    if defect.kind == "cropped":
        scan, mask, severity = crop(scan, mask, defect)
    elif defect.kind == "wrong-orientation":
        scan, mask = turn_header(scan, defect), turn_header(mask, defect)
    elif defect.kind == "lesion":
        severity = head.truth["pathology_ml"]
    return scan, mask, severity


def move(clean: np.ndarray, defect: Defect, voxel_mm: float) -> np.ndarray:
    """Make the head move along the phase axis while k-space is read line by line.

    A slow, regular movement with a few sudden ones: each line of k-space along the axis has the
    phase of the head's place when it was read, and an amplitude that goes with it.

    Parameters
    ----------
    clean : numpy.ndarray
        3-D signal.
    defect : Defect
        ``amount`` mm of movement along ``axis``.
    voxel_mm : float
        Voxel size along that axis.
    """
    rng = np.random.default_rng(defect.seed)
    n = clean.shape[defect.axis]
    order = np.arange(n)
    period = rng.uniform(4.0, 9.0)
    place = np.sin(2 * np.pi * order / period + rng.uniform(0, 2 * np.pi))
    place += 0.5 * np.cumsum(rng.standard_normal(n) * (rng.random(n) < 0.03))
    shift = defect.amount / voxel_mm * place
    lines = np.fft.fftshift(np.fft.fftfreq(n))
    # Moving through the excitation's profile changes how much is seen.
    factor = (1.0 + 0.05 * defect.amount * place) * np.exp(-2j * np.pi * lines * shift)
    along = [-1 if k == defect.axis else 1 for k in range(3)]
    space = np.fft.fft(clean, axis=defect.axis)
    space *= np.fft.ifftshift(factor).reshape(along)
    return np.abs(np.fft.ifft(space, axis=defect.axis)).astype(np.float32)


def crop(
    scan: nib.Nifti1Image, mask: nib.Nifti1Image, defect: Defect
) -> tuple[nib.Nifti1Image, nib.Nifti1Image, float]:
    """Cut a scan where a share of the brain lies beyond; the header knows of the cut."""
    inside = np.asarray(mask.dataobj) > 0
    part = _without_end(inside, mask.affine, defect)
    lost = 1.0 - inside[part].sum() / inside.sum()
    return scan.slicer[part], mask.slicer[part], float(lost)


def _without_end(
    inside: np.ndarray, affine: np.ndarray, defect: Defect
) -> tuple[slice, slice, slice]:
    """Box of a mask's grid that leaves a share of the mask beyond one of its ends."""
    stored = nib.io_orientation(affine)
    axis = stored[:, 0].tolist().index(defect.axis)
    sign = stored[axis, 1] * defect.end
    counts = inside.sum(axis=tuple(k for k in range(3) if k != axis))
    beyond = np.cumsum(counts[::-1] if sign > 0 else counts) / counts.sum()
    lost = int(np.argmin(np.abs(beyond - defect.amount))) + 1
    part = [slice(None), slice(None), slice(None)]
    part[axis] = slice(None, -lost) if sign > 0 else slice(lost, None)
    return part[0], part[1], part[2]


def turn_header(img: nib.Nifti1Image, defect: Defect) -> nib.Nifti1Image:
    """Confuse two axes of the head, in the header alone.

    The head is turned about the middle of the field of view, and what are thick slices are taken
    for pixels: one axis is stretched and the other shrunk as much. Rotations alone are no reason
    to reject a scan: registration undoes them.
    """
    rng = np.random.default_rng(defect.seed)
    thickness = rng.uniform(*SWAPPED)
    stretch = np.insert([thickness, 1.0 / thickness], defect.axis, 1.0)
    stored = nib.io_orientation(img.affine)[:, 0].astype(int)
    turn = rotation(defect.axis, np.deg2rad(defect.end * defect.amount))
    affine = np.eye(4)
    affine[:3, :3] = turn @ img.affine[:3, :3] @ np.diag(stretch[stored])
    middle = (np.array(img.shape) - 1) / 2
    affine[:3, 3] = nib.affines.apply_affine(img.affine, middle) - affine[:3, :3] @ middle
    turned = nib.Nifti1Image(np.asarray(img.dataobj), affine, img.header)
    turned.set_qform(turned.affine, 1)
    turned.set_sform(turned.affine, 1)
    return turned


def spoil_mask(
    scan: nib.Nifti1Image, mask: nib.Nifti1Image, defect: Defect
) -> tuple[nib.Nifti1Image, float]:
    """Make the wrong mask of a good scan: part of the brain, or the brain and the face.

    Parameters
    ----------
    scan, mask : nibabel.Nifti1Image
        A scan and its true brain mask.
    defect : Defect
        At the axis's positive ``end``, or where a scan has no face, that part of the brain is
        missing; otherwise face and neck are included.

    Returns
    -------
    mask : nibabel.Nifti1Image
        uint8 mask on the scan's grid.
    severity : float
        Voxels that differ over voxels of the brain.
    """
    inside, data = np.asarray(mask.dataobj) > 0, np.asarray(scan.dataobj)
    if defect.end > 0 or not data[~inside].any():
        wrong = np.zeros_like(inside)
        part = _without_end(inside, mask.affine, defect)
        wrong[part] = inside[part]
    else:
        wrong = inside | _face(data, inside, mask, defect.amount)
    img = nib.Nifti1Image(wrong.astype(np.uint8), mask.affine, mask.header)
    return img, float((wrong != inside).sum() / inside.sum())


def _face(data: np.ndarray, inside: np.ndarray, mask: nib.Nifti1Image, share: float) -> np.ndarray:
    """Bright voxels below and before the brain that are nearest to it: a share of its volume."""
    middle = nib.affines.apply_affine(mask.affine, ndimage.center_of_mass(inside))
    grid = np.indices(inside.shape, dtype=np.float32).reshape(3, -1)
    _, y, z = (mask.affine[:3, :3] @ grid).reshape(3, *inside.shape)
    offset = middle - mask.affine[:3, 3]
    fits = ~inside & (data > 0.25 * np.median(data[inside]))
    fits &= (z < offset[2]) & (y > offset[1] - 20.0)
    far = ndimage.distance_transform_edt(~inside, sampling=mask.header.get_zooms())
    reach = np.sort(far[fits])[: int(share * inside.sum())]
    return np.asarray(fits & (far <= reach.max(initial=0.0)))
