"""Simulate scanners: protocol, contrast, noise, orientation and defects of scans.

A bad scan differs from the good scan with the same seed only in its defect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torchio as tio
from nibabel import orientations
from nibabel.affines import apply_affine, from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_harmony.simulation import KINDS
from bids_harmony.simulation.anatomy import BRAIN_TISSUES, Head, Tissue

#: T1 at 1.5 T and 3 T (ms), T2* at 1.5 T and 3 T (ms) and proton density relative to water.
#: Rounded from the relaxometry literature (including Wansapura 1999 and Stanisz 2005 for the
#: brain, and de Bazelaire 2004 for the body).
RELAXATION: dict[str, tuple[float, float, float, float, float]] = {
    "gm": (1050.0, 1330.0, 84.0, 66.0, 0.82),
    "wm": (640.0, 830.0, 66.0, 53.0, 0.70),
    "csf": (4000.0, 4300.0, 1000.0, 800.0, 1.00),
    "bone": (900.0, 1000.0, 3.0, 2.0, 0.08),
    "marrow": (290.0, 370.0, 18.0, 12.0, 0.40),
    "fat": (290.0, 370.0, 40.0, 30.0, 0.60),
    "muscle": (1010.0, 1410.0, 35.0, 28.0, 0.75),
    "skin": (600.0, 800.0, 20.0, 16.0, 0.60),
    "cord": (740.0, 990.0, 66.0, 53.0, 0.72),
    "lesion": (1700.0, 2100.0, 140.0, 110.0, 0.90),
}
#: Voxel axis orientations that scanners and converters produce.
ORIENTATIONS = ("RAS", "LAS", "PSR", "LIA", "ASR", "LPS")
#: Voxel sizes (left-right, anterior-posterior, superior-inferior; mm) of sites in turn.
VOXEL_SIZES = np.array([
    (1.0, 1.0, 1.0), (1.2, 1.0, 1.0), (0.9, 0.9, 1.5), (1.0, 1.3, 1.3),
    (1.0, 1.0, 1.0), (0.8, 0.8, 0.8), (1.0, 1.5, 1.0),
])  # fmt: skip


@dataclass(frozen=True)
class Scanner:
    """Scanner and MPRAGE protocol of a site.

    Attributes
    ----------
    site : str
        Alphanumeric site label.
    model : str
        Made-up model name.
    field_strength : float
        Field strength in tesla, 1.5 or 3.
    inversion_ms, repetition_ms, spacing_ms, echo_ms : float
        Inversion time to the centre of the readout train, time between inversions, time between
        excitations (echo spacing), and echo time, in ms.
    flip_deg : float
        Flip angle in degrees.
    train : int
        Excitations per inversion.
    voxel_mm : tuple of float
        Voxel size in mm along left-right, anterior-posterior, superior-inferior.
    fov_mm : tuple of float
        Field of view in mm along the same axes.
    orientation : str
        Orientation of the voxel axes, as in ``nibabel.aff2axcodes``.
    tilt_deg : float
        Rotation of the field of view about the left-right axis in degrees, part of the affine.
    blur_mm : float
        FWHM in mm of the point spread function, in addition to the voxel.
    bias : tuple of float
        27 polynomial coefficients of the log receive field, up to the second power of each axis.
    noise : float
        Standard deviation of the noise in each channel, relative to the white matter signal.
    wm_level : float
        Voxel value of white matter.
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
    voxel_mm: tuple[float, ...]
    fov_mm: tuple[float, ...]
    orientation: str
    tilt_deg: float
    blur_mm: float
    bias: tuple[float, ...]
    noise: float
    wm_level: float

    def signals(self, echo_ms: float | None = None) -> dict[str, float]:
        """Compute the signal of each tissue relative to white matter (negative if still inverted).

        Parameters
        ----------
        echo_ms : float, optional
            Echo time in ms of a T2-weighted signal after one excitation. By default, the signal
            of the T1-weighted protocol.
        """
        seen = {}
        for name, (t1_low, t1_high, t2_low, t2_high, density) in RELAXATION.items():
            t1, t2 = (t1_high, t2_high) if self.field_strength > 2 else (t1_low, t2_low)
            if echo_ms is None:
                seen[name] = density * self._mprage(t1) * np.exp(-self.echo_ms / t2)
            else:
                seen[name] = density * (1.0 - np.exp(-5000.0 / t1)) * np.exp(-echo_ms / t2)
        return {name: float(value / seen["wm"]) for name, value in seen.items()}

    def _mprage(self, t1: float) -> float:
        """Compute the steady-state MPRAGE signal for a T1 in ms (Wang et al. 2014)."""
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
        return float(centre * np.sin(angle))


