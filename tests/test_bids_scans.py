"""Which files of a dataset are scans, which are chosen, and what is said about the others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from bids.layout.writing import build_path
from bids_dataset import find, keys, write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bids_harmony.bids.dataset import Scan, _why_none, list_subjects
from bids_harmony.bids.filters import ENTITIES, parse_entities, read_filters
from bids_harmony.config import RunConfig
from bids_harmony.errors import NoInputError, UsageError


def test_plain_dataset_is_found_with_its_facts(dataset: Path) -> None:
    before = sorted(dataset.parents[2].rglob("*"))
    inventory = find(dataset)
    assert keys(inventory) == ["sub-01", "sub-02"]
    assert (inventory.skipped, inventory.warnings) == ((), ())
    first, second = inventory.scans
    assert first.path == dataset / "sub-01/anat/sub-01_T1w.nii.gz"
    assert first.entities == {"subject": "01"}
    assert (first.age, first.sex, second.age, second.sex) == (30.0, "M", 40.5, "F")
    assert (first.site, first.site_source, first.mask) == ("unknown", "none", None)
    assert first.wf_name == "sub_01_wf"
    assert sorted(dataset.parents[2].rglob("*")) == before


def test_every_t1w_is_a_scan_of_its_own(dataset: Path, tmp_path: Path) -> None:
    names = [
        "sub-01/anat/sub-01_acq-a_T1w.nii.gz", "sub-01/anat/sub-01_rec-a_T1w.nii",
        "sub-01/anat/sub-01_run-1_T1w.nii.gz", "sub-01/anat/sub-01_run-01_T1w.nii.gz",
        "sub-01/anat/sub-01_echo-1_part-mag_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_ce-gd_T1w.NII.GZ",
    ]  # fmt: skip
    others = (
        "derivatives/x/sub-01/anat/sub-01_space-T1w_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz",
        "sourcedata/sub-01/anat/sub-01_run-7_T1w.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz.part",
        "sub-01/anat/deeper/sub-01_run-8_T1w.nii.gz", "sub-01/func/sub-01_T1w.nii.gz",
    )  # fmt: skip
    for name in (*names, *others):
        write(dataset, name)
    scans = find(dataset, participant_label=("01",)).scans
    names.append("sub-01/anat/sub-01_T1w.nii.gz")
    assert {scan.path for scan in scans} == {dataset / name for name in names}
    by_key = {scan.key: scan.entities for scan in scans}
    assert by_key["sub-01_run-01"] == {"subject": "01", "run": "01"}
    assert by_key["sub-01_ses-b_ce-gd"] == {"subject": "01", "session": "b", "ceagent": "gd"}
    # Links are followed, and named where they lead nowhere: the check says why.
    write(tmp_path, "elsewhere/anat/sub-03_T1w.nii.gz")
    (dataset / "sub-03").symlink_to(tmp_path / "elsewhere")
    write(dataset, "sub-04/anat/x")
    (dataset / "sub-04/anat/sub-04_T1w.nii.gz").symlink_to("../../.git/annex/objects/nothing")
    assert {"sub-03", "sub-04"} <= set(keys(find(dataset)))


def test_what_is_left_out_is_named(dataset: Path) -> None:
    """pybids and niworkflows drop ``run-a``: two such scans would share their outputs."""
    write(dataset, "sub-03/func/sub-03_task-x_bold.nii.gz")
    (dataset / "sub-04").mkdir()
    write(dataset, "sub-01/anat/sub-01_T1w.nii")
    write(dataset, "sub-02/anat/sub-02_run-1_acq-a_T1w.nii.gz")
    write(dataset, "sub-02/anat/sub-02_acq-a_run-1_T1w.nii.gz")
    reasons = {
        "sub-01_part-phase": "part-phase is not a magnitude image",
        "sub-02": "the subject or session of its name differs from that of its folder",
        "sub-01_ses-a": "the subject or session of its name differs from that of its folder",
        **{f"sub-01_{part}": f"'{part}' in its name is not a BIDS entity of T1w images"
           for part in ("foo", "inv-1", "run-a", "echo-x", "chunk-1a", "part-foo", "acq-\ufffd")},
    }  # fmt: skip
    for name in [*reasons][:-1]:
        write(dataset, f"sub-01/anat/{name}_T1w.nii.gz")
    folder = os.fsencode(dataset)
    Path(os.fsdecode(folder + b"/sub-01/anat/sub-01_acq-\xff_T1w.nii.gz")).touch()
    Path(os.fsdecode(folder + b"/sub-\xfe")).mkdir()
    inventory = find(dataset)
    assert keys(inventory) == ["sub-01", "sub-02", "sub-02_acq-a_run-1"]
    assert inventory.scans[0].path.name == "sub-01_T1w.nii.gz"
    why = {s.what.rpartition("/")[2]: s.why for s in inventory.skipped}
    assert {name: why.pop(f"{name}_T1w.nii.gz") for name in reasons} == reasons
    assert why.pop("sub-01_T1w.nii") == "sub-01_T1w.nii.gz has the same entities"
    assert "same entities" in why.pop("sub-02_run-1_acq-a_T1w.nii.gz")
    assert why.pop("sub-03") == "no T1w scan"
    assert "datalad" in why.pop("sub-04")
    assert list(why) == ["sub-\ufffd"]


@pytest.mark.parametrize("closed", ["anat", "ses-a", "ses-a/anat"])
def test_a_folder_that_cannot_be_read_is_not_called_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    folder = tmp_path / "sub-01"
    (folder / closed).mkdir(parents=True)
    monkeypatch.setattr(
        "bids_harmony.bids.dataset.os.access", lambda path, _: path != folder / closed
    )
    config = RunConfig(bids_dir=tmp_path, output_dir=tmp_path / "out")
    assert _why_none(folder, config) == f"its folder {Path(closed).name} cannot be read"


def test_wrong_folders_get_a_hint(dataset: Path) -> None:
    for folder, hint in ((dataset / "sub-01", dataset), (dataset.parent, dataset)):
        with pytest.raises(UsageError) as error:
            list_subjects(folder)
        assert str(hint) in error.value.remedy
    (dataset / "nothing").mkdir()
    with pytest.raises(NoInputError):
        list_subjects(dataset / "nothing")
    with pytest.raises(UsageError, match="cannot be listed"):
        list_subjects(dataset / "absent")


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (None, "is missing or cannot be read (No such file"), ("{", "cannot be read"),
        ("[1]", "does not hold a JSON object"), ("{}", "lacks Name or BIDSVersion"),
        ('{"Name": "x", "BIDSVersion": "1", "DatasetType": "derivative"}', "derivatives"),
    ],
)  # fmt: skip
def test_bad_dataset_description_only_warns(dataset: Path, content: str, warning: str) -> None:
    (dataset / "dataset_description.json").unlink()
    if content is not None:
        write(dataset, "dataset_description.json", content)
    inventory = find(dataset)
    assert keys(inventory) == ["sub-01", "sub-02"]
    assert warning in inventory.warnings[0]


LABEL = st.text("0123456789abcXYZ+", min_size=1, max_size=4)
NUMBER = st.from_regex(r"[0-9]{1,3}", fullmatch=True)
NAMES = st.fixed_dictionaries(
    {"sub": LABEL},
    optional={
        **dict.fromkeys(("ses", "task", "acq", "ce", "rec"), LABEL),
        **dict.fromkeys(("run", "echo", "chunk"), NUMBER),
        "part": st.sampled_from(["mag", "phase", "real", "imag"]),
    },
).map(lambda e: "_".join(f"{name}-{e[name]}" for name in ENTITIES if name in e))
KINDS = (
    {"suffix": "T1w", "extension": ".nii.gz", "space": "S", "resolution": "2", "desc": "x"},
    {"suffix": "mask", "extension": ".nii.gz", "desc": "brain"},
    {"suffix": "xfm", "extension": ".txt", "from": "T1w", "to": "S", "mode": "image"},
    {"suffix": "qc", "extension": ".json", "desc": "harmony"},
    {"suffix": "T1w", "extension": ".png", "desc": "x", "datatype": "figures"},
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(NAMES, min_size=2, max_size=12, unique=True))
@example(["sub-01_acq-a", "sub-01_rec-a", "sub-01_acq-a_rec-a", "sub-01_run-1", "sub-01_run-01"])
@example(["sub-01_echo-1_part-mag", "sub-01_part-mag", "sub-01_echo-1", "sub-01_chunk-1"])
@example(["sub-1_acq-+", "sub-1_acq-++", "sub-1+_acq-1", "sub-1_acq-+1", "sub-1_acq-1+"])
def test_different_names_give_different_outputs(names: list[str]) -> None:
    """The claim: from the file's name to every name made of it, no two scans ever meet."""
    spec = Path(__file__).resolve().parents[1] / "bids_harmony/data/io_spec.json"
    patterns = json.loads(spec.read_text())["default_path_patterns"]
    scans = [Scan(path=Path(name), key=name, entities={}) for name in names]
    assert len({scan.wf_name for scan in scans}) == len(names)
    entities = [parse_entities(f"{name}_T1w.nii.gz") for name in names]
    for kind in KINDS:
        made = [build_path({**e, **kind}, patterns) for e in entities]
        assert None not in made
        assert len(set(made)) == len(names)


