"""What a simulated dataset says about itself: tables, their dictionaries, sidecars, README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bids_harmony import __version__
from bids_harmony.simulation.defects import KINDS as DEFECTS
from bids_harmony.simulation.plan import Subject
from bids_harmony.simulation.scanner import Scanner

GENERATOR = "bids_harmony-simulate"
BIDS_VERSION = "1.10.0"
SIMULATED = "Simulated data: no person was scanned, and the diagnosis is made up."

PARTICIPANT_COLUMNS: dict[str, Any] = {
    "age": {"Description": "Age of the simulated head.", "Units": "year"},
    "sex": {"Description": "Simulated sex.", "Levels": {"F": "female", "M": "male"}},
    "site": {"Description": "Site, each with its own made-up scanner."},
    "diagnosis": {
        "Description": "Simulated diagnosis: wider ventricles and thinner frontal and temporal "
        "cortex, by a made-up amount. It says nothing about the disease.",
        "Levels": {
            "control": "no effect was simulated",
            "schizophrenia": "the effect was simulated",
        },
    },
}
TRUTH_COLUMNS: dict[str, Any] = {
    f"{name}_ml": {"Description": f"True volume of the {text} of the head.", "Units": "mL"}
    for name, text in (
        ("brain", "brain mask"),
        ("gm", "grey matter"),
        ("wm", "white matter"),
        ("csf", "CSF inside the brain mask"),
        ("ventricle", "lateral ventricles and what of the third joins them"),
    )
}
EFFECT_COLUMNS: dict[str, Any] = {
    "ventricle_age_mm": {
        "Description": "Outward shift of the ventricles' walls put in by age, since 25 years.",
        "Units": "mm",
    },
    "ventricle_diagnosis_mm": {
        "Description": "Outward shift of the ventricles' walls put in by the diagnosis.",
        "Units": "mm",
    },
    "cortex_age_log_odds": {
        "Description": "Natural log of the odds by which CSF gained on cortex, put in by age "
        "since 25 years."
    },
    "cortex_diagnosis_log_odds": {
        "Description": "The same put in by the diagnosis, where it thins cortex most."
    },
}
PATHOLOGY_COLUMNS: dict[str, Any] = {
    "pathology": {
        "Description": "What is wrong with the simulated head.",
        "Levels": {
            "none": "nothing",
            "lesion": "a mass in white matter, dark in T1w; it belongs to no tissue's volume",
            "resection": "a cavity filled with CSF",
            "atrophy": "ventricles and sulci wide far beyond age",
        },
    },
    "pathology_ml": {
        "Description": "True volume of the lesion, of the cavity, or of the CSF in the place of "
        "lost tissue.",
        "Units": "mL",
    },
}
ANATOMY_COLUMN: dict[str, Any] = {
    "anatomy": {"Description": "Label map that the head is a deformation of."}
}
SITE_COLUMNS: dict[str, Any] = {
    name: {"Description": text} | ({"Units": unit} if unit else {})
    for name, text, unit in (
        ("site", "Site label.", ""),
        ("model", "Made-up scanner model.", ""),
        ("field_strength", "Field strength.", "T"),
        ("inversion_ms", "Inversion time to the centre of the readout train.", "ms"),
        ("repetition_ms", "Time between inversions.", "ms"),
        ("spacing_ms", "Time between excitations.", "ms"),
        ("echo_ms", "Echo time.", "ms"),
        ("flip_deg", "Excitation angle.", "degree"),
        ("train", "Excitations per inversion.", ""),
        ("voxel_mm", "Voxel size left-right, front-back, up-down.", "mm"),
        ("fov_mm", "Field of view along the same axes.", "mm"),
        ("orientation", "Direction of the stored axes.", ""),
        ("tilt_deg", "Rotation of the field of view about the left-right axis.", "degree"),
        ("blur_mm", "Full width at half maximum of the blur beyond the voxel.", "mm"),
        ("bias", "Coefficients of the log receive field's polynomials.", ""),
        ("noise", "Standard deviation of each channel's noise over white matter's signal.", ""),
        ("wm_level", "Stored value of white matter.", ""),
        ("stripped", "Whether scans come without skull.", ""),
        ("gm_to_wm", "Signal of grey matter over white matter's.", ""),
        ("csf_to_wm", "Signal of CSF over white matter's.", ""),
        ("fat_to_wm", "Signal of fat over white matter's.", ""),
    )
}
SCAN_COLUMNS: dict[str, Any] = {
    "filename": {"Description": "The scan in the raw dataset."},
    "site": PARTICIPANT_COLUMNS["site"],
    "quality": {
        "Description": "What is wrong with the scan.",
        "Levels": {"good": "Nothing.", **DEFECTS},
    },
    "severity": {"Description": "How bad it is, 0 when good; each kind has its own unit."},
    **PATHOLOGY_COLUMNS,
}


def sidecar(scanner: Scanner) -> dict[str, Any]:
    """BIDS metadata of a scanner's T1w scans."""
    return {
        "Simulated": True,
        "SimulationDescription": SIMULATED,
        "Manufacturer": "Simulated",
        "ManufacturersModelName": scanner.model,
        "MagneticFieldStrength": scanner.field_strength,
        "PulseSequenceType": "MPRAGE",
        "MRAcquisitionType": "3D",
        "RepetitionTimePreparation": round(scanner.repetition_ms / 1000, 4),
        "RepetitionTimeExcitation": round(scanner.spacing_ms / 1000, 4),
        "RepetitionTime": round(scanner.repetition_ms / 1000, 4),
        "InversionTime": round(scanner.inversion_ms / 1000, 4),
        "EchoTime": round(scanner.echo_ms / 1000, 5),
        "FlipAngle": scanner.flip_deg,
        "SliceThickness": max(scanner.voxel_mm),
        "SkullStripped": scanner.stripped,
    }


