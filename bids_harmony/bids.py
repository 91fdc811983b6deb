"""The dataset: which T1w scans there are, and what it says about each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bids_harmony.config import RunConfig

T1W_NAME = re.compile(r"(?P<key>.+)_T1w\.(?i:nii|nii\.gz)")


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One T1w file and what the dataset says about it.

    Attributes
    ----------
    path : pathlib.Path
        The file, which need not be readable (the check step finds out).
    key : str
        The file's name without ``_T1w.nii.gz``: unique in a run.
    entities : dict of str to str
        Entities of the name by pybids's long names (``subject``, ``session``, ``run``...),
        values as written.
    site, site_source : str
        Acquisition domain (``unknown`` if none) and where it was found
        (``participants.tsv:site``, ``sidecar``, ``none``).
    age : float or None
        Years at the scan, 0 to 120.
    sex : str or None
        ``M`` or ``F``.
    diagnosis : str or None
        As the dataset writes it.
    metadata : dict
        Scanner and acquisition facts from the sidecars.
    mask : pathlib.Path or None
        An existing brain mask on the scan's own grid, found through ``--derivatives``.
    warnings : tuple of str
        What the user should know about this scan's metadata.
    """

    path: Path
    key: str
    entities: dict[str, str]
    site: str = "unknown"
    site_source: str = "none"
    age: float | None = None
    sex: str | None = None
    diagnosis: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    mask: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def wf_name(self) -> str:
        """Name of the scan's workflow."""
        return workflow_name(self.key)


@dataclass(frozen=True)
class Skipped:
    """Something that is not processed: a file (relative to the dataset) or ``sub-XX``, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Inventory:
    """What a run would work on.

    Attributes
    ----------
    scans : tuple of Scan
        Sorted by path.
    skipped : tuple of Skipped
        Subjects without T1w, phase images, second files of one name.
    warnings : tuple of str
        What concerns the dataset as a whole.
    """

    scans: tuple[Scan, ...]
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()


def workflow_name(key: str) -> str:
    """Name a scan's workflow: ``sub-01_ses-a`` gives ``sub_01_ses_a_wf``.

    BIDS labels are letters and digits, so different keys give different names. A key that
    is not BIDS (``sub-01_acq-a.b``) gets a hash, lest two of them meet.
    """
    name = re.sub(r"[^0-9a-zA-Z]", "_", key)
    if not re.fullmatch(r"[0-9a-zA-Z]+-[0-9a-zA-Z]+(_[0-9a-zA-Z]+-[0-9a-zA-Z]+)*", key):
        name += "_" + sha256(key.encode()).hexdigest()[:8]
    return f"{name}_wf"


def find_scans(config: RunConfig) -> Inventory:
    """List the T1w scans a run asks for (written next)."""
    raise NotImplementedError