def draw_scanner(seed: int, site: int, *, min_voxel_mm: float = 0.0) -> Scanner:
    """Draw the scanner of a site, independently of other sites.

    Parameters
    ----------
    seed : int
        Random seed of the dataset.
    site : int
        Site number from 1. Site 1 is a 3 T scanner at 1 mm isotropic.
    min_voxel_mm : float
        Smallest voxel size in mm; finer voxels are enlarged.
    """
    rng = np.random.default_rng([seed, 1, site])
    first = site == 1
    spacing, train = round(rng.uniform(6.5, 9.5), 1), int(rng.integers(120, 177))
    powers = np.indices((3, 3, 3)).sum(axis=0).ravel()
    bias = rng.standard_normal(powers.size) / np.maximum(powers, 1) * (powers > 0)
    voxel = np.maximum(VOXEL_SIZES[(site - 1) % len(VOXEL_SIZES)], min_voxel_mm)
    fov = [rng.choice(sizes) for sizes in ((180, 192, 200), (240, 250, 256), (180, 210, 240))]
    return Scanner(
        site=f"site{site}",
        model=f"SimScan {site:02d}",
        field_strength=3.0 if first or rng.random() < 0.6 else 1.5,
        inversion_ms=round(rng.uniform(max(800.0, 0.5 * train * spacing + 100.0), 1050.0)),
        repetition_ms=round(rng.uniform(1900.0, 2500.0)),
        spacing_ms=spacing,
        echo_ms=round(rng.uniform(2.2, 4.6), 2),
        flip_deg=round(rng.uniform(7.0, 12.0)),
        train=train,
        voxel_mm=tuple(voxel.tolist()),
        fov_mm=tuple(float(size) for size in fov),
        orientation="RAS" if first else str(rng.choice(ORIENTATIONS)),
        tilt_deg=0.0 if first else round(rng.uniform(-12.0, 6.0), 1),
        blur_mm=round(rng.uniform(0.5, 1.3), 2),
        bias=tuple((bias * rng.uniform(0.08, 0.2)).round(4).tolist()),
        noise=round(rng.uniform(0.015, 0.045), 4),
        wm_level=round(np.exp(rng.uniform(np.log(120.0), np.log(2500.0)))),
    )


