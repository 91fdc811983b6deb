"""Calibration of sites in a run: which one is used, when it is made again, and what it costs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import tree
from made_up_sites import made_up_sites, preprocess
from random_bundle import write_random_bundle

from bids_harmony.bids.dataset import find_scans
from bids_harmony.cli.run import main
from bids_harmony.config import RunConfig
from bids_harmony.errors import UsageError
from bids_harmony.models.bundle import load_bundle
from bids_harmony.run.base import FOLDER, Run
from bids_harmony.run.calibrate import calibrate_sites, own_sites, run_calibrate, site_notes
from bids_harmony.run.participant import run_participant
from bids_harmony.run.resume import HARMONIZE, NOTHING, PREPROCESS, survey
from bids_harmony.sites.calibration import Calibration

SITES = {"A": [20.0, 40.0, 60.0], "B-1": [30.0, 50.0]}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Two sites whose scans are preprocessed, A's darker than the reference, B-1's brighter."""
    made = made_up_sites(tmp_path, SITES)
    preprocess(made, {"A": 0.1, "B-1": -0.05})
    return made


def harmonize(config: RunConfig) -> None:
    """Leave of each scan to be harmonized what the run's second part would."""
    run, scans = Run(config), find_scans(config).scans
    states = survey(run, scans)
    calibrations = run.frozen | calibrate_sites(run, own_sites(run, scans), "participant")
    for scan in scans:
        if states[scan.key] == HARMONIZE:
            path = run.record_of(scan)
            identity = run.identity(*calibrations[scan.site])
            path.write_text(json.dumps(json.loads(path.read_text()) | run.harmonization(identity)))


def states(config: RunConfig) -> list[str]:
    return list(survey(Run(config), find_scans(config).scans).values())


def notes(config: RunConfig) -> str:
    return "\n".join(map("\n".join, site_notes(Run(config), find_scans(config).scans)))


def calibrations(config: RunConfig) -> dict[str, Calibration]:
    found = (config.output_dir / FOLDER).glob("site-*_calibration.json")
    read = [Calibration.from_dict(json.loads(path.read_text())) for path in found]
    return {one.site: one for one in read}


def test_a_site_is_brought_back_by_what_its_scans_are_off(config: RunConfig) -> None:
    harmonize(config)
    for site, shift in (("A", 0.1), ("B-1", -0.05)):
        one = calibrations(config)[site]
        assert one.code.n == len(SITES[site])
        assert one.made_by == "participant"
        changes = one.changes(load_bundle())
        assert changes["grey matter"] == pytest.approx(shift, abs=0.04)
    page = (config.output_dir / FOLDER / "site-A_calibration.html").read_text()
    assert "only 3 persons" in page
    assert 'src="http' not in page


