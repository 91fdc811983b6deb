"""What the train level reads: preprocessed scans, and what their records say of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_harmony.bids.dataset import counted, find_scans
from bids_harmony.bids.records import image_digest
from bids_harmony.bids.tables import named_person
from bids_harmony.config import Contract, TrainOptions
from bids_harmony.console import say as tell
from bids_harmony.errors import BundleError, NoInputError, UsageError
from bids_harmony.files import read_json_or_empty
from bids_harmony.qc import ratings

if TYPE_CHECKING:
    from bids_harmony.bids.dataset import Scan
    from bids_harmony.config import RunConfig

#: Statuses of scans that are not trained on.
REJECTED = ("fail", "error", ratings.REJECTED)
Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainScan:
    """One preprocessed scan with what training may know of its subject.

    Attributes
    ----------
    subject, site : str
        Labels.
    t1w, mask : pathlib.Path
        Preprocessed volume and brain mask on the template grid.
    age : float or None
        In years.
    metrics : dict
        QC metrics of the scan, empty when there are none.
    sex, diagnosis : str or None
        ``M`` or ``F``; as the dataset writes it.
    columns : dict of str to str
        Cells of the dataset's tables, by column; those that say nothing are left out.
    qc_status : str or None
        Of the scan's QC record: ``pass``, ``warn``, ``fail``.
    made : Contract or None
        How it was preprocessed, as its QC record says.
    sha256 : str or None
        Digest of the raw image's voxels, or of its file, as its QC record says.
    raw, transform : pathlib.Path or None
        Raw image, and its transform to the template.
    descriptors : dict or None
        Of :func:`bids_harmony.sites.code.describe`, as its QC record says.
    """

    subject: str
    site: str
    t1w: Path
    mask: Path
    age: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    sex: str | None = None
    diagnosis: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    qc_status: str | None = None
    made: Contract | None = None
    sha256: str | None = None
    raw: Path | None = None
    transform: Path | None = None
    descriptors: dict[str, Any] | None = None

    @property
    def person(self) -> str | None:
        """Whom the dataset's tables name as the person behind the label, if they do."""
        return named_person(self.columns)


def read_scans(config: RunConfig, say: Say) -> tuple[list[TrainScan], TrainOptions]:
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
        stem, space = folder / "anat" / scan.key, contract.template
        t1w, mask = (
            Path(f"{stem}_space-{space}_res-{contract.resolution}_desc-{end}.nii.gz")
            for end in ("preproc_T1w", "brain_mask")
        )
        if not (t1w.is_file() and mask.is_file()):
            missing.append(scan.key)
            continue
        record = read_json_or_empty(Path(f"{stem}_desc-harmony_qc.json"))
        transform = Path(f"{stem}_from-T1w_to-{space}_mode-image_xfm.txt")
        found.append(
            TrainScan(
                scan.entities["subject"], scan.site, t1w, mask, scan.age,
                dict(record.get("metrics", {})), scan.sex, scan.diagnosis, scan.columns,
                qc_status=ratings.rated_status(record.get("status"), rated.get(scan.key)),
                made=made_under(record),
                sha256=image_digest(record) or None,
                raw=scan.path,
                transform=transform if transform.is_file() else None,
                descriptors=record.get("descriptors"),
            )
        )  # fmt: skip
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
    return replace(contract, **{name: how for name, how in asked.items() if how != "auto"})


def common_contract(scans: Sequence[TrainScan], wanted: Contract, say: Say) -> Contract:
    """Name how most scans were preprocessed, and warn of the others.

    Parameters
    ----------
    scans : sequence of TrainScan
        Those whose records do not say how they were made do not count.
    wanted : Contract
        Names the grid, and holds where no record says anything.
    say : callable
        Takes a warning.

    Returns
    -------
    Contract
        For the new bundle: its networks may assume of a scan what they were trained on.
    """
    grid = (wanted.template, wanted.resolution)
    made = [scan.made for scan in scans if scan.made]
    counts = Counter(how for how in made if (how.template, how.resolution) == grid)
    chosen = counts.most_common(1)[0][0] if counts else wanted
    if others := counts.total() - counts[chosen]:
        say(
            f"Warning: {others} of {len(scans)} scans were preprocessed differently from most "
            f"(skull strip {chosen.skull_strip}, registration {chosen.registration}); preprocess "
            "them again in the same way."
        )
    return chosen


def usable_scans(scans: Sequence[TrainScan], say: Say) -> list[TrainScan]:
    """Leave out rejected and repeated scans, as both functions below do."""
    return without_copies(without_rejected(scans, say), say)


def without_copies(scans: Sequence[TrainScan], say: Say) -> list[TrainScan]:
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
    used, shared = [], []
    first: dict[str, TrainScan] = {}
    for scan in scans:
        other = first.setdefault(scan.sha256, scan) if scan.sha256 else scan
        if other is scan:
            used.append(scan)
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
    return used


def without_rejected(scans: Sequence[TrainScan], say: Say) -> list[TrainScan]:
    """Leave out scans that quality control rejected, and say which.

    Raises
    ------
    NoInputError
        When that leaves none.
    """
    used = []
    for scan in scans:
        if scan.qc_status not in REJECTED:
            used.append(scan)
            continue
        people = scan.qc_status == ratings.REJECTED
        why = "the raters reject it" if people else f"its quality control says '{scan.qc_status}'"
        say(f"{scan.t1w.name} is left out: {why}.")
    if scans and not used:
        raise NoInputError(
            f"None of {counted(len(scans), 'preprocessed scan')} is left: quality control or the "
            "raters reject all.",
            "Check the ratings, or look at the reports of the participant level.",
        )
    return used
