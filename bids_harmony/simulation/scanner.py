"""Made-up scanners: an acquisition protocol, its contrast, and the scan of a head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import affines, orientations
from scipy import ndimage

from bids_harmony.simulation.atlas import bounding_box
from bids_harmony.simulation.head import BRAIN_TISSUES, Head
from bids_harmony.simulation.layers import Tissue

#: T1 at 1.5 T and 3 T, T2* at 1.5 T and 3 T (ms) and proton density relative to water, rounded
#: from the relaxometry literature (among others Wansapura 1999 and Stanisz 2005 for the brain,
#: de Bazelaire 2004 for the body).
RELAXATION: dict[str, tuple[float, float, float, float, float]] = {
    "gm": (1050.0, 1330.0, 84.0, 66.0, 0.82),
    "wm": (640.0, 830.0, 66.0, 53.0, 0.70),
    "csf": (4000.0, 4300.0, 1000.0, 800.0, 1.00),
    "air": (1000.0, 1000.0, 1.0, 1.0, 0.0),
    "bone": (900.0, 1000.0, 3.0, 2.0, 0.08),
    "marrow": (290.0, 370.0, 18.0, 12.0, 0.40),
    "fat": (290.0, 370.0, 40.0, 30.0, 0.60),
    "muscle": (1010.0, 1410.0, 35.0, 28.0, 0.75),
    "skin": (600.0, 800.0, 20.0, 16.0, 0.60),
    "humour": (3500.0, 3800.0, 500.0, 400.0, 0.98),
    "cord": (740.0, 990.0, 66.0, 53.0, 0.72),
    "lesion": (1700.0, 2100.0, 140.0, 110.0, 0.90),
}
#: Orientations of the stored axes that scanners and converters produce.
ORIENTATIONS = ("RAS", "LAS", "PSR", "LIA", "ASR", "LPS")
#: Voxel sizes (left-right, front-back, up-down; mm) sites after the first draw from.
VOXEL_SIZES = (
    (1.2, 1.0, 1.0),
    (0.9, 0.9, 1.5),
    (1.0, 1.3, 1.3),
    (1.0, 1.0, 1.0),
    (0.8, 0.8, 0.8),
    (1.0, 1.5, 1.0),
)
#: Powers of the bias field's polynomials along each axis, from 0.
BIAS_TERMS = 3


@dataclass(frozen=True)
class Scanner:
    """What a site's scanner and protocol do to a head.

    Attributes
    ----------
    site : str
        Site label, alphanumeric.
    model : str
        Made-up model name.
    field_strength : float
        Tesla, 1.5 or 3.
    inversion_ms, repetition_ms, spacing_ms, echo_ms : float
        Inversion time to the centre of the readout train, time between inversions, time between
        excitations, echo time.
    flip_deg : float
        Excitation angle.
    train : int
        Excitations per inversion.
    voxel_mm : tuple of float
        Voxel size along left-right, front-back, up-down.
    fov_mm : tuple of float
        Field of view along the same axes.
    orientation : str
        Direction of the stored axes, as in ``nibabel.aff2axcodes``.
    tilt_deg : float
        Rotation of the field of view about the left-right axis, written in the affine.
    blur_mm : float
        FWHM of the point spread beyond the voxel.
    bias : tuple of float
        Coefficients of the log receive field's polynomials.
    noise : float
        Standard deviation of each channel's noise relative to white matter's signal.
    wm_level : float
        Stored value of white matter.
    stripped : bool
        Deliver scans without skull, background exactly 0.
    """

    site: str
    model: str
    field_strength: float
    inversion_ms: float
    repetition_ms: float
    spacing_ms: float
    echo_ms: float
    flip_deg: float
    train: int
    voxel_mm: tuple[float, float, float]
    fov_mm: tuple[float, float, float]
    orientation: str
    tilt_deg: float
    blur_mm: float
    bias: tuple[float, ...]
    noise: float
    wm_level: float
    stripped: bool = False

    def signal(self, tissue: str) -> float:
        """Signal of a tissue relative to white matter's (negative where still inverted)."""
        return self._mprage(tissue) / self._mprage("wm")

    def _mprage(self, tissue: str) -> float:
        """Steady-state signal of inversion-prepared gradient echoes (Wang et al. 2014)."""
        t1_low, t1_high, t2_low, t2_high, density = RELAXATION[tissue]
        t1, t2 = (t1_high, t2_high) if self.field_strength > 2 else (t1_low, t2_low)
        angle = np.deg2rad(self.flip_deg)
        half = self.train // 2
        before = np.exp(-(self.inversion_ms - half * self.spacing_ms) / t1)
        rest = self.repetition_ms - self.inversion_ms - (self.train - half) * self.spacing_ms
        after = np.exp(-rest / t1)
        relax = np.exp(-self.spacing_ms / t1)
        decay = np.cos(angle) * relax
        driven = (1.0 - relax) / (1.0 - decay)
        # One period maps the magnetisation before the inversion linearly onto itself: m -> a + b m
        whole = decay**self.train
        slope = -before * whole * after
        offset = ((1.0 - before) * whole + driven * (1.0 - whole)) * after + 1.0 - after
        start = 1.0 - before - before * offset / (1.0 - slope)
        centre = start * decay**half + driven * (1.0 - decay**half)
        return float(density * centre * np.sin(angle) * np.exp(-self.echo_ms / t2))


