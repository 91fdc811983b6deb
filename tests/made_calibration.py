"""A calibration of a site that differs from a bundle's reference by a known shift."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bids_harmony.models.bundle import Bundle
from bids_harmony.sites.calibration import Calibration, SiteScan, calibrate
from bids_harmony.sites.code import LEVELS


def made_calibration(
    bundle: Bundle, shift: float = -0.05, *, site: str = "SRC", n: int = 8, **options: object
) -> Calibration:
    """Calibrate a site whose scans are darker by ``shift`` than the reference's at each age."""

    appearance = bundle.appearance()
    ages = np.linspace(*appearance.ages, n)
    scans = [
        SiteScan(
            f"sub-{i}",
            f"{i}",
            site,
            float(age),
            None,
            {"quantiles": row[: len(LEVELS)] + shift, "texture": row[len(LEVELS) :]},
            Path(),
        )
        for i, (age, row) in enumerate(zip(ages, appearance.expected(ages), strict=True))
    ]
    settings = {"predict": None, "template": bundle.contract.template} | options
    return calibrate(scans, bundle, **settings)  # type: ignore[arg-type]