# Choosing scans


def test_labels_that_are_not_there(dataset: Path) -> None:
    for ses in ("01", "02"):
        write(dataset, f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_T1w.nii.gz")
    assert keys(find(dataset, participant_label=("02",))) == ["sub-02"]
    inventory = find(dataset, session_label=("02",))
    assert keys(inventory) == ["sub-01_ses-02"]
    assert [s.what for s in inventory.skipped] == ["sub-02"]
    for asked, cause, remedy in (
        ({"participant_label": ("01", "2")}, "no participant 2", "Did you mean 02?"),
        ({"participant_label": ("xyz",)}, "no participant xyz", "There are 01, 02."),
        ({"session_label": ("2",)}, "no session 2", "Did you mean 02?"),
    ):
        with pytest.raises(UsageError, match=cause) as error:
            find(dataset, **asked)
        assert error.value.remedy == remedy


A, B = "sub-01_acq-a_run-01", "sub-01_acq-b"


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"acquisition": "a"}, [A]), ({"acq": ["a", "b"]}, [A, B]),
        ({"acquisition": None}, ["sub-01", "sub-02"]),
        ({"acquisition": "Query.NONE"}, ["sub-01", "sub-02"]),
        ({"acquisition": "*"}, [A, B]), ({"acquisition": "Query.ANY"}, [A, B]),
        ({"acquisition": [None, "b"], "subject": "sub-01"}, ["sub-01", B]),
        ({"acquisition": "Query.OPTIONAL", "run": "Query.NONE"}, ["sub-01", B, "sub-02"]),
        ({"run": 1}, [A]), ({"run": "1", "suffix": "T1w", "datatype": "anat"}, [A]),
        ({"extension": ".nii.gz", "subject": "02"}, ["sub-02"]),
    ],
)  # fmt: skip
def test_filters(dataset: Path, tmp_path: Path, filters: dict, expected: list[str]) -> None:
    for name in (A, B):
        write(dataset, f"sub-01/anat/{name}_T1w.nii.gz")
    file = write(tmp_path, "f.json", json.dumps({"T1w": filters, "bold": {"task": "x"}}))
    assert set(keys(find(dataset, bids_filters=read_filters(file)))) == set(expected)


