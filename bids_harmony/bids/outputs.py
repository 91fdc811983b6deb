"""Dataset-level files of the derivatives: description, data dictionaries and scans tables."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from bids_harmony import __version__
from bids_harmony.bids.records import (
    PREPROCESSED,
    QC_ENDING,
    RESULTS,
    failed_record,
    is_of,
    load_record,
    prediction_values,
    read_predictions,
    subject_records,
)
from bids_harmony.files import read_json_or_empty, sha256_of, write_json, write_text

BIDS_VERSION = "1.10.0"
URL = "https://arxiv.org/abs/2010.05355"
#: Time (ns) after a change in which a second change may leave the file's time stamps the same.
RECENT = 2_000_000_000
IGNORED = ("*.html", "figures", "*_xfm.*", "*_qc.json", "*_predictions.json", "calibration",
           "group_*", "qc_ratings.tsv", "models")  # fmt: skip
BIDSIGNORE = "".join(f"{pattern}\n" for pattern in IGNORED)
DESCRIPTIONS = {
    "desc-brain": "Brain, found by the method named in the file's metadata",
    "desc-preproc": "Brain only, registered to the template, intensities scaled",
    "desc-harmonized": "desc-preproc with the intensities of the bundle's reference site",
}
#: Name parts that mark the files written for a scan, other than its figures.
OURS = {*DESCRIPTIONS, "desc-harmony", "from-T1w"}
WHERE = {"raw": "on the scan as preprocessed, without harmonization",
         "harmonized": "on the harmonized scan"}  # fmt: skip


def scans_dictionary(targets: Iterable[str] = ()) -> dict[str, Any]:
    """Return the data dictionary of ``scans.tsv``.

    Parameters
    ----------
    targets : iterable of str
        Targets predicted by the bundle, which add columns if the default ones lack them.

    Returns
    -------
    dict
        Description of each column, in column order.
    """
    columns: dict[str, Any] = json.loads(_data("scans.json"))
    for target in sorted(set(targets)):
        for kind, where in WHERE.items():
            said = f"{target.replace('_', ' ')} predicted {where}"
            columns.setdefault(f"{target}_{kind}", {"Description": said})
    return columns


def _data(name: str) -> str:
    return (files("bids_harmony.data") / name).read_text(encoding="utf-8")


def write_dataset_files(
    out: Path, bids_dir: Path, targets: Iterable[str] = (), tools: Mapping[str, str] | None = None
) -> None:
    """Write the dataset-level files that make ``out`` a BIDS derivative dataset.

    The content does not depend on which participants a job processes. Prediction columns of
    earlier runs are kept in the data dictionary.

    Parameters
    ----------
    out, bids_dir : pathlib.Path
        Output folder, and the raw dataset.
    targets : iterable of str
        Targets predicted by the bundle.
    tools : mapping of str to str, optional
        Versions of the external tools used (:func:`bids_harmony.anat.tool_versions`).
    """
    doi = _raw_description(bids_dir).get("DatasetDOI")
    before = read_json_or_empty(out / "scans.json")
    earlier = [name.removesuffix("_raw") for name in before if name.endswith("_raw")]
    description = {
        "Name": derivatives_name(bids_dir),
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": _generated_by((tools or {}).items()),
        # Needed to resolve the `bids:raw:` URIs in the sidecars.
        "DatasetLinks": {"raw": _link(bids_dir, out)},
        "HowToAcknowledge": f"Please cite the method: {URL}",
    }
    sources = {"SourceDatasets": [{"DOI": doi}]} if doi else {}
    write_json(out / "dataset_description.json", description | sources)
    write_text(out / "README.md", _data("derivatives.md"))
    write_text(out / "CHANGES", f"{__version__}\n  - Made by bids_harmony {__version__}.\n")
    write_text(out / ".bidsignore", BIDSIGNORE)
    rows = {"desc_id": "description", **DESCRIPTIONS}
    write_text(out / "descriptions.tsv", "".join(f"{k}\t{v}\n" for k, v in rows.items()))
    write_json(out / "scans.json", scans_dictionary([*targets, *earlier]))


def name_tools(out: Path, tools: Iterable[tuple[str, str]]) -> None:
    """Write the tools used for the scans to ``GeneratedBy``, replacing those listed before.

    Parameters
    ----------
    out : pathlib.Path
        Output folder; nothing is written if it has no dataset description.
    tools : iterable of (str, str)
        Names and versions.
    """
    path = out / "dataset_description.json"
    if content := read_json_or_empty(path):
        write_json(path, {**content, "GeneratedBy": _generated_by(tools)})


def _generated_by(tools: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    what = "Harmonization of T1w scans to one reference site"
    ours: dict[str, Any] = {"Name": "bids_harmony", "Version": __version__, "Description": what}
    if tag := os.environ.get("BIDS_HARMONY_DOCKER_TAG"):  # set by our Docker image
        ours["Container"] = {"Type": "docker", "Tag": tag}
    return [ours, *({"Name": name, "Version": version} for name, version in sorted(tools))]


def derivatives_name(bids_dir: Path) -> str:
    """Return the name of the derivative dataset made from a raw dataset."""
    return f"bids_harmony derivatives of {_raw_description(bids_dir).get('Name') or bids_dir.name}"


def _link(bids_dir: Path, out: Path) -> str:
    """Return the path of the raw dataset: relative in a DataLad dataset, for its clones."""
    shared = Path(os.path.commonpath([bids_dir, out]))
    return os.path.relpath(bids_dir, out) if (shared / ".git").exists() else str(bids_dir)


def _raw_description(bids_dir: Path) -> dict[str, Any]:
    return read_json_or_empty(bids_dir / "dataset_description.json")


def publish_scan(staging: Path, out: Path, record: Path, kept: Iterable[str] = ()) -> Path:
    """Replace a scan's outputs with new ones, the record last.

    All files are copied next to their targets before any is replaced, so that a full disk leaves
    the old outputs intact. While files are being replaced, the record marks the scan as
    unfinished.

    Parameters
    ----------
    staging : pathlib.Path
        Folder with the new outputs, with the same layout as ``out``.
    out : pathlib.Path
        Output folder.
    record : pathlib.Path
        The scan's record below ``staging``, which lists its outputs.
    kept : iterable of str
        Outputs of preprocessing that stay as they are, relative to ``out``.

    Returns
    -------
    pathlib.Path
        The published record.
    """
    values = load_record(record)
    assert values is not None
    stay = _with_sidecars(kept, out)
    names = sorted(_with_sidecars(set(values["outputs"]) - set(kept), staging))
    target = out / record.relative_to(staging)
    parts = {name: (out / name).with_name(f".{name.name}.part") for name in names}
    try:
        for name, part in parts.items():
            part.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(staging / name, part)
        if target.exists():
            facts = {name: value for name, value in values.items() if name not in RESULTS}
            if stay:
                facts |= {name: values[name] for name in PREPROCESSED} | {"outputs": list(kept)}
            unfinished = "The run was interrupted while the scan's outputs were being replaced."
            write_json(target, failed_record(facts, unfinished, "Run the same command again."))
        for name, part in parts.items():
            part.replace(out / name)
    except BaseException:
        for part in parts.values():
            part.unlink(missing_ok=True)
        raise
    write_json(target, values)
    current = {target, *(out / name for name in (*names, *stay))}
    for path in scan_files(out, target):
        if path not in current:
            path.unlink(missing_ok=True)
    return target


def scan_files(out: Path, record: Path) -> list[Path]:
    """Return the output files of a scan, but not those of other runs or acquisitions.

    Parameters
    ----------
    out : pathlib.Path
        Output folder.
    record : pathlib.Path
        The scan's record.

    Returns
    -------
    list of pathlib.Path
        Images, transforms, JSON files and figures written by this software, sorted.
    """
    figures = out / record.relative_to(out).parts[0] / "figures"
    key = record.name.removesuffix(QC_ENDING)
    made = [p for p in record.parent.glob("*") if not OURS.isdisjoint(p.name.split("_"))]
    return sorted(path for path in (*made, *figures.glob("*")) if is_of(path.name, key))


def _with_sidecars(names: Iterable[str], root: Path) -> set[Path]:
    """Return the files together with their existing JSON sidecars, relative to ``root``."""
    paths = {Path(name) for name in names}
    sidecars = (path.with_name(path.name.split(".")[0] + ".json") for path in paths)
    return paths | {path for path in sidecars if (root / path).exists()}


def write_scans_tables(out: Path, subject: str) -> None:
    """Rewrite each ``scans.tsv`` of a subject from the records; remove those without rows."""
    folders = defaultdict(list)
    for path in sorted(subject_records(out / f"sub-{subject}")):
        folders[path.parents[1]].append(scans_row(path))
    for folder, found in folders.items():
        table = folder / f"{'_'.join(folder.relative_to(out).parts)}_scans.tsv"
        rows = [row for row in found if row is not None]
        if not rows:
            table.unlink(missing_ok=True)
            continue
        targets = {c.removesuffix("_raw") for row in rows for c in row if c.endswith("_raw")}
        columns = list(scans_dictionary(targets))
        lines = [columns, *([row.get(c, "n/a") for c in columns] for row in rows)]
        write_text(table, "".join("\t".join(line) + "\n" for line in lines))


def scans_row(qc_path: Path) -> dict[str, str] | None:
    """Return a scan's row of ``scans.tsv``, or None if the scan failed and has no image.

    Missing values are ``n/a``.
    """
    record = load_record(qc_path)
    if record is None or record.get("status") == "error" or not record.get("outputs"):
        return None
    predictions, _ = read_predictions(qc_path, record)
    bundle = predictions.get("bundle") or {}
    preproc = next(p for p in record["outputs"] if p.endswith("_desc-preproc_T1w.nii.gz"))
    values = prediction_values(predictions) | {
        "filename": f"anat/{Path(preproc).name}",
        "site": record.get("site"),
        "age": record.get("age"),
        "qc_status": record.get("status"),
        "harmonization_status": (record.get("guard") or {}).get("status"),
        "qc_reasons": "; ".join(record.get("reasons") or []),
        "bundle": f"{bundle['name']} {bundle['version']}" if bundle else None,
    }
    texts = dict.fromkeys(scans_dictionary(), "") | {
        k: str(v) for k, v in values.items() if v is not None
    }
    return {name: " ".join(text.split()) or "n/a" for name, text in texts.items()}


class Digests:
    """Cache of the SHA-256 checksums of input files.

    A checksum is reused as long as the file's size, inode, and modification and change times are
    the same. The cache is one JSON file per participant, so that jobs on different participants
    write different files.

    Parameters
    ----------
    folder : pathlib.Path
        Folder of the JSON files; created when needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, dict[str, Any]] = {}
        self._new: set[str] = set()

    def of(self, path: Path, subject: str) -> str:
        """Return the SHA-256 checksum of a participant's file.

        Raises
        ------
        OSError
            If the file cannot be read or is not a regular file (reading a pipe would never end).
        """
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is not a file")
        if subject not in self._known:
            self._known[subject] = load_record(self._file(subject)) or {}
        known = self._known[subject]
        state = [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
        entry = known.get(str(path), {})
        # A second change shortly after the first may leave the time stamps unchanged.
        if entry.get("state") == state and entry.get("read", 0) - max(state[2:]) > RECENT:
            return str(entry["sha256"])
        read = time.time_ns()
        digest = sha256_of(path)
        known[str(path)] = {"state": state, "sha256": digest, "read": read}
        self._new.add(subject)
        return digest

    def save(self) -> None:
        """Write the checksums computed since the last call to the JSON files."""
        for subject in self._new:
            write_json(self._file(subject), self._known[subject])
        self._new.clear()

    def _file(self, subject: str) -> Path:
        return self.folder / f"sub-{subject}.json"


def report_is_new(out: Path, subject: str) -> bool:
    """Return whether a participant's report is at least as recent as all of the records."""
    report = out / f"sub-{subject}.html"
    return report.exists() and all(
        time <= report.stat().st_mtime_ns for time in record_times(out, subject).values()
    )


def record_times(out: Path, subject: str) -> dict[Path, int]:
    """Return the modification time (ns) of each record of a participant."""
    times = {}
    for path in subject_records(out / f"sub-{subject}"):
        with suppress(FileNotFoundError):  # another job is replacing it
            times[path] = path.stat().st_mtime_ns
    return times
