"""How alike two ways of finding tissue levels make the scans of several sites.

    bids_harmony BIDS A participant --bundle none --tissue-levels k-means
    bids_harmony BIDS B participant --bundle none --tissue-levels mixture
    python benchmarks/tissue_levels.py A B --reference-site SITE

For each folder and each site but the reference it prints how far the site's tissue intensities are
from the reference's at the same ages, and how much more of the brain is fluid, grey and white
matter there. Where persons were scanned at every site it prints how far their scans are from those
at the reference, and how well the ventricles and the tissues' shares of the brain agree between
the sites: ICC(2,1), absolute agreement.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from bids_harmony.contract import Contract
from bids_harmony.evaluation.statistics import icc
from bids_harmony.qc.harmonization import tissue_limits, tissue_shares, ventricle_ml
from bids_harmony.training.select import at_ages, tissue_quantiles

SIZES = ("ventricles", "fluid", "grey", "white")


def measure(record: Path, grey: float) -> dict:
    """Measure one preprocessed scan, and keep its volume."""
    said = json.loads(record.read_text())
    stem = record.name.removesuffix("_desc-harmony_qc.json")
    volume = next(record.parent.glob(f"{stem}_space-*_desc-preproc_T1w.nii.gz"))
    image = nib.load(volume)
    data = np.asarray(image.dataobj, dtype=np.float32)
    mask = data > 0
    shares = tissue_shares(data[mask], tissue_limits(grey))
    sizes = (ventricle_ml(data, mask, image.affine), *shares)
    return {
        "person": stem.split("_")[0], "site": said["site"], "age": said["age"],
        "quantiles": tissue_quantiles(data, mask, grey), "volume": data.astype(np.float16),
        **dict(zip(SIZES, sizes, strict=True)),
    }  # fmt: skip


def between_sites(scans: pd.DataFrame, reference: str) -> None:
    """Print how each site differs from the reference at the same ages."""
    home = scans[scans["site"] == reference]
    for site, here in scans[scans["site"] != reference].groupby("site"):
        wanted = at_ages(list(home["quantiles"]), home["age"].to_numpy(), here["age"].to_numpy())
        distance = np.abs(np.mean(list(here["quantiles"]), axis=0) - wanted).mean()
        more = {}
        for size in SIZES[1:]:
            curve = np.polyfit(home["age"], home[size], 2)
            more[size] = float((here[size] - np.polyval(curve, here["age"])).mean())
        shares = ", ".join(f"{size} {value:+.3f}" for size, value in more.items())
        print(f"  {site} ({len(here)}): distance {distance:.4f}; shares of the brain {shares}")


def between_scans(scans: pd.DataFrame, reference: str) -> None:
    """Print how the scans of persons who were scanned everywhere agree."""
    table = scans.pivot(index="person", columns="site")
    if table.isna().any(axis=None):
        return
    for site in table["volume"].columns.drop(reference):
        pairs = zip(table["volume"][site], table["volume"][reference], strict=True)
        apart = [np.abs(a - b)[(a > 0) | (b > 0)].mean(dtype=float) for a, b in pairs]
        print(f"  {site}: {np.mean(apart):.4f} from the same head's scan at {reference}")
    agree = ", ".join(f"{s} {icc(table[s].to_numpy(dtype=float)):.2f}" for s in SIZES)
    print(f"  agreement between sites ({len(table)} persons): {agree}")


def main() -> None:
    """Measure each folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outputs", type=Path, nargs="+", help="output folders")
    parser.add_argument("--reference-site", required=True)
    options = parser.parse_args()
    for folder in options.outputs:
        records = sorted(folder.glob("sub-*/**/*_desc-harmony_qc.json"))
        scans = pd.DataFrame([measure(record, Contract.grey) for record in records])
        print(f"{folder}: {len(scans)} scans")
        between_sites(scans, options.reference_site)
        if scans["person"].nunique() < len(scans):
            between_scans(scans, options.reference_site)


if __name__ == "__main__":
    main()
