"""What the train level reads: preprocessed scans, and what their records say of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_harmony.bids import counted, find_scans
from bids_harmony.console import say as tell
from bids_harmony.contract import Contract
from bids_harmony.errors import BundleError, NoInputError, UsageError
from bids_harmony.qc import ratings
from bids_harmony.qc.record import image_digest
from bids_harmony.training.config import TrainOptions, TrainScan

if TYPE_CHECKING:
    from bids_harmony.bids import Scan
    from bids_harmony.config import RunConfig

#: Statuses of scans that are not trained on.
REJECTED = ("fail", "error", ratings.REJECTED)


def read_scans(
    config: RunConfig, say: Callable[[str], None]
) -> tuple[list[TrainScan], TrainOptions]:
    """Find the dataset's preprocessed scans, saying what is odd with it and which are missing.

    Returns
    -------
    scans : list of TrainScan
        Scans with a preprocessed image.
    options : TrainOptions
        Those of ``config``, with the contract that the scans were made by.
    """
    inventory = find_scans(config)
    for warning in inventory.warnings:
        say(f"Warning: {warning}")
    scans, missing = find_training_scans(config.output_dir, inventory.scans, config)
    for key in missing:
        say(f"{key} is left out: it has no preprocessed image in {config.output_dir}.")
    contract = common_contract(scans, config.train.contract, say)
    return scans, replace(config.train, contract=contract)


def find_training_scans(
    output_dir: Path, scans: Sequence[Scan], config: RunConfig
) -> tuple[list[TrainScan], list[str]]:
    """Pair the dataset's scans with their preprocessed images and QC records.

    What people said of the scans (``--qc-ratings``) takes the place of the automatic status.

    Returns
    -------
    found : list of TrainScan
        Scans with a preprocessed image and mask in the contract's space and resolution.
    missing : list of str
        Keys of the others.
    """
    contract = config.train.contract
    table, problems = ratings.read_ratings(ratings.rating_files(config))
    for problem in problems:
        tell(f"Warning: {problem}")
    rated = ratings.merge_ratings(table)
    some = config.participant_label or config.session_label or config.bids_filters
    if not some and (unknown := ratings.unmatched(table, [scan.key for scan in scans])):
        tell(f"Warning: {unknown}")
    found, missing = [], []
    for scan in scans:
        folder = output_dir / f"sub-{scan.entities['subject']}"
        if session := scan.entities.get("session"):
            folder /= f"ses-{session}"
        stem = f"{scan.key}_space-{contract.template}_res-{contract.resolution}_desc-"
        t1w = folder / "anat" / f"{stem}preproc_T1w.nii.gz"
        mask = folder / "anat" / f"{stem}brain_mask.nii.gz"
        transform = (
            folder / "anat" / f"{scan.key}_from-T1w_to-{contract.template}_mode-image_xfm.txt"
        )
        if not (t1w.is_file() and mask.is_file()):
            missing.append(scan.key)
            continue
        try:
            record = json.loads(
                (folder / "anat" / f"{scan.key}_desc-harmony_qc.json").read_text(encoding="utf-8")
            )
        except (OSError, ValueError):
            record = {}
        found.append(
            TrainScan(
                scan.entities["subject"],
                scan.site,
                t1w,
                mask,
                scan.age,
                dict(record.get("metrics", {})),
                scan.sex,
                scan.diagnosis,
                scan.columns,
                ratings.apply_ratings({scan.key: record.get("status")}, rated)[scan.key],
                made_under(record),
                image_digest(record) or None,
                scan.path,
                transform if transform.is_file() else None,
                record.get("descriptors"),
            )
        )
    return found, missing


def made_under(record: dict[str, Any]) -> Contract | None:
    """Read from a scan's QC record how it was preprocessed; None where it does not say."""
    processing = record.get("processing")
    if not isinstance(processing, dict) or not isinstance(processing.get("contract"), dict):
        return None
    asked = {name: processing.get(name, "auto") for name in ("skull_strip", "registration")}
    try:
        contract = Contract.from_dict(processing["contract"])
    except BundleError:  # another version's
        return None
    return replace(contract, **{name: way for name, way in asked.items() if way != "auto"})