def scan_head(
    head: Head, scanner: Scanner, seed: Sequence[int], kind: str = "good"
) -> tuple[dict[str, nib.Nifti1Image], float]:
    """Simulate the scan of a head.

    Parameters
    ----------
    head : Head
        Head on its 1 mm or 2 mm grid; for the kind ``lesion``, one that has a lesion.
    scanner : Scanner
        Scanner of the site.
    seed : sequence of int
        Random seed of the head's position, receiver gain, noise and defect.
    kind : str
        ``good`` or a key of :data:`bids_harmony.simulation.KINDS`.

    Returns
    -------
    images : dict of str to nibabel.Nifti1Image
        Images in the scanner's orientation: ``t1w`` (int16 magnitude), ``brain`` (uint8 true brain
        mask) and, for the kind ``wrong-mask``, ``wrong_brain`` (uint8).
    severity : float
        Severity in the unit of the kind; 0 if good.
    """
    rng, bad = np.random.default_rng(seed), np.random.default_rng([*seed, 1])
    severity = bad.uniform(*KINDS.get(kind, (0.0, 0.0)))
    turn, shift = np.clip(rng.standard_normal((2, 3)), -2.5, 2.5)
    placed = _affine(turn * (5.0, 2.0, 2.5), shift * (2.0, 4.0, 4.0)) @ head.affine
    shape, affine = _field_of_view(head, scanner)
    resample = tio.Resample((shape, affine))
    inside = head.brain_mask[None].astype(np.float32)
    brain = resample(tio.ScalarImage(tensor=inside, affine=placed)).numpy()[0] > 0.5
    wide = np.maximum(np.square(scanner.voxel_mm) - head.affine[0, 0] ** 2, 0.0) / 12.0
    blur = np.sqrt(wide + scanner.blur_mm**2 / (8.0 * np.log(2.0)))
    steps = [tio.Blur(tuple(blur)), resample]
    steps += _movement(severity, bad) if kind == "ghosting" else []
    echo_ms = severity if kind == "wrong-contrast" else None
    image = tio.ScalarImage(tensor=_contrast(head, scanner, echo_ms)[None], affine=placed)
    clean = tio.Compose(steps)(image).numpy()[0] * _receive_field(scanner, shape)

    noise = rng.standard_normal((2, *shape), dtype=np.float32)
    noise *= np.float32(severity if kind == "noise" else scanner.noise)
    level = np.float32(scanner.wm_level * np.exp(0.08 * rng.standard_normal()))
    # Rician noise: the magnitude of two noisy channels.
    values = np.rint(np.minimum(level * np.hypot(clean + noise[0], noise[1]), 32767.0))
    images = {"t1w": values.astype(np.int16), "brain": brain.astype(np.uint8)}
    if kind == "cropped":
        axis, end = ((2, 1), (2, -1), (1, 1))[bad.integers(3)]
        part = _without_end(brain, severity, axis, end)
        images = {name: array[part] for name, array in images.items()}
        affine = affine @ from_matvec(np.eye(3), [side.start or 0 for side in part])
        severity = 1.0 - images["brain"].sum() / brain.sum()
    elif kind == "wrong-orientation":
        affine = _confuse_axes(affine, shape, severity, bad)
    elif kind == "wrong-mask":
        wrong = _wrong_mask(values, brain, scanner, severity, bad)
        images["wrong_brain"] = wrong.astype(np.uint8)
        severity = (wrong != brain).sum() / brain.sum()
    elif kind == "lesion":
        severity = head.truth["lesion_ml"]
    return {name: _store(v, affine, scanner) for name, v in images.items()}, float(severity)


def _store(values: np.ndarray, affine: np.ndarray, scanner: Scanner) -> nib.Nifti1Image:
    """Return an RAS+ array as an image in the scanner's orientation."""
    codes = (orientations.axcodes2ornt(axes) for axes in ("RAS", scanner.orientation))
    img = nib.Nifti1Image(values, affine).as_reoriented(orientations.ornt_transform(*codes))
    img.set_qform(img.affine, 1)
    img.set_sform(img.affine, 1)
    img.header.set_xyzt_units("mm", "sec")
    return img


def _affine(degrees: Sequence[float], shift: np.ndarray) -> np.ndarray:
    """Return the 4 x 4 affine of rotations about x, y and z (degrees) and a shift (mm)."""
    turn = Rotation.from_euler("XYZ", degrees, degrees=True).as_matrix()
    return np.asarray(from_matvec(turn, shift))