@pytest.mark.parametrize(
    ("text", "cause", "remedy"),
    [
        ("{", "cannot be read", "Expected is"), ("[1]", "not hold a JSON object", "Expected is"),
        ('{"t1w": 3}', "t1w is 3", "Expected is"),
        ('{"t1w": {"acqisition": "x"}}', '"acqisition": "x"', "acquisition"),
        ('{"t1w": {"run": {"a": 1}}}', '"run": {"a": 1}', "run"),
    ],
)  # fmt: skip
def test_wrong_filters(tmp_path: Path, text: str, cause: str, remedy: str) -> None:
    with pytest.raises(UsageError, match=cause) as error:
        read_filters(write(tmp_path, "f.json", text))
    assert remedy in error.value.remedy


def test_filters_for_other_images_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_filters(write(tmp_path, "f.json", '{"t1": {"run": 1}}')) == {}
    assert "has no filters for t1w" in capsys.readouterr().err


def test_nothing_found_names_the_filters(dataset: Path, tmp_path: Path) -> None:
    filters = {"acquisition": ["mprage"]}
    with pytest.raises(NoInputError) as error:
        find(dataset, bids_filters=filters, participant_label=("01",))
    assert "--participant-label 01" in error.value.remedy
    assert '--bids-filter-file {"acquisition": ["mprage"]}' in error.value.remedy
    write(tmp_path, "empty/sub-01/anat/sub-01_part-phase_T1w.nii.gz")
    with pytest.raises(NoInputError, match="part-phase is not a magnitude"):
        find(tmp_path / "empty")