def common_contract(
    scans: Sequence[TrainScan],
    wanted: Contract,
    say: Callable[[str], None],
    bundle: str | None = None,
) -> Contract:
    """Name how most scans were preprocessed, and warn of the others.

    Parameters
    ----------
    scans : sequence of TrainScan
        Those whose records do not say how they were made do not count.
    wanted : Contract
        What holds where no record says anything, and for ``bundle``.
    say : callable
        Takes a warning.
    bundle : str, optional
        Name of the bundle whose contract is ``wanted``: all scans ought to be made so.

    Returns
    -------
    Contract
        For the new bundle: its networks may assume of a scan what they were trained on.
    """
    grid = (wanted.template, wanted.resolution)
    ways = Counter(
        scan.made
        for scan in scans
        if scan.made and (scan.made.template, scan.made.resolution) == grid
    )
    chosen = ways.most_common(1)[0][0] if ways and bundle is None else wanted
    if others := sum(n for way, n in ways.items() if way != chosen):
        text = f"skull strip {chosen.skull_strip}, registration {chosen.registration}"
        say(
            f"Warning: {others} of {len(scans)} scans were preprocessed in other ways than "
            f"{f'the bundle {bundle} asks for' if bundle else 'most'} ({text}); "
            "preprocess them again in the same way."
        )
    return chosen


def usable_scans(scans: Sequence[TrainScan], say: Callable[[str], None]) -> list[TrainScan]:
    """Leave out rejected and repeated scans, as both functions below do."""
    return without_copies(without_rejected(scans, say), say)


def without_copies(scans: Sequence[TrainScan], say: Callable[[str], None]) -> list[TrainScan]:
    """Leave out a person's second copy of an image, and refuse one that two persons share.

    Parameters
    ----------
    scans : sequence of TrainScan
        Those whose records hold no digest are taken as they are.
    say : callable
        Takes a line for each scan that is left out.

    Raises
    ------
    UsageError
        When two participants have the same image: it would be counted twice, and might be trained
        on under one name and tested under the other.
    """
    kept: list[TrainScan] = []
    first: dict[str, TrainScan] = {}
    shared = []
    for scan in scans:
        other = first.setdefault(scan.sha256, scan) if scan.sha256 else scan
        if other is scan:
            kept.append(scan)
        elif (other.person or other.subject) == (scan.person or scan.subject):
            say(f"{scan.t1w.name} is left out: it is the same image as {other.t1w.name}.")
        else:
            shared.append(f"sub-{other.subject} and sub-{scan.subject}")
    if shared:
        names = ", ".join(dict.fromkeys(shared))
        raise UsageError(
            f"The same image stands under two participants: {names}.",
            "Remove the wrong one, leave it out with --participant-label or --qc-ratings, or, if "
            "they are one person, say so in a column 'person' of participants.tsv.",
        )
    return kept


def without_rejected(scans: Sequence[TrainScan], say: Callable[[str], None]) -> list[TrainScan]:
    """Leave out scans that quality control rejected, and say which.

    Raises
    ------
    NoInputError
        When that leaves none.
    """
    rejected = [scan for scan in scans if scan.qc_status in REJECTED]
    for scan in rejected:
        people = scan.qc_status == ratings.REJECTED
        why = "the raters reject it" if people else f"its quality control says '{scan.qc_status}'"
        say(f"{scan.t1w.name} is left out: {why}.")
    if scans and len(rejected) == len(scans):
        raise NoInputError(
            f"None of {counted(len(scans), 'preprocessed scan')} is left: quality control or the "
            "raters reject all.",
            "Check the ratings, or look at the reports of the participant level.",
        )
    return [scan for scan in scans if scan.qc_status not in REJECTED]