def draw_scanner(
    seed: int, site: int, *, stripped: bool = False, min_voxel_mm: float = 0.0
) -> Scanner:
    """Draw the scanner of a site; it depends on nothing but the seed and the site's number.

    Parameters
    ----------
    seed : int
        Seed of the dataset.
    site : int
        Number of the site from 1. Site 1 is a 3 T scanner at 1 mm isotropic.
    stripped : bool
        Whether the site shares its scans without skull.
    min_voxel_mm : float
        Voxels finer than this become this large.
    """
    rng = np.random.default_rng([seed, 1, site])
    first = site == 1
    field = 3.0 if first or rng.random() < 0.6 else 1.5
    spacing = rng.uniform(6.5, 9.5)
    train = int(rng.integers(120, 177))
    inversion = rng.uniform(max(800.0, 0.5 * train * spacing + 100.0), 1050.0)
    voxel = (1.0, 1.0, 1.0) if first else VOXEL_SIZES[(site - 2) % len(VOXEL_SIZES)]
    fov = (
        float(rng.choice([180.0, 192.0, 200.0])),
        float(rng.choice([240.0, 250.0, 256.0])),
        float(rng.choice([180.0, 210.0, 240.0])),
    )
    powers = np.indices((BIAS_TERMS,) * 3).sum(axis=0).ravel()
    bias = rng.standard_normal(powers.size) / np.maximum(powers, 1) * (powers > 0)
    bias *= rng.uniform(0.08, 0.2)
    return Scanner(
        site=f"site{site}",
        model=f"SimScan {site:02d}",
        field_strength=field,
        inversion_ms=round(float(inversion)),
        repetition_ms=round(float(rng.uniform(1900.0, 2500.0))),
        spacing_ms=round(float(spacing), 1),
        echo_ms=round(float(rng.uniform(2.2, 4.6)), 2),
        flip_deg=round(float(rng.uniform(7.0, 12.0))),
        train=train,
        voxel_mm=(
            max(voxel[0], min_voxel_mm),
            max(voxel[1], min_voxel_mm),
            max(voxel[2], min_voxel_mm),
        ),
        fov_mm=fov,
        orientation="RAS" if first else str(rng.choice(ORIENTATIONS)),
        tilt_deg=0.0 if first else round(float(rng.uniform(-12.0, 6.0)), 1),
        blur_mm=round(float(rng.uniform(0.5, 1.3)), 2),
        bias=tuple(round(float(c), 4) for c in bias),
        noise=round(float(rng.uniform(0.015, 0.045)), 4),
        wm_level=round(float(np.exp(rng.uniform(np.log(120.0), np.log(2500.0))))),
        stripped=stripped,
    )