def participant_row(subject: Subject, travelling: bool) -> dict[str, Any]:
    """Row of ``participants.tsv``."""
    row: dict[str, Any] = {
        "participant_id": f"sub-{subject.label}",
        "age": subject.age,
        "sex": subject.sex,
    }
    if not travelling:
        row["site"] = subject.scanners[0].site
    return row | {"diagnosis": subject.diagnosis}


def participant_columns(travelling: bool) -> dict[str, Any]:
    """Return the dictionary of ``participants.tsv``."""
    return {k: v for k, v in PARTICIPANT_COLUMNS.items() if k != "site" or not travelling}


def site_row(scanner: Scanner) -> dict[str, Any]:
    """Row of the truth's ``sites.tsv``: all that a scanner does."""
    row = {
        name: " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
        for name, value in asdict(scanner).items()
    }
    signals = {f"{name}_to_wm": round(scanner.signal(name), 4) for name in ("gm", "csf", "fat")}
    return row | signals


def descriptions(
    scanners: Sequence[Scanner], subjects: Sequence[Subject], seed: int, travelling: bool
) -> dict[str, dict[str, Any]]:
    """Content of each dataset's ``dataset_description.json``, by the last part of its path.

    The raw dataset is ``raw``.
    """
    generated = {
        "Name": GENERATOR,
        "Version": __version__,
        "Description": f"{len(scanners)} sites, {len(subjects)} heads, seed {seed}"
        + (", travelling" if travelling else ""),
    }
    common = {"BIDSVersion": BIDS_VERSION, "GeneratedBy": [generated]}
    derived = {"DatasetType": "derivative", "DatasetLinks": {"raw": "../.."}, **common}
    return {
        "raw": {"Name": "Simulated heads", "DatasetType": "raw", "Authors": [GENERATOR], **common},
        "truth": {"Name": "Truth of the simulated heads", **derived},
        "masks": {"Name": "Wrong brain masks of simulated heads", **derived},
    }


TRUTH_README = f"""{SIMULATED}

Brain masks on each scan's grid, and tables:

* `participants.tsv`: volumes of each head; what age and diagnosis did to it; its pathology
* `scans.tsv`: what is wrong with each scan, and how bad it is
* `sites.tsv`: what each made-up scanner does
"""
MASKS_README = f"""{SIMULATED}

Wrong brain masks of good scans, on purpose, for the quality control to find: half of the brain,
or brain and face. `../truth` holds the right ones.
"""


def readme(subjects: Sequence[Subject], travelling: bool) -> str:
    """README of the raw dataset."""
    design = (
        "The same heads are scanned at every site, one session per site."
        if travelling
        else "Every site has its own heads."
    )
    source = (
        """a label map of a person's head, whose licence applies to these scans too
(`derivatives/truth/participants.tsv` names the map), moved to the place of the MNI ICBM152 2009a
symmetric template."""
        if any(subject.anatomy for subject in subjects)
        else """the MNI ICBM152 2009a symmetric template
(Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological
Institute, McGill University), with skull, scalp, face and neck drawn around it."""
    )
    wrong = ""
    if any(subject.pathology != "none" for subject in subjects):
        wrong += "Some heads have a lesion, a resection or strong atrophy. "
    if any(set(subject.defects) - {"good"} for subject in subjects):
        wrong += "Some scans are bad on purpose. "
    wrong = f"\n{wrong}See `derivatives/truth/scans.tsv`.\n" if wrong else ""
    return f"""# Simulated heads

{SIMULATED}
{design}
{wrong}
Each head is a smooth random deformation of {source} Ventricles grow
and cortex thins with the age in `participants.tsv`; `diagnosis` is a made-up effect on both, and
says nothing about the disease it is named after. Every site has a made-up scanner with its own
contrast, receive field, noise, resolution, orientation, field of view and intensity scale.

The true brain masks, volumes and scanners are in `derivatives/truth`.
Written by {GENERATOR} {__version__}.
"""
