"""Compare the segmentation (Dice) of raw and harmonized scans with reference labels (README).

Sections from top to bottom: structures, scans, network, training, segmentation, Dice, table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional as F

from bids_harmony.anat.affine import resample
from bids_harmony.models.networks import HEIGHT_MM, Box, crop, slice_heights, uncrop
from bids_harmony.sites.statistics import with_intervals

#: Label codes of each structure, left and right together, which Neuromorphometrics and DLMUSE
#: share. Cerebral white matter is 44 and 45 in Neuromorphometrics; DLMUSE divides it into lobes,
#: fornix, internal capsule and corpus callosum (81 to 95).
STRUCTURES: dict[str, tuple[int, ...]] = {
    "ventricles": (4, 11, 49, 50, 51, 52),
    "thalamus": (59, 60),
    "caudate": (36, 37),
    "putamen": (57, 58),
    "pallidum": (55, 56),
    "hippocampus": (47, 48),
    "amygdala": (31, 32),
    "cortex": tuple(range(100, 208)),
    "white matter": (44, 45, *range(81, 96)),
}
NAMES = tuple(STRUCTURES)
#: ``desc`` entities of label maps in ``derivatives/*`` of a dataset, and of the participant
#: level's images.
LABELS = ("dlmuse", "manual")
IMAGES = {"raw": "preproc", "harmonized": "harmonized"}
#: Fraction of the reference's persons held out from training.
HELD_OUT = 0.2
#: Channels of each level of the U-Net. Slice sizes must be multiples of ``MULTIPLE``, so that they
#: can be halved at each level.
WIDTHS = (24, 48, 96, 128)
MULTIPLE = 2 ** (len(WIDTHS) - 1)
#: Neighbouring slices on each side in the network's input.
CONTEXT = 1
#: Largest augmentation: rotation (degrees), log scale and shift (voxels).
ROTATION, SCALE, SHIFT = 8.0, 0.06, 2.0
BATCH, LEARNING_RATE = 16, 3e-3
N_BOOTSTRAP = 2000


# --- Scans -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """A preprocessed scan with a label map.

    Attributes
    ----------
    name : str
        File name up to the suffix, such as ``sub-01_ses-a``.
    person : str
        Column ``person`` of ``participants.tsv`` or, without it, the participant.
    images : dict of str to pathlib.Path
        Images on the template grid: ``raw`` and, if there is one, ``harmonized``.
    transform : pathlib.Path
        Transform from the scan to the template.
    dseg : pathlib.Path
        Label map on the scan's own grid.
    """

    name: str
    person: str
    images: Mapping[str, Path]
    transform: Path
    dseg: Path

    def volume(self, kind: str = "raw") -> tuple[np.ndarray, np.ndarray]:
        """Load an image, (x, y, z) float32, and its affine."""
        image = nib.load(self.images[kind])
        return np.asarray(image.dataobj, dtype=np.float32), image.affine

    def labels(self) -> np.ndarray:
        """Resample the labels to the template grid: uint8, 0 background, then by order in NAMES.

        Each structure is resampled on its own and each voxel gets the one with the largest
        fraction. Nearest-neighbour interpolation would fragment thin structures.
        """
        image = nib.load(self.dseg)
        codes = np.asarray(image.dataobj)
        grid = nib.load(self.images["raw"])
        share = np.zeros((len(NAMES) + 1, *grid.shape), np.float32)
        for i, name in enumerate(NAMES, 1):
            inside = np.isin(codes, STRUCTURES[name]).astype(np.float32)
            one = nib.Nifti1Image(inside, image.affine)
            share[i] = resample(one, grid, self.transform, antialias=True).dataobj
        share[0] = 1 - share[1:].sum(axis=0)
        return share.argmax(axis=0).astype(np.uint8)


def find_labelled(dataset: Path, output: Path) -> list[Scan]:
    """Find the preprocessed scans of a dataset that have label maps.

    Parameters
    ----------
    dataset : pathlib.Path
        BIDS dataset with label maps (``*_desc-dlmuse_dseg`` or ``*_desc-manual_dseg``) in a folder
        of its ``derivatives``.
    output : pathlib.Path
        Output folder of ``bids_harmony DATASET OUTPUT participant``.

    Returns
    -------
    list of Scan
        Scans sorted by name.
    """
    table = pd.read_csv(dataset / "participants.tsv", sep="\t", dtype=str)
    person = table.get("person", table["participant_id"]).set_axis(table["participant_id"])
    found = []
    for dseg in sorted(dataset.glob("derivatives/*/sub-*/**/*_dseg.nii.gz")):
        name, _, desc = dseg.name.removesuffix("_dseg.nii.gz").rpartition("_desc-")
        at = next(output.glob(f"sub-*/**/{name}_from-T1w_to-*_mode-image_xfm.txt"), None)
        if desc not in LABELS or at is None:
            continue
        images = {
            kind: path
            for kind, desc in IMAGES.items()
            for path in sorted(at.parent.glob(f"{name}_space-*_desc-{desc}_T1w.nii.gz"))[:1]
        }
        if "raw" in images:
            found.append(Scan(name, person[name.split("_")[0]], images, at, dseg))
    if not found:
        raise SystemExit(f"No scan of {dataset} has both labels and a preprocessed image "
                         f"in {output}. Run the participant level first.")  # fmt: skip
    return sorted(found, key=lambda scan: scan.name)


def hold_out(scans: Sequence[Scan], seed: int) -> tuple[list[Scan], list[Scan]]:
    """Split scans by person into training scans and held-out scans."""
    persons = sorted({scan.person for scan in scans})
    n = max(round(HELD_OUT * len(persons)), 1)
    out = set(np.random.default_rng(seed).permutation(persons)[:n])
    return [s for s in scans if s.person not in out], [s for s in scans if s.person in out]


# --- Network -----------------------------------------------------------------------------------


class UNet(nn.Module):
    """Small U-Net for axial slices.

    The input, (batch, 2 * CONTEXT + 2, rows, columns), has slices with their neighbours and
    height; rows and columns are multiples of ``MULTIPLE``. The output has the logits of background
    and structures, (batch, 1 + structures, rows, columns). Batch normalization, unlike instance
    normalization, keeps the network sensitive to absolute intensities.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = (2 * CONTEXT + 2, *WIDTHS)
        self.down = nn.ModuleList(map(_convolutions, inputs, WIDTHS))
        self.up = nn.ModuleList(
            _convolutions(fine + coarse, fine) for fine, coarse in pairwise(WIDTHS)
        )
        self.scores = nn.Conv2d(WIDTHS[0], len(NAMES) + 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of each voxel."""
        levels = [self.down[0](x)]
        for down in self.down[1:]:
            levels.append(down(F.max_pool2d(levels[-1], 2)))
        x = levels.pop()
        for up in reversed(self.up):
            x = up(torch.cat([levels.pop(), F.interpolate(x, scale_factor=2.0)], 1))
        return self.scores(x)


def _convolutions(n_in: int, n_out: int) -> nn.Sequential:
    """Return two 3 x 3 convolutions, each with batch normalization and ReLU."""
    layers: list[nn.Module] = []
    for n in (n_in, n_out):
        layers += [nn.Conv2d(n, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*layers)


def brain_box(foreground: np.ndarray) -> Box:
    """Return the rows and columns that contain the foreground of an (x, y, z) array.

    Their sizes are multiples of ``MULTIPLE``, and they may extend beyond the array.
    """
    box = []
    for axis in (0, 1):
        at = np.flatnonzero(foreground.any(axis=(1 - axis, 2)))
        first, n = (int(at[0]), int(np.ptp(at)) + 1) if len(at) else (0, 1)
        box.append((first, first + -(-n // MULTIPLE) * MULTIPLE))
    return box[0], box[1]


def network_input(slices: torch.Tensor, affine: np.ndarray, which: torch.Tensor) -> torch.Tensor:
    """Stack the slices ``which`` of (z, rows, columns) with their neighbours and heights (mm)."""
    heights = torch.as_tensor(slice_heights(len(slices), affine), dtype=torch.float32)
    around = which[:, None] + torch.arange(-CONTEXT, CONTEXT + 1)
    x = slices[around.clamp(0, len(slices) - 1)]
    height = (heights[which] / HEIGHT_MM)[:, None, None, None].expand(-1, 1, *x.shape[2:])
    return torch.cat([x, height.to(x)], 1)


# --- Training ----------------------------------------------------------------------------------


def examples(scans: Sequence[Scan], seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batches of augmented slices and labels without end.

    Intensities are not augmented: a network invariant to them could not show the effect of
    harmonization.
    """
    volumes, affine = [scan.volume()[0] for scan in scans], scans[0].volume()[1]
    box = brain_box(np.any([v > 0 for v in volumes], axis=0))
    slices = [torch.from_numpy(crop(v, box)) for v in volumes]
    truth = [torch.from_numpy(crop(scan.labels(), box)).long() for scan in scans]
    places = [(i, z) for i, t in enumerate(truth) for z in np.flatnonzero(t.amax((1, 2)))]
    rng = np.random.default_rng(seed)
    while True:
        drawn = [places[k] for k in rng.integers(len(places), size=BATCH)]
        x = torch.cat([network_input(slices[i], affine, torch.tensor([z])) for i, z in drawn])
        y = torch.stack([truth[i][z] for i, z in drawn])
        yield change_pose(x, y, rng)


def change_pose(
    x: torch.Tensor, y: torch.Tensor, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply random left-right flips, rotations, scaling and shifts to slices and labels."""
    n, rows, columns = y.shape
    angle = np.deg2rad(rng.uniform(-ROTATION, ROTATION, n))
    sizes = np.exp(rng.uniform(-SCALE, SCALE, (2, n)))
    flip = rng.choice([-1.0, 1.0], n)
    # In the units of grid_sample: x along columns, y along rows, in half extents of the slice.
    aspect = rows / columns
    theta = np.zeros((n, 2, 3), np.float32)
    theta[:, 0, 0] = np.cos(angle) * sizes[0]
    theta[:, 0, 1] = -np.sin(angle) * sizes[0] * aspect * flip
    theta[:, 1, 0] = np.sin(angle) * sizes[1] / aspect
    theta[:, 1, 1] = np.cos(angle) * sizes[1] * flip
    theta[:, :, 2] = rng.uniform(-SHIFT, SHIFT, (n, 2)) * 2 / np.array([columns, rows])
    grid = F.affine_grid(torch.from_numpy(theta), [n, 1, rows, columns], align_corners=False)
    # Do not resample the height (last channel): it must stay constant beyond the edges.
    moved = F.grid_sample(x[:, :-1], grid, align_corners=False)
    labels = F.grid_sample(y[:, None].float(), grid, mode="nearest", align_corners=False)
    return torch.cat([moved, x[:, -1:]], 1), labels[:, 0].long()


def train(scans: Sequence[Scan], steps: int, seed: int) -> UNet:
    """Train the network with cross-entropy and Dice loss.

    Parameters
    ----------
    scans : sequence of Scan
        Training scans on one RAS grid.
    steps : int
        Number of training steps, each on :data:`BATCH` slices.
    seed : int
        Random seed for weights, batches and augmentation.

    Returns
    -------
    UNet
        Trained network in evaluation mode.
    """
    torch.manual_seed(seed)
    network = UNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    batches = examples(scans, seed)
    for step in range(1, steps + 1):
        x, y = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            scores = network(x.to(memory_format=torch.channels_last)).float()
        probability = scores.softmax(1)
        wanted = F.one_hot(y, scores.shape[1]).movedim(3, 1)
        both = (probability * wanted).sum((0, 2, 3))
        sizes = (probability + wanted).sum((0, 2, 3))
        loss = F.cross_entropy(scores, y) + 1 - ((2 * both + 1) / (sizes + 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}")
    return network.eval()


# --- Segmentation and Dice ---------------------------------------------------------------------


@torch.inference_mode()
def segment(network: UNet, volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Segment a brain on the template grid.

    Parameters
    ----------
    network : UNet
        Trained network.
    volume : numpy.ndarray
        (x, y, z) preprocessed or harmonized intensities in RAS orientation; background 0.
    affine : numpy.ndarray
        4 x 4 affine of the grid; the voxel size must be that of the training scans.

    Returns
    -------
    numpy.ndarray
        (x, y, z) uint8 labels: 0 is background, 1 the first structure of :data:`NAMES` and so on.
    """
    box = brain_box(volume > 0)
    slices = torch.from_numpy(crop(np.asarray(volume, np.float32), box))
    found = [
        network(network_input(slices, affine, some)).argmax(1).to(torch.uint8)
        for some in torch.arange(len(slices)).split(BATCH)
    ]
    return uncrop(torch.cat(found).numpy(), box, volume.shape)


def dice(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Compute the Dice coefficient (0 to 1) of each structure, and their mean.

    Parameters
    ----------
    found, truth : numpy.ndarray
        Label maps of the same shape, as returned by :func:`segment`.

    Returns
    -------
    dict of str to float
        Dice by structure, NaN if both maps lack it, and ``mean``, NaN if any of them is.
    """
    labels = range(1, len(NAMES) + 1)
    # The Dice coefficient is the F1 score of the voxels.
    values = f1_score(
        truth.ravel(), found.ravel(), labels=labels, average=None, zero_division=np.nan
    )
    return dict(zip(NAMES, values.tolist(), strict=True)) | {"mean": float(values.mean())}


def dice_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Compute the mean Dice of each site and kind of image, and the gain over raw images.

    Parameters
    ----------
    rows : pandas.DataFrame
        One row per scan and image: ``site``, ``scan``, ``person``, ``image`` (``raw`` or
        ``harmonized``) and the columns of :func:`dice`.

    Returns
    -------
    pandas.DataFrame
        One row per site, image and structure: ``n_scans``, ``n_persons``, ``dice``, ``gain`` over
        ``raw`` on the same scans, and the ends of their 95 % bootstrap intervals over persons.
    """
    found = []
    raw = rows[rows["image"] == "raw"].set_index(["site", "scan"])
    for (site, image), part in rows.set_index(["site", "scan"]).groupby(
        ["site", "image"], sort=False
    ):
        for name in (*NAMES, "mean"):
            values = {"dice": part[name].to_numpy()}
            if image != "raw":
                values["gain"] = (part[name] - raw[name].reindex(part.index)).to_numpy()

            def means(draw: Any, values: dict[str, np.ndarray] = values) -> dict[str, float]:
                return {measure: np.nanmean(v[draw]) for measure, v in values.items()}

            found.append({
                "site": site, "image": image, "structure": name,
                "n_scans": len(part), "n_persons": part["person"].nunique(),
                **with_intervals(means, part["person"].to_numpy(), N_BOOTSTRAP, 0),
            })  # fmt: skip
    return pd.DataFrame(found)


def measure(network: UNet, scans: Sequence[Scan], site: str) -> pd.DataFrame:
    """Segment all images of the scans; return one row of Dice per scan and image."""
    rows = []
    for scan in scans:
        truth = scan.labels()
        for image in scan.images:
            key = {"site": site, "scan": scan.name, "person": scan.person, "image": image}
            rows.append(key | dice(segment(network, *scan.volume(image)), truth))
    return pd.DataFrame(rows)


def main() -> int:
    """Train and segment; write ``WORK/dice.tsv`` (by scan) and ``WORK/dice_table.tsv``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", type=Path, help="dataset to train on, with labels")
    parser.add_argument("reference_out", type=Path, help="its derivatives by bids_harmony")
    parser.add_argument("site", type=Path, help="dataset to measure, with labels")
    parser.add_argument("site_out", type=Path, help="its derivatives by bids_harmony")
    parser.add_argument("work", type=Path, help="folder for the tables")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()

    torch.set_num_threads(1)
    learn, held_out = hold_out(find_labelled(given.reference, given.reference_out), given.seed)
    tested = find_labelled(given.site, given.site_out)
    print(f"training on {len(learn)} scans, {len(held_out)} held out")
    network = train(learn, given.steps, given.seed)
    rows = pd.concat([
        measure(network, held_out, f"{given.reference.name}, held out"),
        measure(network, tested, given.site.name),
    ])  # fmt: skip
    given.work.mkdir(parents=True, exist_ok=True)
    for name, table in (("dice", rows), ("dice_table", dice_table(rows))):
        table.to_csv(given.work / f"{name}.tsv", sep="\t", index=False, float_format="%.4f")
    print(table.round(3).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