def scan_head(
    head: Head,
    scanner: Scanner,
    seed: Any,
    *,
    distort: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Scan a head.

    Parameters
    ----------
    head : Head
        The head, on its 1 or 2 mm grid.
    scanner : Scanner
        Site's scanner.
    seed : int or sequence of int
        Seed of the head's position, the receiver's gain and the noise.
    distort : callable, optional
        What happens to the signal on the scan's RAS+ grid before noise is added.

    Returns
    -------
    scan : nibabel.Nifti1Image
        int16 magnitude image in the scanner's orientation.
    mask : nibabel.Nifti1Image
        uint8 true brain mask on the same grid.
    """
    rng = np.random.default_rng(seed)
    pose = _pose(rng)
    affine, shape = _field_of_view(head, scanner)
    to_head = np.linalg.inv(head.affine) @ np.linalg.inv(pose) @ affine

    spacing = float(head.affine[0, 0])
    wide = np.maximum(np.square(scanner.voxel_mm) - spacing**2, 0.0) / 12.0
    sigma = np.sqrt(wide + scanner.blur_mm**2 / (8.0 * np.log(2.0))) / spacing
    signal = contrast(head, scanner)
    ndimage.gaussian_filter(signal, sigma, output=signal, truncate=3.0)
    scan = _resample(signal, bounding_box(head.labels > 0), to_head, shape)
    del signal
    if distort:
        scan = distort(scan)
    mask = _resample(head.brain_mask, head.box, to_head, shape) > 0.5

    level = np.float32(scanner.wm_level * np.exp(0.08 * rng.standard_normal()))
    field = _bias_field(scanner, shape)
    stored = np.empty(shape, dtype=np.int16)
    for plane, clean in enumerate(scan):  # plane by plane: few temporaries, all in the cache
        noise = rng.standard_normal((2, *clean.shape), dtype=np.float32)
        noise *= np.float32(scanner.noise)
        noise[0] += clean * np.exp(field(plane))
        # The magnitude of two noisy channels: Rician.
        magnitude = level * np.sqrt(np.square(noise, out=noise).sum(axis=0))
        stored[plane] = np.rint(np.minimum(magnitude, 32767.0))
    if scanner.stripped:
        stored *= mask
    return (
        _image(stored, affine, scanner.orientation),
        _image(mask.astype(np.uint8), affine, scanner.orientation),
    )


def contrast(head: Head, scanner: Scanner) -> np.ndarray:
    """Noiseless signal of a head on its own grid, white matter 1."""
    table = np.array(
        [0.0 if t is Tissue.BRAIN else scanner.signal(t.name.lower()) for t in Tissue],
        dtype=np.float32,
    )
    signal: np.ndarray = table[head.labels]
    inside = signal[head.box]
    for name, part in zip(BRAIN_TISSUES, head.fractions, strict=False):
        inside += np.float32(scanner.signal(name)) * part
    return signal


def _pose(rng: np.random.Generator) -> np.ndarray:
    """How the head lies in the scanner: nodded, turned and shifted a little."""
    angles = np.deg2rad([5.0, 2.0, 2.5]) * np.clip(rng.standard_normal(3), -2.5, 2.5)
    pose = np.eye(4)
    for axis, angle in enumerate(angles):
        pose[:3, :3] = pose[:3, :3] @ rotation(axis, float(angle))
    pose[:3, 3] = np.array([2.0, 4.0, 4.0]) * np.clip(rng.standard_normal(3), -2.5, 2.5)
    return pose


def rotation(axis: int, angle: float) -> np.ndarray:
    """Return the 3 x 3 rotation about an axis by an angle in radians."""
    i, j = [k for k in range(3) if k != axis]
    turn = np.eye(3)
    turn[i, i] = turn[j, j] = np.cos(angle)
    turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
    return turn


def _field_of_view(head: Head, scanner: Scanner) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Place the field of view: centred on the head, its top a little above the scalp."""
    filled = np.argwhere(head.labels.any(axis=(0, 1))).ravel()
    top = float(head.affine[2, 3] + head.affine[2, 2] * filled[-1])
    deep = np.argwhere(head.labels.any(axis=(0, 2))).ravel()
    middle = float(head.affine[1, 3] + head.affine[1, 1] * 0.5 * (deep[0] + deep[-1]))
    voxel = np.asarray(scanner.voxel_mm)
    counts = np.rint(np.asarray(scanner.fov_mm) / voxel).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = rotation(0, float(np.deg2rad(scanner.tilt_deg))) @ np.diag(voxel)
    centre = np.array([0.0, middle, top + 14.0 - 0.5 * scanner.fov_mm[2]])
    affine[:3, 3] = centre - affine[:3, :3] @ (0.5 * (counts - 1))
    return affine, (int(counts[0]), int(counts[1]), int(counts[2]))


def _resample(
    values: np.ndarray,
    box: tuple[slice, slice, slice],
    to_values: np.ndarray,
    shape: tuple[int, int, int],
) -> np.ndarray:
    """Sample a head's volume on a scan's grid, working only where ``box`` meets it."""
    out = np.zeros(shape, dtype=np.float32)
    corners = np.array(np.meshgrid(*[(b.start - 1, b.stop) for b in box])).reshape(3, -1)
    reach = affines.apply_affine(np.linalg.inv(to_values), corners.T)
    low = np.clip(np.floor(reach.min(axis=0)).astype(int), 0, shape)
    high = np.clip(np.ceil(reach.max(axis=0)).astype(int) + 1, 0, shape)
    target = out[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    start = [b.start for b in box]
    ndimage.affine_transform(
        values[box].astype(np.float32, copy=False),
        to_values[:3, :3],
        offset=affines.apply_affine(to_values, low) - start,
        output_shape=target.shape,
        output=target,
        order=1,
    )
    return out


def _bias_field(scanner: Scanner, shape: tuple[int, int, int]) -> Callable[[int], np.ndarray]:
    """Log receive field, as a function of the plane: a polynomial in the field of view."""
    terms = np.asarray(scanner.bias, dtype=np.float32).reshape((BIAS_TERMS,) * 3)
    x, y, z = (
        np.linspace(-1.0, 1.0, n, dtype=np.float32) ** np.arange(BIAS_TERMS).reshape(-1, 1)
        for n in shape
    )

    def plane(number: int) -> np.ndarray:
        # Sums in a fixed order: those of a matrix product depend on the number of threads.
        across = sum(terms[i] * x[i, number] for i in range(BIAS_TERMS))
        rows = [sum(across[j, k] * y[j] for j in range(BIAS_TERMS)) for k in range(BIAS_TERMS)]
        return np.asarray(sum(rows[k][:, None] * z[k] for k in range(BIAS_TERMS)), np.float32)

    return plane


def _image(data: np.ndarray, affine: np.ndarray, orientation: str) -> nib.Nifti1Image:
    """Turn RAS data into an image whose axes are stored in a given orientation."""
    turn = orientations.ornt_transform(
        orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(orientation)
    )
    stored = np.ascontiguousarray(orientations.apply_orientation(data, turn))
    img = nib.Nifti1Image(stored, affine @ orientations.inv_ornt_aff(turn, data.shape))
    img.set_qform(img.affine, 1)
    img.set_sform(img.affine, 1)
    img.header.set_xyzt_units("mm", "sec")
    img.header["descrip"] = b"simulated"
    return img