def _field_of_view(head: Head, scanner: Scanner) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine of a scan centred on the head, with its top just above the scalp."""
    filled = ndimage.find_objects((head.labels > 0).astype(np.uint8))[0]
    ends = [[part.start for part in filled], [part.stop - 1 for part in filled]]
    first, last = apply_affine(head.affine, ends)
    middle = np.array([0.0, (first[1] + last[1]) / 2, last[2] + 14.0 - scanner.fov_mm[2] / 2])
    shape = np.rint(np.divide(scanner.fov_mm, scanner.voxel_mm)).astype(int)
    affine = _affine([scanner.tilt_deg, 0.0, 0.0], middle) @ np.diag([*scanner.voxel_mm, 1.0])
    return tuple(shape.tolist()), affine @ from_matvec(np.eye(3), (1 - shape) / 2)


def _contrast(head: Head, scanner: Scanner, echo_ms: float | None) -> np.ndarray:
    """Return the noiseless signal of a head on its grid (white matter 1); see Scanner.signals."""
    signals = scanner.signals(echo_ms)
    table = [signals.get(tissue.name.lower(), 0.0) for tissue in Tissue]
    image: np.ndarray = np.array(table, dtype=np.float32)[head.labels]
    mixed = np.array([signals[name] for name in BRAIN_TISSUES], dtype=np.float32)
    # The result of a matrix product would depend on the number of threads.
    image[head.brain_mask] = np.einsum("t,tv->v", mixed, head.fractions)
    return image


def _receive_field(scanner: Scanner, shape: tuple[int, ...]) -> np.ndarray:
    """Return the receive field (bias field): the exponential of a polynomial in position."""
    x, y, z = (np.linspace(-1.0, 1.0, n) for n in shape)
    log = np.polynomial.polynomial.polygrid3d(x, y, z, np.reshape(scanner.bias, (3, 3, 3)))
    return np.asarray(np.exp(log), dtype=np.float32)


def _movement(amount: float, rng: np.random.Generator) -> list[tio.Transform]:
    """Return transforms for sudden motion (up to ``amount`` mm and degrees) and ghosting."""
    degrees, shifts = amount * rng.uniform(-1.0, 1.0, (2, 4, 3))
    times = np.sort(rng.uniform(0.2, 0.8, 4))
    ghosts, axis = int(rng.integers(4, 9)), int(rng.integers(2))
    return [
        tio.Motion(degrees, shifts, times, "linear"),
        tio.Ghosting(ghosts, axis, amount / 6.0, restore=0.02),
    ]


def _without_end(
    brain: np.ndarray, share: float, axis: int, end: int
) -> tuple[slice, slice, slice]:
    """Return the box without a fraction of the brain at the positive (1) or negative (-1) end."""
    along = np.moveaxis(brain, axis, 0).sum(axis=(1, 2))[::-end]
    lost = int(np.argmin(np.abs(np.cumsum(along) / along.sum() - share))) + 1
    part = [slice(None)] * 3
    part[axis] = slice(None, -lost) if end > 0 else slice(lost, None)
    return part[0], part[1], part[2]


def _confuse_axes(
    affine: np.ndarray, shape: tuple[int, ...], degrees: float, rng: np.random.Generator
) -> np.ndarray:
    """Return a wrong affine: rotated about one axis, with wrong voxel sizes along the others.

    The rotation is about the centre of the field of view. As if slice thickness and pixel size
    were confused, one axis is stretched and another shrunk by the same factor. Rotation alone
    would be no reason to reject a scan because registration corrects it.
    """
    axis, thickness = rng.integers(3), rng.uniform(1.5, 2.0)
    stretch = np.insert([thickness, 1.0 / thickness], axis, 1.0)
    turn = _affine(np.eye(3)[axis] * degrees * rng.choice([-1, 1]), np.zeros(3))[:3, :3]
    axes, middle = turn @ affine[:3, :3] * stretch, (np.array(shape) - 1) / 2
    shift = apply_affine(affine, middle) - axes @ middle
    return np.asarray(from_matvec(axes, shift))


def _wrong_mask(
    data: np.ndarray, brain: np.ndarray, scanner: Scanner, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Return a wrong mask: cut off at one end, or extended into bright voxels below the brain."""
    if rng.random() < 0.5:
        wrong = np.zeros_like(brain)
        part = _without_end(brain, share, int(rng.integers(3)), 1)
        wrong[part] = brain[part]
        return wrong
    middle = ndimage.center_of_mass(brain)[2]
    fits = ~brain & (data > 0.25 * np.median(data[brain])) & (np.arange(brain.shape[2]) < middle)
    far = ndimage.distance_transform_edt(~brain, sampling=scanner.voxel_mm)
    reach = np.sort(far[fits])[: int(share * brain.sum())]
    return np.asarray(brain | (fits & (far <= reach[-1])))
