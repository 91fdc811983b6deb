"""Measure CPU time, wall time and peak memory of the participant level for one scan.

    python benchmarks/one_scan.py DATASET --participant-label 01 [--scans 10]

The run is cold (new output and work folders). A second table has the wall time of each workflow
node. With ``--scans N``, the cost of a further scan is that of N participants minus that of one,
divided by N - 1.

As seconds depend on the computer, they are also given relative to a peer: deepbet and
``ants.registration('Affine')`` to the template at 1 mm, on the same scan, in one process and one
thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pandas as pd
from measure import measure

#: Script of the peer; its arguments are a T1w file and a work folder.
PEER = """
import sys
import ants, nibabel as nib, numpy as np
from deepbet.bet import BrainExtraction
from nilearn.datasets import load_mni152_template
import torch
torch.set_num_threads(1)
img = nib.as_closest_canonical(nib.load(sys.argv[1]))
engine = BrainExtraction(no_gpu=True)
data = np.asarray(img.dataobj, dtype=np.float32)
mask = engine.postprocess(engine.run_model(data.copy()) > 0.5)
nib.save(nib.Nifti1Image(data * mask, img.affine), sys.argv[2] + "/brain.nii")
nib.save(load_mni152_template(resolution=1), sys.argv[2] + "/template.nii")
ants.registration(ants.image_read(sys.argv[2] + "/template.nii"),
                  ants.image_read(sys.argv[2] + "/brain.nii"), type_of_transform="Affine")
"""


def main() -> None:
    """Measure one cold scan, the peer and, with ``--scans``, a further scan."""
    from nipype.utils.filemanip import loadpkl

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--participant-label", required=True)
    parser.add_argument("--scans", type=int, default=1, help="participants of the second run")
    parser.add_argument("--nprocs", type=int, default=2)
    parser.add_argument("options", nargs="*", help="further options of bids_harmony, after --")
    given = parser.parse_args()
    first, n = given.participant_label.removeprefix("sub-"), given.scans
    labels = sorted(path.name.removeprefix("sub-") for path in given.dataset.glob("sub-*/"))
    if first not in labels or len(labels) < n:
        sys.exit(f"{given.dataset} must contain participant {first} and {n} participants in all.")
    labels = [first, *(label for label in labels if label != first)][:n]
    t1w = sorted((given.dataset / f"sub-{first}").rglob(f"sub-{first}*_T1w.nii*"))[0]

    with tempfile.TemporaryDirectory(prefix="one_scan") as folder:

        def participant(name: str, asked: list[str]) -> pd.Series:
            out, work = Path(folder, name), Path(folder, f"{name}_work")
            options = ("--participant-label", *asked, "-w", work, "--nprocs", given.nprocs)
            command = ("-m", "bids_harmony", given.dataset, out, "participant", *options)
            return pd.Series(measure(*command, *given.options))

        costs = {"one scan, cold": participant("one", labels[:1])}
        one_thread = dict.fromkeys(
            ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"
        )
        costs["peer"] = peer = pd.Series(measure("-c", PEER, t1w, folder, **one_thread))
        costs["one scan / peer"] = costs["one scan, cold"] / peer
        if n > 1:
            many = participant("many", labels)
            further = (many - costs["one scan, cold"]) / (n - 1)
            costs["a further scan"] = further.where(further.index != "peak_gb", many)
            costs["a further scan / peer"] = costs["a further scan"] / peer
        print(pd.DataFrame(costs).T.round(2).to_string(), end="\n\n")
        results = Path(folder, "one_work").rglob("result_*.pklz")
        seconds = {path.parent.name: loadpkl(path).runtime.duration for path in results}
        print(pd.Series(seconds, name="wall_s").sort_values(ascending=False).round(1).to_string())


if __name__ == "__main__":
    main()