CHANGES: dict[str, tuple[Callable[[RunConfig], RunConfig | None], list[str]]] = {
    "nothing": (lambda c: None, [NOTHING] * 5),
    "an option of harmonization": (lambda c: replace(c, on_guard_fail="raw"), [HARMONIZE] * 5),
    "the native grid": (lambda c: replace(c, output_spaces=("template", "T1w")), [HARMONIZE] * 5),
    "a condition that some scans meet": (
        lambda c: replace(c, fit_filter="age < 60"), [HARMONIZE] * 5,
    ),
    "a scan fewer to calibrate from": (
        lambda c: replace(c, participant_label=("01", "04", "05")),
        [HARMONIZE, NOTHING, NOTHING],
    ),
    "the same scans chosen": (
        lambda c: replace(c, participant_label=("01", "02", "03")), [NOTHING] * 3,
    ),
    "the column of sites": (lambda c: replace(c, site_column="diagnosis"), [HARMONIZE] * 5),
    "an option of preprocessing": (lambda c: replace(c, random_seed=7), [PREPROCESS] * 5),
    "a scan to be preprocessed": (
        lambda c: next(c.output_dir.glob("sub-02/anat/*preproc*")).unlink(),
        [HARMONIZE, PREPROCESS, HARMONIZE, NOTHING, NOTHING],
    ),
    "no bundle": (lambda c: replace(c, bundle="none"), [PREPROCESS] * 5),
    "a bundle of the same preprocessing": (
        lambda c: replace(c, bundle=str(write_random_bundle(
            c.work_dir.parent / "bundle", contract=Run(c).contract
        ).path)), [HARMONIZE] * 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_only_what_is_outdated_is_done_again(config: RunConfig, change: str) -> None:
    assert states(config) == [HARMONIZE] * 5
    harmonize(config)
    act, expected = CHANGES[change]
    assert states(act(config) or config) == expected


def test_a_corrected_age_is_used_without_preprocessing_again(config: RunConfig) -> None:
    harmonize(config)
    table = config.bids_dir / "participants.tsv"
    table.write_text(table.read_text().replace("sub-02\t40.0", "sub-02\t44.0"))
    run, scans = Run(config), find_scans(config).scans
    assert survey(run, scans)["sub-02"] == HARMONIZE
    assert json.loads(run.record_of(scans[1]).read_text())["age"] == 40  # a dry run writes nothing
    # A run without a bundle would show the harmonized scan as its own, so it starts anew.
    assert states(replace(config, bundle="none"))[1] == PREPROCESS
    survey(run, scans, update=True)
    record = json.loads(run.record_of(scans[1]).read_text())
    assert (record["age"], record["harmonization"]) == (44, None)
    # All scans of its site are harmonized again, as it is calibrated at the new age.
    assert states(config) == [HARMONIZE] * 3 + [NOTHING] * 2
    ages = {scan.key: scan.age for scan in own_sites(run, scans)["A"]}
    assert ages["sub-02"] == 44
    assert states(replace(config, bundle="none"))[1] == NOTHING


def test_the_calibrate_level_has_the_last_word(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = replace(config, participant_label=("01",))
    harmonize(alone)
    assert not (config.output_dir / FOLDER).exists()  # jobs of other participants would differ
    assert "from the selected scans only" in notes(alone)
    assert run_calibrate(config) == 0
    said = capsys.readouterr().out
    assert "Site A: 3 persons of 20 to 60 years; harmonization makes grey matter 0." in said
    assert {one.made_by for one in calibrations(config).values()} == {"calibrate"}
    # Each job uses it, and one scan more in the dataset changes nothing until it is made again.
    assert states(alone) == [HARMONIZE]
    harmonize(alone)
    assert states(alone) == [NOTHING]
    assert f"Site A: calibrated by {config.output_dir}" in notes(alone)
    assert states(config) == [NOTHING, *[HARMONIZE] * 4]
    before = {p: p.read_bytes() for p in (config.output_dir / FOLDER).iterdir()}
    harmonize(config)
    assert {p: p.read_bytes() for p in (config.output_dir / FOLDER).iterdir()} == before


def test_outdated_calibrations_of_a_run_do_not_stay(config: RunConfig) -> None:
    harmonize(config)
    table = config.bids_dir / "participants.tsv"
    table.write_text(table.read_text().replace("B-1", "C"))
    preprocess(config)
    harmonize(config)
    names = {path.name for path in (config.output_dir / FOLDER).iterdir()}
    assert names == {f"site-{s}_calibration.{e}" for s in "AC" for e in ("json", "html")}


def given(config: RunConfig) -> Path:
    """A calibration of site A, made before."""
    assert run_calibrate(config) == 0
    folder = config.output_dir / FOLDER
    return folder.rename(config.work_dir.parent / "given") / "site-A_calibration.json"


def test_a_given_calibration_is_used_as_it_is_and_other_sites_have_their_own(
    config: RunConfig,
) -> None:
    file = given(config)
    one = replace(config, calibration=file)
    assert "site-A_calibration.json has no calibration of the site B-1" in notes(one)
    harmonize(one)
    assert set(calibrations(config)) == {"B-1"}
    record = json.loads(
        (config.output_dir / "sub-01/anat/sub-01_desc-harmony_qc.json").read_text()
    )
    assert record["calibration"]["made_by"] == "calibrate"
    assert "path" not in record["calibration"]  # it is no part of the outputs
    whole = replace(config, calibration=file.parent)
    assert "has no calibration" not in notes(whole)


def broken(file: Path, **values: object) -> Path:
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | values))
    return file


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty file": (lambda f: f.write_text(""), "cannot be read"),
    "curve that falls": (
        lambda f: broken(f, mapping={"x": list(range(50)), "y": list(range(50, 0, -1))}),
        "cannot be read",
    ),
    "another bundle": (
        lambda f: broken(f, bundle={"name": "default", "version": "0.0", "sha256": "0"}),
        "was made with the bundle default 0.0 and the template MNI152NLin2009aSym, not with",
    ),
    "another template": (lambda f: broken(f, template="Other"), "template Other, not with"),
    "empty folder": (lambda f: (f.unlink(), f.mkdir()), "There is no calibration in"),
    "absent": (lambda f: f.unlink(), "cannot be read"),
    "site that the run has not": (
        lambda f: broken(f, site="Elsewhere"), "no calibration of the site A, B-1, only of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_calibration_that_cannot_be_used_is_refused_before_anything_runs(
    config: RunConfig, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, (damage, says) = given(config), FAULTS[fault]
    damage(file)
    argv = [config.bids_dir, config.output_dir, "participant", "-w", config.work_dir,
            "--calibration", file]  # fmt: skip
    for dry in ([], ["--dry-run"]):
        assert main([str(word) for word in (*argv, *dry)]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert "\n  " in said


def test_conditions_choose_whom_a_site_is_calibrated_from(config: RunConfig) -> None:
    harmonize(replace(config, fit_filter="diagnosis == 'hc'"))
    assert calibrations(config)["A"].code.n == 2
    with pytest.raises(UsageError, match="No scan of the site B-1 meets"):
        harmonize(replace(config, fit_filter="age > 55"))
    with pytest.raises(UsageError, match="cannot be understood"):
        Run(replace(config, fit_filter="height > 55"))


def test_what_makes_a_calibration_doubtful_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # One person, who is the only patient; one age; and two scanners under one label.
    ages = [40.0] * 8
    made = made_up_sites(tmp_path, {"one": [30.0], "same": [50.0] * 3, "two": ages})
    preprocess(made)
    for number in range(5, 9):
        path = made.output_dir / f"sub-{number:02}/anat/sub-{number:02}_desc-harmony_qc.json"
        record = json.loads(path.read_text())
        record["descriptors"]["quantiles"] = (
            np.array(record["descriptors"]["quantiles"]) + 0.3
        ).tolist()
        path.write_text(json.dumps(record))
    assert run_calibrate(made) == 0
    said = "".join(capsys.readouterr())
    assert "The site one is calibrated from a single person" in said
    assert "All scans of the site one have the diagnosis 'patient'" in said
    assert "--fit-filter" in said
    assert "Site same: 3 persons of 50 to 50 years" in said
    assert "The scans of the site two form two groups of 4 and 4" in said


def test_scans_without_site_are_counted(tmp_path: Path) -> None:
    made = made_up_sites(tmp_path, {"n/a": [30.0], "A": [40.0]})
    assert "1 of 2 scans have no site information" in notes(made)


def test_the_level_names_scans_that_it_cannot_use(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in config.output_dir.glob("sub-0[123]/anat/*_qc.json"):
        record = json.loads(path.read_text())
        del record["descriptors"]  # as an earlier version left it
        path.write_text(json.dumps(record))
    assert run_calibrate(config) == 0
    said = "".join(capsys.readouterr())
    assert "3 scans not used" in said
    assert "sub-01, sub-02, sub-03. Run the participant level" in said
    assert set(calibrations(config)) == {"B-1"}
    assert run_calibrate(replace(config, output_dir=config.work_dir / "nothing")) == 66
    with pytest.raises(UsageError):
        run_calibrate(replace(config, bundle="none"))


# Whole runs of the second part


@pytest.fixture
def ready(tmp_path: Path) -> RunConfig:
    """Two sites as a run left them that was killed between the parts; of one no age is known."""
    bundle = write_random_bundle(tmp_path / "bundle")
    made = made_up_sites(tmp_path, {"A": [30.0, 60.0], "B": [None]}, bundle=str(bundle.path))
    made = replace(made, output_spaces=("template", "T1w"))
    preprocess(made, images=True)
    return made


@pytest.mark.slow
def test_the_second_part_goes_on_from_the_first_and_is_repeated_alone(
    ready: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ready.output_dir, tmp_path / "again")
    times = {p: p.stat().st_mtime_ns for p in ready.output_dir.rglob("*preproc*")}
    assert run_participant(ready) == 0
    said = capsys.readouterr().out
    assert "0 to process, 3 to harmonize only" in said
    assert "Site B: 1 person of about" in said
    first = tree(ready.output_dir)
    named = json.loads(first["sub-03/anat/sub-03_desc-harmony_predictions.json"])["calibration"]
    assert named["ages"] == "estimated"
    assert named["path"] == f"{FOLDER}/site-B_calibration.json"
    assert json.loads(first[named["path"]])["mapping"]["x"]
    assert "calibrated from 1 person" in first["sub-03.html"].decode()
    # Nothing is left to do; other processes write the same bytes.
    assert run_participant(ready) == 0
    assert "3 unchanged." in capsys.readouterr().out
    assert tree(ready.output_dir) == first
    other = replace(ready, output_dir=tmp_path / "again", work_dir=tmp_path / "w2", nprocs=2)
    assert run_participant(other) == 0
    assert [name for name, data in tree(other.output_dir).items() if first[name] != data] == []
    # Another calibration touches nothing of the first part.
    capsys.readouterr()
    assert run_participant(replace(ready, fit_filter="age > 50 or site == 'B'")) == 0
    assert "0 to process, 3 to harmonize only" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in times} == times


@pytest.mark.slow
def test_a_scan_that_cannot_be_harmonized_keeps_its_preprocessing_and_costs_no_other(
    ready: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    (preproc,) = ready.output_dir.glob("sub-02/anat/*preproc*.nii.gz")
    whole = preproc.read_bytes()
    preproc.write_bytes(whole[: len(whole) // 2])
    assert run_participant(ready) == 1
    assert "2 completed, 1 failed" in capsys.readouterr().out
    path = ready.output_dir / "sub-02/anat/sub-02_desc-harmony_qc.json"
    record = json.loads(path.read_text())
    assert record["status"] == "error"
    assert record["descriptors"]["quantiles"]
    assert not [name for name in record["outputs"] if "harmonized_T1w.nii" in name]
    assert preproc.exists()
    preproc.write_bytes(whole)
    assert run_participant(ready) == 0
    said = capsys.readouterr().out
    assert "0 to process, 1 to harmonize only, 2 completed before" in said
    assert json.loads(path.read_text())["status"] in ("pass", "warn")
