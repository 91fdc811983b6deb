"""Image quality and registration metrics of one scan (science.md §7, the fast ones).

Tissues are classified by intensity alone, a fast substitute for the segmentations used by MRIQC.
The metrics are meant to compare scans, not to measure atrophy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy import linalg, ndimage

from bids_harmony.anat.intensity import class_means
from bids_harmony.anat.template import Template

#: Significant digits of metrics, so that reruns are identical across maths libraries.
DIGITS = 5
NMI_BINS = 32
#: Band-pass filter applied before comparing scan and template, in mm: standard deviation of the
#: smoothing, and side of the surrounding cube whose mean is subtracted.
FINE_MM, COARSE_MM = 2.0, 40.0
#: Left-right comparison: smoothing (standard deviation) and minimum depth in mm, and percentile of
#: the differences. The cortex is excluded, as gyri differ between hemispheres while deeper
#: structures hardly do. With a dark 14 ml sphere (a synthetic lesion) in the white matter of half
#: of 151 real scans, these scans were at least 6 robust deviations away from the good scans of
#: their site (3 if the cortex was included, 1 at the 99th percentile). This combination was the
#: best of deviations from 4 to 8 mm and percentiles from 99 to 100.
HALVES_MM, HALVES_DEPTH_MM, HALVES_PERCENTILE = 6.0, 10.0, 99.5
#: Minimum brain area of a slice compared with its neighbours, relative to the largest slice.
MIN_SLICE = 0.3
MIN_VOXELS = 1000
#: Tissue mixture model: histogram bins, EM iterations, bias field iterations, maximum voxels.
BINS, EM_STEPS, BIAS_ROUNDS, MAX_SAMPLE = 256, 60, 2, 60_000
INTENSITY_METRICS = (
    "snr_wm", "cnr", "cjv", "noise", "bias_range", "p97_p50", "sharpness", "slice_jump",
    "csf_fraction", "gm_fraction", "wm_fraction", "efc", "fber",
)  # fmt: skip


def scan_metrics(
    *,
    native: nib.Nifti1Image,
    native_mask: np.ndarray,
    registered: np.ndarray,
    registered_mask: np.ndarray,
    template: Template,
    scaled: np.ndarray,
    scaled_mask: np.ndarray,
    transform: str | Path | np.ndarray,
) -> dict[str, float | None]:
    """Compute the QC metrics of one scan before and after registration, in about 1 s of CPU time.

    Parameters
    ----------
    native : nibabel.Nifti1Image
        3-D RAS image on the native grid, arbitrary intensity units.
    native_mask : numpy.ndarray
        Boolean brain mask on the native grid.
    registered : numpy.ndarray
        Scan on the template grid, in native intensity units (before scaling).
    registered_mask : numpy.ndarray
        Boolean brain mask of the scan on the template grid.
    template : bids_harmony.anat.template.Template
        Template on an isotropic grid.
    scaled, scaled_mask : numpy.ndarray
        Scan on the template grid with white matter 1 and CSF 0, and boolean mask of its
        foreground.
    transform : path-like or numpy.ndarray
        ITK text transform from the scan to the template, or its 3 x 3 or 4 x 4 matrix.

    Returns
    -------
    dict
        Values by metric, None where undefined (such as the FBER of a scan with zeroed air).
        Metrics are described in ``data/qc_dictionary.json``.
    """
    matrix = transform if isinstance(transform, np.ndarray) else read_itk_matrix(transform)
    image, zooms = np.asarray(native.dataobj), [float(z) for z in native.header.get_zooms()[:3]]
    zoom = float(template.t1w.header.get_zooms()[0])
    values = {
        "brain_volume_ml": float(native_mask.sum() * np.prod(zooms) / 1e3),
        **affine_metrics(matrix),
        **similarity_metrics(
            registered, registered_mask, np.asarray(template.t1w.dataobj), template.mask, zoom
        ),
        "asymmetry": asymmetry(scaled, scaled_mask, zoom),
        **intensity_metrics(image, native_mask, zooms),
    }
    return {name: rounded(value) for name, value in values.items()}


def read_itk_matrix(path: str | Path) -> np.ndarray:
    """Read the 3 x 3 matrix of an affine ITK text transform.

    Raises
    ------
    ValueError
        When the file is not an ITK text transform.
    """
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith("Parameters:"):
            return np.array(line.split()[1:10], dtype=float).reshape(3, 3)
    raise ValueError(f"{Path(path).name} is not an ITK text transform")


def affine_metrics(matrix: np.ndarray) -> dict[str, float | None]:
    """Compute the scale, shear and rotation of a head relative to the template.

    An ITK transform maps template points to scan points. A scale above 1 thus means that the head
    is larger than the template along that axis, and the determinant is the ratio of volumes.

    Parameters
    ----------
    matrix : numpy.ndarray
        ITK matrix, 3 x 3 or 4 x 4.
    """
    matrix = np.asarray(matrix, dtype=float)[:3, :3]
    rotation, symmetric = linalg.polar(matrix)  # symmetric: scales and shears
    cosine = np.clip((float(np.trace(rotation)) - 1) / 2, -1.0, 1.0)
    return {
        **{f"affine_scale_{axis}": symmetric[i, i] for i, axis in enumerate("xyz")},
        "affine_shear_xy": symmetric[0, 1],
        "affine_shear_xz": symmetric[0, 2],
        "affine_shear_yz": symmetric[1, 2],
        "affine_determinant": float(np.linalg.det(matrix)),
        "affine_rotation_deg": math.degrees(math.acos(cosine)),
    }


def similarity_metrics(
    registered: np.ndarray,
    registered_mask: np.ndarray,
    template: np.ndarray,
    template_mask: np.ndarray,
    zoom: float,
) -> dict[str, float | None]:
    """Compute the similarity and distance of a registered brain and the template.

    Similarity is computed within the overlap of the two brain masks. The correlation is restricted
    to details between 2 mm and 40 mm (gyri, ventricles and nuclei). It excludes the bias field,
    noise and the outline of the brain, which may match even if the pose is wrong. Of eleven
    variants (whole images or the union of masks, overlap or core, plain or smoothed, mutual
    information) it separated good from failed registrations by far the best; see
    :data:`bids_harmony.qc.reference.REGISTRATION_LIMITS`.

    Parameters
    ----------
    registered, template : numpy.ndarray
        Scan and template on the template grid.
    registered_mask, template_mask : numpy.ndarray
        Their boolean brain masks.
    zoom : float
        Isotropic voxel size of the template grid in mm.

    Returns
    -------
    dict
        ``template_dice``, ``template_ncc``, ``template_nmi`` and ``centroid_offset_mm``. The last
        three are None if the masks overlap in fewer than 1000 voxels.
    """
    from skimage.metrics import normalized_mutual_information

    both = registered_mask & template_mask
    n_both, total = int(both.sum()), int(registered_mask.sum()) + int(template_mask.sum())
    values: dict[str, float | None] = {
        "template_dice": 2.0 * n_both / total if total else 0.0,
        "template_ncc": None,
        "template_nmi": None,
        "centroid_offset_mm": None,
    }
    if n_both < MIN_VOXELS:
        return values
    centres = [ndimage.center_of_mass(mask) for mask in (registered_mask, template_mask)]
    values["centroid_offset_mm"] = float(np.linalg.norm(np.subtract(*centres)) * zoom)
    clipped = np.clip(registered, 0, float(np.percentile(registered[both], 98)))
    details = [
        _band(image, mask, zoom)[both].astype(np.float64)
        for image, mask in ((clipped, registered_mask), (template, template_mask))
    ]
    a, b = (x - x.mean() for x in details)
    norm = math.sqrt(float((a * a).sum() * (b * b).sum()))
    values["template_ncc"] = float((a * b).sum()) / norm if norm > 0 else None
    if np.ptp(clipped[both]) > 0:
        values["template_nmi"] = float(
            normalized_mutual_information(  # type: ignore[no-untyped-call]
                clipped[both], template[both], bins=NMI_BINS
            )
        )
    return values


def _band(image: np.ndarray, mask: np.ndarray, zoom: float) -> np.ndarray:
    """Band-pass filter an image: smooth it and subtract its local mean, both within the mask."""
    inside = mask.astype(np.float32)
    values = np.where(mask, image, 0).astype(np.float32)
    width = 2 * round(COARSE_MM / zoom / 2) + 1

    def within(blur: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return np.asarray(blur(values) / np.maximum(blur(inside), 1e-3))

    fine = within(lambda x: ndimage.gaussian_filter(x, FINE_MM / zoom, truncate=3.0))
    coarse = within(lambda x: ndimage.uniform_filter(x, width, mode="constant"))
    return np.asarray(fine - coarse)


def asymmetry(scaled: np.ndarray, mask: np.ndarray, zoom: float) -> float | None:
    """Compute the largest left-right difference of a registered brain below its cortex.

    Lesions, resection cavities and unilateral bias fields increase it. The first axis must run
    from left to right with the midline at its centre, as on template grids.

    Parameters
    ----------
    scaled : numpy.ndarray
        Scan on the template grid with white matter 1 and CSF 0.
    mask : numpy.ndarray
        Boolean mask of its foreground.
    zoom : float
        Isotropic voxel size in mm.

    Returns
    -------
    float or None
        99.5th percentile of the absolute differences, in scaled intensities; None if the mask is
        too small.
    """
    both = mask & mask[::-1]
    deep = ndimage.binary_erosion(both, iterations=max(1, round(HALVES_DEPTH_MM / zoom)))
    if int(deep.sum()) < MIN_VOXELS:
        return None
    blurred = [
        ndimage.gaussian_filter(x.astype(np.float32), HALVES_MM / zoom, truncate=3.0)
        for x in (np.where(both, scaled, 0), both)
    ]
    smooth = blurred[0] / np.maximum(blurred[1], 1e-6)
    return float(np.percentile(np.abs(smooth - smooth[::-1])[deep], HALVES_PERCENTILE))


def intensity_metrics(
    native: np.ndarray, native_mask: np.ndarray, zooms: Sequence[float]
) -> dict[str, float | None]:
    """Compute contrast, noise, bias field, sharpness and artefact metrics on the native grid."""
    values: dict[str, float | None] = dict.fromkeys(INTENSITY_METRICS)
    values["efc"] = entropy_focus(native[::2, ::2, ::2])
    if int(native_mask.sum()) < MIN_VOXELS:
        return values
    box = ndimage.find_objects(native_mask.astype(np.uint8))[0]
    brain = np.ascontiguousarray(native[box], dtype=np.float32)
    mask = np.ascontiguousarray(native_mask[box])
    inside = brain[mask]
    p50, p97 = np.percentile(inside[:: max(1, inside.size // 200_000)], [50, 97])
    values["fber"] = foreground_background(native[::2, ::2, ::2], native_mask[::2, ::2, ::2])
    values["p97_p50"] = float(p97 / p50) if p50 > 0 else None
    values["slice_jump"] = slice_jump(brain, mask)
    tissues = fit_tissues(brain, mask)
    _, grey, white = (float(m) for m in tissues.mean)
    contrast = white - grey
    if contrast > 0 and grey > 0:
        _, sd_grey, sd_white = tissues.sd
        values["snr_wm"] = float(white / sd_white)
        values["cnr"] = float(contrast / np.hypot(sd_grey, sd_white))
        values["cjv"] = float((sd_grey + sd_white) / contrast)
        values |= edges_and_noise(brain, mask, zooms, grey, white)
    values["bias_range"] = tissues.bias_range
    for name, fraction in zip(("csf", "gm", "wm"), tissues.fraction, strict=True):
        values[f"{name}_fraction"] = float(fraction)
    return values


def entropy_focus(image: np.ndarray) -> float | None:
    """Compute the entropy focus criterion (Atkinson 1997, as in MRIQC).

    Ghosting and blurring increase it. None for an image of zeros.
    """
    x = np.abs(image).ravel().astype(np.float64)
    root = math.sqrt(float(x @ x))
    if root == 0 or x.size < 2:
        return None
    x = x[x > 0] / root
    n = image.size
    return float(-(x * np.log(x)).sum() / (math.sqrt(n) * math.log(math.sqrt(n))))


def foreground_background(image: np.ndarray, mask: np.ndarray) -> float | None:
    """Compute the ratio of median brain energy to mean air energy; None if the air was zeroed.

    Air consists of voxels outside the brain mask below a tenth of the median brain intensity.
    Voxels with exactly the minimum value are considered fill values, not air.
    """
    middle = float(np.median(image[mask])) if mask.any() else 0.0
    air = image[~mask & (image < 0.1 * middle)]
    air = air[air != image.min()].astype(np.float64)
    if air.size < 0.02 * image.size or middle <= 0:
        return None
    energy = float(np.mean(air**2))
    return middle**2 / energy if energy > 0 else None


def slice_jump(brain: np.ndarray, mask: np.ndarray) -> float | None:
    """Compute the largest difference of a slice's mean from the average of its two neighbours.

    The difference is relative to the mean of the brain. All three axes are used, with slices whose
    brain area is at least 30 % of the largest. Interleaving and spike artefacts increase it.
    """
    mean = float(brain[mask].mean())
    if mean <= 0:
        return None
    worst = 0.0
    image = brain * mask
    for axis in range(3):
        others = tuple({0, 1, 2} - {axis})
        area = mask.sum(axis=others).astype(np.float64)
        level = image.sum(axis=others, dtype=np.float64) / np.maximum(area, 1)
        large = area >= MIN_SLICE * area.max()
        use = large[1:-1] & large[:-2] & large[2:]
        jump = np.abs(level[1:-1] - (level[:-2] + level[2:]) / 2)[use]
        worst = max(worst, float(jump.max(initial=0.0)))
    return worst / mean


def edges_and_noise(
    brain: np.ndarray, mask: np.ndarray, zooms: Sequence[float], grey: float, white: float
) -> dict[str, float | None]:
    """Compute the sharpness of tissue edges and the noise level.

    Parameters
    ----------
    brain : numpy.ndarray
        3-D intensities.
    mask : numpy.ndarray
        Boolean brain mask of the same shape.
    zooms : sequence of float
        Voxel sizes in mm.
    grey, white : float
        Mean intensities of grey and white matter.

    Returns
    -------
    dict
        ``noise``, relative to the mean of white matter, and ``sharpness``, in GM-WM contrasts per
        mm; None if there are too few voxels.
    """
    # Noise is estimated in probable white matter from second differences, which cancel linear
    # trends. The factor 1.4826 converts the median absolute value to a standard deviation, and
    # sqrt(6) is the norm of the weights (1, -2, 1). The minimum over axes is least affected by
    # anatomy.
    likely_white = mask & (brain > (grey + white) / 2)
    noises, squares = [], np.zeros_like(brain)
    for axis in range(3):
        # Move the axis to the front without copying, so that neighbours along it are slices.
        image, white_there, square = (
            np.moveaxis(x, axis, 0) for x in (brain, likely_white, squares)
        )
        use = white_there[1:-1] & white_there[:-2] & white_there[2:]
        second = (image[:-2] + image[2:] - 2 * image[1:-1])[use]
        if second.size >= MIN_VOXELS:
            noises.append(1.4826 * float(np.median(np.abs(second))) / math.sqrt(6))
        square[1:-1] += ((image[2:] - image[:-2]) / (2 * zooms[axis])) ** 2
    slopes = np.sqrt(squares[mask & ndimage.binary_erosion(mask, iterations=2)])
    enough = slopes.size >= MIN_VOXELS
    return {
        "noise": min(noises) / white if noises else None,
        "sharpness": float(np.percentile(slopes, 90)) / (white - grey) if enough else None,
    }


class Tissues(NamedTuple):
    """Gaussian mixture of CSF, GM and WM intensities (in this order, darkest first).

    Attributes
    ----------
    mean, sd, fraction : numpy.ndarray
        Shape (3,). Mean and standard deviation in the image's units after bias field correction,
        and fraction of brain voxels.
    bias_range : float
        Range (99th minus 1st percentile) of the fitted bias field within the brain, relative to
        its median; 0 for a constant field.
    """

    mean: np.ndarray
    sd: np.ndarray
    fraction: np.ndarray
    bias_range: float


def fit_tissues(image: np.ndarray, mask: np.ndarray) -> Tissues:
    """Fit a mixture of three tissue classes and a quadratic log bias field to a brain.

    The two fits alternate. They are deterministic.

    Parameters
    ----------
    image : numpy.ndarray
        3-D intensities.
    mask : numpy.ndarray
        Boolean brain mask of the same shape with at least 100 voxels.

    Returns
    -------
    Tissues
        Fitted mixture and bias field range.
    """
    where = np.flatnonzero(mask)
    where = where[:: max(1, where.size // MAX_SAMPLE)]
    values = np.take(image, where).astype(np.float64)
    index = np.stack(np.unravel_index(where, mask.shape), axis=1)
    x, y, z = (2.0 * index / np.maximum(np.array(mask.shape) - 1, 1) - 1.0).T
    terms = np.stack([x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], axis=1)
    floor = max(float(np.percentile(values, 99)) * 1e-3, 1e-12)
    logs = np.log(np.maximum(values, floor))
    coefficients = np.zeros(terms.shape[1])
    mean, sd, fraction = _mixture(values, class_means(values))
    for _ in range(BIAS_ROUNDS):
        # Fit the field to white matter alone. Grey matter and CSF vary with anatomy and partial
        # volume effects, which the field would absorb.
        corrected = values / np.exp(terms @ coefficients)
        weight = _posterior(corrected, mean, sd, fraction)[:, 2]
        residual = logs - np.log(max(float(mean[2]), floor))
        # einsum sums in a fixed order, independent of the number of threads.
        normal = np.einsum("ni,n,nj->ij", terms, weight, terms)
        right = np.einsum("ni,n,n->i", terms, weight, residual)
        coefficients = np.linalg.lstsq(normal, right, rcond=None)[0]
        mean, sd, fraction = _mixture(values / np.exp(terms @ coefficients), mean)
    low, middle, high = np.percentile(np.exp(terms @ coefficients), [1, 50, 99])
    return Tissues(mean, sd, fraction, float((high - low) / middle))


def _mixture(values: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit three Gaussians to the histogram of values by expectation maximization.

    Returns mean, standard deviation and fraction, shape (3,) each, darkest class first.
    """
    low, high = np.percentile(values, [0.1, 99.9])
    counts, edges = np.histogram(values, bins=BINS, range=(low, max(high, low + 1e-9)))
    centres = (edges[1:] + edges[:-1]) / 2
    smallest = edges[1] - edges[0]
    mean = np.sort(start)
    sd = np.full(3, max(float(values.std()) / 3, smallest))
    fraction = np.full(3, 1 / 3)
    for _ in range(EM_STEPS):
        weight = _posterior(centres, mean, sd, fraction) * counts[:, None]
        total = np.maximum(weight.sum(axis=0), 1e-9)
        mean = (weight * centres[:, None]).sum(axis=0) / total
        variance = (weight * (centres[:, None] - mean) ** 2).sum(axis=0) / total
        sd = np.sqrt(np.maximum(variance, smallest**2))
        fraction = total / total.sum()
    order = np.argsort(mean)
    return mean[order], sd[order], fraction[order]


def _posterior(
    values: np.ndarray, mean: np.ndarray, sd: np.ndarray, fraction: np.ndarray
) -> np.ndarray:
    """Compute the posterior probability of each class, shape (n, 3)."""
    density = fraction / sd * np.exp(-0.5 * ((values[:, None] - mean) / sd) ** 2)
    return np.asarray(density / np.maximum(density.sum(axis=1, keepdims=True), 1e-300))


def rounded(value: float | None) -> float | None:
    """Round to ``DIGITS`` significant digits; None for values that are missing or not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")
