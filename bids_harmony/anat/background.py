"""What a file holds where nothing was scanned: padding, NaN, the constant of a stripped scan."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bids_harmony.anat.intensity import largest_component

#: Share of the voxels, and of those on the volume's faces, that padding holds at least.
MIN_PADDING = 0.001
#: Air is darker than this, as a share of the range from the darkest to the brightest.
AIR = 0.1
#: Padding is rounded by this share of its value at most.
ROUNDED = 0.01
#: Constants below all else, and above, that may be padding of different origins.
CONSTANTS = 3
#: Voxels beside padding with which interpolation may have mixed it.
MIXED = 3
#: Share of voxels below 0 that interpolation's ringing can explain.
MAX_NEGATIVE = 0.01
#: Share of voxels that ringing beside padding can bring beyond it.
MAX_RINGING = 0.1
#: Share of the finite voxels that lie together in a scan whose surroundings are NaN, and of all
#: voxels that they are at least.
TOGETHER, MIN_HEAD = 0.9, 0.01
#: Narrow gaps in a brain that are open to its surroundings, as a share of the brain: sulci.
SULCI = 0.05


def surrounding(bad: np.ndarray) -> np.ndarray:
    """Find which of a scan's bad voxels surround the head or brain, and do not run through it.

    Parameters
    ----------
    bad : numpy.ndarray
        Boolean, 3-D: the voxels that are NaN or infinite.

    Returns
    -------
    numpy.ndarray
        Those that are connected to the volume's faces, less those in narrow gaps of what is left
        where they are more than sulci could hold; none where what is left is in pieces.
    """
    head = largest_component(~bad)
    if head.sum() < max(TOGETHER * (bad.size - bad.sum()), MIN_HEAD * bad.size):
        return np.zeros(bad.shape, dtype=bool)
    padded = np.pad(head, 3)
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(padded, iterations=2))
    around = _at_border(bad)
    gaps = around & closed[3:-3, 3:-3, 3:-3]
    return around & ~gaps if gaps.sum() > SULCI * head.sum() else around


def find_padding(data: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Find constants that were put where the field of view ends, such as -1000 or 65535.

    Padding is one value on the volume's faces that many voxels hold and that lies far from all
    others: farther than these lie apart, or from the air than its values lie apart. So is a whole
    number below 0 in a scan without other negative intensities. The constant background of
    standardized scans is neither.

    Parameters
    ----------
    data : numpy.ndarray
        3-D, finite.
    outside : numpy.ndarray
        Boolean: voxels known as background, which have no say.

    Returns
    -------
    padding : numpy.ndarray
        Boolean: voxels that hold the constants, or a mixture with them beside them.
    values : list of float
        The constants.
    """
    padding, constants = np.zeros(data.shape, dtype=bool), []
    faces = _faces(data)[~_faces(outside)]
    values, counts = np.unique(faces, return_counts=True)
    often = values[counts >= MIN_PADDING * faces.size]
    lowest, highest = often[:CONSTANTS], often[::-1][:CONSTANTS]
    for value in (*lowest[lowest < 0], *highest[highest > 0]):
        beyond = (data > value if value > 0 else data < value) & ~outside
        if value == 0 or beyond.mean() > (MIN_PADDING if value > 0 else MAX_RINGING):
            continue
        if value > 0 and value not in data[np.ix_(*[(0, -1)] * 3)]:
            continue  # fat at the neck may be as bright as the file's format can say
        held = ((np.abs(data - value) <= ROUNDED * abs(value)) | beyond) & ~outside
        if held.mean() < MIN_PADDING:
            continue
        near = ndimage.binary_dilation(held, iterations=MIXED)
        rest = data[~(near | outside)]
        if not rest.size:
            continue
        low, quarter, most, high = np.percentile(rest, (0.1, 25, 75, 99.9))
        positive = np.mean(rest < 0) <= MAX_NEGATIVE
        # Where a quarter of the rest is air, it is there that padding must be told from it.
        width = quarter - low if quarter - low < AIR * (high - low) else high - low
        far = value - high > high - most if value > 0 else low - value > width
        lowest_left = value == often[0] or not beyond.any()
        if far or (value < 0 and positive and value == round(value) and lowest_left):
            mixed = near & (data > high) if value > 0 else data < (0 if positive else low)
            found = (held | mixed) & ~outside
            padding |= found
            outside = outside | found
            constants.append(float(value))
    return padding, constants


def lift(data: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, float]:
    """Bring standardized intensities above 0, which is the background in all that follows.

    Parameters
    ----------
    data : numpy.ndarray
        3-D, finite.
    outside : numpy.ndarray
        Boolean: voxels that are background whatever they hold.

    Returns
    -------
    lifted : numpy.ndarray
        The background 0, nothing below it.
    added : float
        What was added to all intensities: 0 where next to none was below 0.
    """
    if np.mean(data[~outside] < 0) <= MAX_NEGATIVE:
        return np.where(outside, 0, data), 0.0
    value = background_value(data)
    flat = (_at_border(data == value) if value is not None else np.zeros_like(outside)) & ~outside
    # A percentile, as single voxels may lie far below all others.
    lowest = float(np.percentile(data[~(outside | flat)], 0.1))
    if value is not None and value > lowest:
        outside = outside | flat  # standardized within the brain alone
    else:
        lowest = float(np.percentile(data[~outside], 0.1))
    return np.where(outside, 0, np.maximum(data - lowest, 0)), -lowest


def background_value(data: np.ndarray) -> float | None:
    """Find the value that most voxels on a volume's faces hold, if one does."""
    values, counts = np.unique(_faces(data), return_counts=True)
    return float(values[counts.argmax()]) if counts.max() >= 0.5 * counts.sum() else None


def _at_border(mask: np.ndarray) -> np.ndarray:
    """Keep what is connected to the volume's faces."""
    labels, _ = ndimage.label(np.pad(mask, 1, constant_values=True))
    connected: np.ndarray = (labels == labels[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return connected


def _faces(data: np.ndarray) -> np.ndarray:
    """Return the voxels on a volume's six faces (those on edges several times)."""
    return np.concatenate([data.take(i, axis).ravel() for axis in range(3) for i in (0, -1)])
