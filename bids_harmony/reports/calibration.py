"""The page of one site's calibration."""

from __future__ import annotations

import base64
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bids_harmony.reports.drawing import BLUE, ORANGE, REFERENCE, new_figure, plain_axes, save_png
from bids_harmony.sites.code import spoken

if TYPE_CHECKING:
    from bids_harmony.models.bundle import Bundle
    from bids_harmony.sites.calibration import Calibration

#: Width of the kernel that distributions are smoothed with.
KERNEL = 0.03


def calibration_page(calibration: Calibration, bundle: Bundle) -> str:
    """Write the page: what a calibration rests on, and its intensity mapping.

    Parameters
    ----------
    calibration : Calibration
        Of a site.
    bundle : Bundle
        The one it was made with.

    Returns
    -------
    str
        HTML with its picture inside.
    """
    import jinja2

    with tempfile.TemporaryDirectory(prefix="bids_harmony_page") as scratch:
        picture = _figure(calibration, Path(scratch) / "figure.png").read_bytes()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    source = (files("bids_harmony.data") / "calibration.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        calibration=calibration,
        reference=bundle.reference_site,
        network=bundle.has_map_network,
        changes=spoken(calibration.changes(bundle)),
        picture=base64.b64encode(picture).decode("ascii"),
    )


def _figure(calibration: Calibration, out: Path) -> Path:
    """Draw the distributions of deep intensities, and the curve that takes one to the other."""
    x, y = calibration.mapping.x, calibration.mapping.y
    sd = calibration.code.sd[: len(x)]
    figure, (left, right) = new_figure((1, 2), 0.44)
    grid = np.linspace(0, max(x[-1], y[-1]) + 0.1, 300)
    for values, colour, name in ((y, REFERENCE, "reference"), (x, ORANGE, "site")):
        density = _density(values, grid)
        left.plot(grid, density, color=colour, lw=1.8, label=name)
        left.fill_between(grid, density, color=colour, alpha=0.15, lw=0)
    left.set_title("Intensities of the deep brain", fontsize=10, loc="left")
    left.set_xlabel("scaled intensity", fontsize=9)
    left.set_yticks([])
    left.set_ylim(bottom=0)
    ends = [0, grid[-1]]
    right.plot(ends, ends, color="0.6", lw=1, ls="--", label="no change")
    right.fill_betweenx(
        y, x - 1.96 * sd, x + 1.96 * sd, color=BLUE, alpha=0.2, lw=0, label="95 % interval"
    )
    right.plot(x, y, color=BLUE, lw=1.8, label="mapping")
    right.set_title("Intensity mapping", fontsize=10, loc="left")
    right.set_xlabel("at the site", fontsize=9)
    right.set_ylabel("at the reference", fontsize=9)
    right.set_xlim(ends)
    right.set_ylim(ends)
    for axes in (left, right):
        plain_axes(axes)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    return save_png(figure, out)


def _density(quantiles: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Make a smooth density of evenly spaced quantiles."""
    places = np.linspace(0, len(quantiles) - 1, 1000)
    values = np.interp(places, np.arange(len(quantiles)), quantiles)
    kernels = np.exp(-0.5 * ((grid[:, None] - values) / KERNEL) ** 2)
    return np.asarray(kernels.mean(axis=1) / (KERNEL * np.sqrt(2 * np.pi)))
