"""Which scans are found, and what tables, sidecars and derivatives say about them."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest
from bids.layout.writing import build_path
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bids_harmony.bids import Inventory, find_scans, workflow_name
from bids_harmony.bids_filters import read_filters
from bids_harmony.bids_index import INDEX_FILE, list_subjects
from bids_harmony.bids_sidecars import ENTITIES, parse_entities, site_label
from bids_harmony.bids_tables import parse_age, parse_sex, read_table
from bids_harmony.config import RunConfig
from bids_harmony.errors import NoInputError, UsageError


def write(root: Path, name: str, content: str | bytes = "") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset of two subjects; the folder's own name would confuse a search by path."""
    root = tmp_path / "sub-projects" / "func" / "ds"
    write(root, "dataset_description.json", '{"Name": "d", "BIDSVersion": "1.10.0"}')
    write(root, "participants.tsv", "participant_id\tage\tsex\nsub-01\t30\tM\nsub-02\t40.5\tF\n")
    for sub in ("01", "02"):
        write(root, f"sub-{sub}/anat/sub-{sub}_T1w.nii.gz")
    return root


def find(root: Path, **options: object) -> Inventory:
    return find_scans(RunConfig(bids_dir=root, output_dir=root / "out", **options))


def keys(inventory: Inventory) -> list[str]:
    return [scan.key for scan in inventory.scans]


# ---------------------------------------------------------------- which scans


def test_plain_dataset_is_found_with_its_facts(root: Path) -> None:
    inventory = find(root)
    assert keys(inventory) == ["sub-01", "sub-02"]
    assert inventory.skipped == ()
    assert inventory.warnings == ()
    first, second = inventory.scans
    assert first.path == root / "sub-01/anat/sub-01_T1w.nii.gz"
    assert first.entities == {"subject": "01"}
    assert (first.age, first.sex, second.age, second.sex) == (30.0, "M", 40.5, "F")
    assert (first.site, first.site_source, first.mask) == ("unknown", "none", None)
    assert first.wf_name == "sub_01_wf"


def test_every_t1w_is_a_scan_of_its_own(root: Path) -> None:
    names = [
        "sub-01/anat/sub-01_acq-a_T1w.nii.gz",
        "sub-01/anat/sub-01_rec-a_T1w.nii",
        "sub-01/anat/sub-01_run-1_T1w.nii.gz",
        "sub-01/anat/sub-01_run-01_T1w.nii.gz",
        "sub-01/anat/sub-01_echo-1_part-mag_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_ce-gd_T1w.NII.GZ",
    ]
    for name in names:
        write(root, name)
    scans = find(root, participant_label=("01",)).scans
    assert {scan.path for scan in scans} == {
        root / name for name in [*names, "sub-01/anat/sub-01_T1w.nii.gz"]
    }
    assert len({scan.wf_name for scan in scans}) == len(scans)
    by_key = {scan.key: scan for scan in scans}
    assert by_key["sub-01_run-01"].entities == {"subject": "01", "run": "01"}
    assert by_key["sub-01_ses-b_ce-gd"].entities == {
        "subject": "01",
        "session": "b",
        "ceagent": "gd",
    }


def test_other_files_are_not_scans(root: Path) -> None:
    for name in (
        "derivatives/x/sub-01/anat/sub-01_space-T1w_T1w.nii.gz",
        "sourcedata/sub-01/anat/sub-01_run-7_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_T1w.nii.gz.part",
        "sub-01/anat/.git/sub-01_run-8_T1w.nii.gz",
        ".git/sub-01/anat/sub-01_run-9_T1w.nii.gz",
        "sub-01/func/sub-01_T1w.nii.gz",
    ):
        write(root, name)
    assert keys(find(root)) == ["sub-01", "sub-02"]


def test_what_is_left_out_is_named(root: Path) -> None:
    write(root, "sub-03/func/sub-03_task-x_bold.nii.gz")
    (root / "sub-04").mkdir()
    for name in (
        "sub-01_part-phase",
        "sub-01_part-real",
        "sub-01_inv-1",
        "sub-02",
        "sub-01_foo",
        "sub-01_ses-a",
    ):
        write(root, f"sub-01/anat/{name}_T1w.nii.gz")
    write(root, "sub-01/anat/sub-01_T1w.nii")
    write(root, "sub-02/anat/sub-02_run-1_acq-a_T1w.nii.gz")
    write(root, "sub-02/anat/sub-02_acq-a_run-1_T1w.nii.gz")
    inventory = find(root)
    assert keys(inventory) == ["sub-01", "sub-02", "sub-02_acq-a_run-1"]
    assert inventory.scans[0].path.name == "sub-01_T1w.nii.gz"
    why = {s.what.rpartition("/")[2]: s.why for s in inventory.skipped}
    assert len(why) == 10
    assert why["sub-01_part-phase_T1w.nii.gz"] == "part-phase is not a magnitude image"
    assert "'inv-'" in why["sub-01_inv-1_T1w.nii.gz"]
    assert "folders" in why["sub-02_T1w.nii.gz"]
    assert "folders" in why["sub-01_ses-a_T1w.nii.gz"]
    assert "'foo'" in why["sub-01_foo_T1w.nii.gz"]
    assert "sub-01_T1w.nii.gz" in why["sub-01_T1w.nii"]
    assert "sub-02_acq-a_run-1_T1w.nii.gz" in why["sub-02_run-1_acq-a_T1w.nii.gz"]
    assert why["sub-03"] == "no T1w scan"
    assert "datalad" in why["sub-04"]


def test_labels_that_output_names_would_lose(root: Path) -> None:
    """pybids and niworkflows drop ``run-a``: two such scans would share their outputs."""
    for name in ("run-a", "run-b", "echo-x", "chunk-1a", "part-foo"):
        write(root, f"sub-01/anat/sub-01_{name}_T1w.nii.gz")
    inventory = find(root)
    assert keys(inventory) == ["sub-01", "sub-02"]
    assert len(inventory.skipped) == 5
    assert {s.why for s in inventory.skipped} == {
        "its run- is not a number",
        "its echo- is not a number",
        "its chunk- is not a number",
        "part- is one of mag, phase, real, imag",
    }


def test_names_that_are_not_utf8_can_be_printed(root: Path) -> None:
    folder = os.fsencode(root) + b"/sub-01/anat/"
    Path(os.fsdecode(folder + b"sub-01_acq-\xff_T1w.nii.gz")).touch()
    Path(os.fsdecode(os.fsencode(root) + b"/sub-\xfe")).mkdir()
    inventory = find(root)
    assert keys(inventory) == ["sub-01", "sub-02"]
    assert len(inventory.skipped) == 2
    for text in (*(s.what + s.why for s in inventory.skipped), *inventory.warnings):
        assert text.encode()


def test_other_subjects_are_not_looked_into(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    write(root, "sub-01/func/sub-01_bold.nii.gz")
    write(root, "sub-01/anat/deeper/sub-01_T1w.nii.gz")
    write(root, "derivatives/a/sub-01/anat/sub-01_T1w.nii.gz")
    listed = set()
    plain = LocalFileSystem.ls

    def ls(self: object, path: str, *args: object, **kwargs: object) -> object:
        listed.add(Path(path))
        return plain(self, path, *args, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "ls", ls)
    assert keys(find(root, participant_label=("01",))) == ["sub-01"]
    assert listed == {root, root / "sub-01", root / "sub-01/anat"}


def test_broken_links_are_listed_so_that_the_check_names_them(root: Path) -> None:
    link = root / "sub-03/anat/sub-03_T1w.nii.gz"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../.git/annex/objects/nothing")
    assert keys(find(root)) == ["sub-01", "sub-02", "sub-03"]


def test_linked_subject_folders_are_followed(root: Path, tmp_path: Path) -> None:
    write(tmp_path, "store/anat/sub-03_T1w.nii.gz")
    (root / "sub-03").symlink_to(tmp_path / "store")
    assert "sub-03" in keys(find(root))


def test_labels_that_are_not_there(root: Path) -> None:
    assert keys(find(root, participant_label=("02",))) == ["sub-02"]
    with pytest.raises(UsageError, match="no participant 2") as error:
        find(root, participant_label=("01", "2"))
    assert error.value.remedy == "Did you mean 02?"
    with pytest.raises(UsageError) as error:
        find(root, participant_label=("xyz",))
    assert error.value.remedy == "There are 01, 02."


def test_sessions(root: Path) -> None:
    for ses in ("01", "02"):
        write(root, f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_T1w.nii.gz")
    inventory = find(root, session_label=("02",))
    assert keys(inventory) == ["sub-01_ses-02"]
    assert [s.what for s in inventory.skipped] == ["sub-02"]
    with pytest.raises(UsageError, match="no session 2") as error:
        find(root, session_label=("2",))
    assert error.value.remedy == "Did you mean 02?"


def test_nothing_found_names_the_filters(root: Path, tmp_path: Path) -> None:
    filters = {"acquisition": ["mprage"]}
    with pytest.raises(NoInputError) as error:
        find(root, bids_filters=filters, participant_label=("01",))
    assert error.value.exit_code == 66
    assert "--participant-label 01" in error.value.remedy
    assert '--bids-filter-file {"acquisition": ["mprage"]}' in error.value.remedy
    write(tmp_path, "empty/sub-01/anat/sub-01_part-phase_T1w.nii.gz")
    with pytest.raises(NoInputError, match="part-phase is not a magnitude"):
        find(tmp_path / "empty")


def test_wrong_folders_get_a_hint(root: Path) -> None:
    with pytest.raises(UsageError) as error:
        list_subjects(root / "sub-01")
    assert error.value.remedy == f"Give the dataset: {root}."
    with pytest.raises(UsageError) as error:
        list_subjects(root.parent)
    assert str(root) in error.value.remedy
    (root / "nothing").mkdir()
    with pytest.raises(NoInputError):
        list_subjects(root / "nothing")
    with pytest.raises(UsageError, match="cannot be listed"):
        list_subjects(root / "absent")


# ---------------------------------------------------------------- names never collide

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


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(NAMES, min_size=2, max_size=12, unique=True))
@example(["sub-01_acq-a", "sub-01_rec-a", "sub-01_acq-a_rec-a", "sub-01_run-1", "sub-01_run-01"])
@example(["sub-01_echo-1_part-mag", "sub-01_part-mag", "sub-01_echo-1", "sub-01_chunk-1"])
def test_different_names_give_different_outputs(names: list[str]) -> None:
    """The claim: from the file's name to every name made of it, no two scans ever meet."""
    spec = Path(__file__).resolve().parents[1] / "bids_harmony/data/io_spec.json"
    patterns = json.loads(spec.read_text())["default_path_patterns"]
    assert len({workflow_name(name) for name in names}) == len(names)
    entities = [{ENTITIES[k]: v for k, v in parse_entities(name).items()} for name in names]
    kinds = (
        {"suffix": "T1w", "extension": ".nii.gz", "space": "S", "resolution": "2", "desc": "x"},
        {"suffix": "mask", "extension": ".nii.gz", "desc": "brain"},
        {"suffix": "xfm", "extension": ".txt", "from": "T1w", "to": "S", "mode": "image"},
        {"suffix": "qc", "extension": ".json", "desc": "harmony"},
        {"suffix": "T1w", "extension": ".png", "desc": "x", "datatype": "figures"},
    )
    for kind in kinds:
        made = [build_path({**e, **kind}, patterns) for e in entities]
        assert None not in made
        assert len(set(made)) == len(names)


@given(st.lists(st.text("ab-_.+", min_size=1, max_size=6), min_size=2, unique=True))
def test_names_that_are_not_bids_still_give_different_workflows(keys: list[str]) -> None:
    assert len({workflow_name(key) for key in keys}) == len(keys)


# ---------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"acquisition": "a"}, ["sub-01_acq-a_run-01"]),
        ({"acq": ["a", "b"]}, ["sub-01_acq-a_run-01", "sub-01_acq-b"]),
        ({"acquisition": None}, ["sub-01", "sub-02"]),
        ({"acquisition": "Query.NONE"}, ["sub-01", "sub-02"]),
        ({"acquisition": "*"}, ["sub-01_acq-a_run-01", "sub-01_acq-b"]),
        ({"acquisition": "Query.ANY"}, ["sub-01_acq-a_run-01", "sub-01_acq-b"]),
        ({"acquisition": [None, "b"], "subject": "sub-01"}, ["sub-01", "sub-01_acq-b"]),
        (
            {"acquisition": "Query.OPTIONAL", "run": "Query.NONE"},
            ["sub-01", "sub-01_acq-b", "sub-02"],
        ),
        ({"run": 1}, ["sub-01_acq-a_run-01"]),
        ({"run": "1", "suffix": "T1w", "datatype": "anat"}, ["sub-01_acq-a_run-01"]),
        ({"extension": ".nii.gz", "subject": "02"}, ["sub-02"]),
    ],
)
def test_filters(root: Path, tmp_path: Path, filters: dict, expected: list[str]) -> None:
    write(root, "sub-01/anat/sub-01_acq-a_run-01_T1w.nii.gz")
    write(root, "sub-01/anat/sub-01_acq-b_T1w.nii.gz")
    file = write(tmp_path, "f.json", json.dumps({"T1w": filters, "bold": {"task": "x"}}))
    assert set(keys(find(root, bids_filters=read_filters(file)))) == set(expected)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{", "JSON syntax error in"),
        ("[1]", "does not hold filters"),
        ('{"t1w": 3}', "does not hold filters"),
        ('{"t1": {}}', "unknown query 't1'"),
        ('{"t1w": {"acqisition": "x"}}', "'acqisition'"),
        ('{"t1w": {"suffix": "T2w"}}', 'suffix "T2w"'),
        ('{"t1w": {"run": {"a": 1}}}', "the value"),
    ],
)
def test_wrong_filters(tmp_path: Path, text: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause) as error:
        read_filters(write(tmp_path, "f.json", text))
    assert error.value.remedy
    if "acqisition" in text:
        assert "acquisition" in error.value.remedy


# ---------------------------------------------------------------- saved index


def test_saved_index_serves_the_next_call(root: Path, tmp_path: Path) -> None:
    saved = tmp_path / "index"
    assert keys(find(root, bids_database_dir=saved, participant_label=("01",))) == ["sub-01"]
    assert [p.name for p in saved.iterdir()] == [INDEX_FILE]
    again = find(root, bids_database_dir=saved)
    assert keys(again) == ["sub-01", "sub-02"]
    assert again.warnings == ()
    write(root, "sub-03/anat/sub-03_T1w.nii.gz")
    later = (saved / INDEX_FILE).stat().st_mtime + 5
    os.utime(root, (later, later))
    inventory = find(root, bids_database_dir=saved)
    assert keys(inventory) == ["sub-01", "sub-02"]
    assert "older than the dataset" in inventory.warnings[0]


def test_unusable_saved_index_is_refused(root: Path, tmp_path: Path) -> None:
    saved = tmp_path / "index"
    find(root, bids_database_dir=saved)
    other = tmp_path / "other"
    write(other, "sub-01/anat/sub-01_T1w.nii.gz")
    with pytest.raises(UsageError, match="is of"):
        find(other, bids_database_dir=saved)
    (saved / INDEX_FILE).write_text("no database")
    with pytest.raises(UsageError, match="cannot be read"):
        find(root, bids_database_dir=saved)


def test_nothing_is_written_without_a_saved_index(root: Path) -> None:
    before = sorted(p for p in root.parents[2].rglob("*"))
    find(root)
    assert sorted(p for p in root.parents[2].rglob("*")) == before


# ---------------------------------------------------------------- broken datasets


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (None, "is missing"),
        ("{", "cannot be read"),
        ("[]", "does not hold a JSON object"),
        ("[1]", "does not hold a JSON object"),
        ("{}", "lacks Name and BIDSVersion"),
        ('{"Name": "x", "BIDSVersion": "1", "DatasetType": "derivative"}', "derivatives"),
        (
            '{"Name": "x", "BIDSVersion": "1", "DatasetType": "derivative", "GeneratedBy": 3}',
            "derivatives",
        ),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_bad_dataset_description_only_warns(root: Path, content: str, warning: str) -> None:
    (root / "dataset_description.json").unlink()
    if content is not None:
        write(root, "dataset_description.json", content)
    for labels in ((), ("01", "02")):
        inventory = find(root, participant_label=labels)
        assert keys(inventory) == ["sub-01", "sub-02"]
        assert warning in inventory.warnings[0]


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x01\x02", b"nonsense", b"age\tsex\n30\tM\n", b"\xff\xfeab\x00\xd8"]
)
def test_malformed_participants_table_only_warns(root: Path, content: bytes) -> None:
    write(root, "participants.tsv", content)
    inventory = find(root)
    assert keys(inventory) == ["sub-01", "sub-02"]
    assert len(inventory.warnings) == 1
    assert "participants.tsv" in inventory.warnings[0]
    assert "not used" in inventory.warnings[0]
    assert inventory.scans[0].age is None


def test_malformed_sidecar_concerns_its_scans_only(root: Path) -> None:
    write(root, "sub-01/anat/sub-01_T1w.json", '{"Manufacturer": ')
    write(root, "sub-02/anat/sub-02_T1w.json", '{"Manufacturer": "GE", "EchoTime": 0.003}')
    write(root, "sub-02/func/sub-02_task-x_bold.json", "{")
    bad, good = find(root).scans
    assert "sub-01/anat/sub-01_T1w.json cannot be read" in bad.warnings[0]
    assert bad.site == "unknown"
    assert (good.site, good.site_source, good.warnings) == ("GE", "sidecar", ())
    assert good.metadata == {"Manufacturer": "GE", "EchoTime": 0.003}
    write(root, "sub-02/anat/sub-02_T1w.json", '{"EchoTime": NaN, "Manufacturer": "\\ud800"}')
    assert find(root).scans[1].metadata == {}
    write(root, "T1w.json", "[1, 2]")
    assert all("T1w.json" in scan.warnings[0] for scan in find(root).scans)


# ---------------------------------------------------------------- tables


def test_most_specific_table_wins(root: Path) -> None:
    for ses in ("a", "b"):
        write(root, f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_T1w.nii.gz")
        write(root, f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_run-2_T1w.nii.gz")
    write(root, "participants.tsv", "participant_id\tage\tsite\tgroup\nsub-01\t30\tP\tHC\n")
    write(
        root, "sub-01/sub-01_sessions.tsv", "session_id\tage\tsite\nses-a\t31\tS\nses-b\t32\tn/a\n"
    )
    write(
        root,
        "sub-01/ses-a/sub-01_ses-a_scans.tsv",
        "filename\tsite\tage\nanat/sub-01_ses-a_T1w.nii.gz\tF\tn/a\n",
    )
    found = {s.key: s for s in find(root, participant_label=("01",)).scans}
    facts = {key: (s.site, s.site_source, s.age) for key, s in found.items()}
    assert facts == {
        "sub-01": ("P", "participants.tsv:site", 30.0),
        "sub-01_ses-a": ("F", "scans.tsv:site", 31.0),
        "sub-01_ses-a_run-2": ("S", "sessions.tsv:site", 31.0),
        "sub-01_ses-b": ("P", "participants.tsv:site", 32.0),
        "sub-01_ses-b_run-2": ("P", "participants.tsv:site", 32.0),
    }
    assert {s.diagnosis for s in found.values()} == {"HC"}


def test_participants_table_with_a_row_per_session(root: Path) -> None:
    for ses in ("a", "b"):
        write(root, f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_T1w.nii.gz")
    write(
        root,
        "participants.tsv",
        "participant_id\tsession_id\tage\nsub-01\tses-a\t30\nsub-01\tses-b\t33\nsub-02\tn/a\t5\n",
    )
    inventory = find(root)
    assert inventory.warnings == ()
    assert {s.key: s.age for s in inventory.scans} == {
        "sub-01": None,
        "sub-01_ses-a": 30.0,
        "sub-01_ses-b": 33.0,
        "sub-02": 5.0,
    }


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("participant_id\tage\r\nsub-01\t30\r\nsub-02\t40\r\n", None),
        ("\ufeffparticipant_id\tage\nsub-01\t30\nsub-02\t40\n", None),
        ("participant_id\tage\n01\t30\n02\t40\n", None),
        ("Participant_ID\tAge\nsub-01\t30\nsub-02\t40\n\n", None),
        ('"participant_id"\t"age"\n"sub-01"\t"30"\n"sub-02"\t"40"\n', None),
        ('participant_id,age,x\nsub-01,30,"a,b"\nsub-02,40,c\n', "separated by ','"),
        ("participant_id;age\nsub-01;30\nsub-02;40\n", "separated by ';'"),
        ("participant_id\tage\nsub-01\t30\nsub-01\t99\nsub-02\t40\n", "several rows for 01"),
        ("participant_id\tage\tx\nsub-01\t30\nsub-02\t40\ty\tz\n", "2 rows with too few"),
        ("participant_id\tage\tage\nsub-01\t30\t1\nsub-02\t40\t2\n", "columns of the same name"),
        (
            "participant_id\tage\tname\nsub-01\t30\tJos\xe9\nsub-02\t40\tx\n".encode("latin-1"),
            "Latin-1",
        ),
        ("participant_id\tage\nsub-01\t30\nsub-02\t40\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_tables_as_spreadsheets_save_them(
    root: Path, text: str | bytes, warning: str | None
) -> None:
    write(root, "participants.tsv", text)
    inventory = find(root)
    assert [s.age for s in inventory.scans] == [30.0, 40.0]
    if warning is None:
        assert inventory.warnings == ()
    else:
        (note,) = inventory.warnings
        assert warning in note


def test_a_subject_without_row_is_told(root: Path) -> None:
    write(root, "participants.tsv", "participant_id\tage\nsub-01\t30\nsub-2\t40\n")
    first, second = find(root).scans
    assert first.warnings == ()
    assert second.warnings == ("sub-02 has no row in participants.tsv.",)


def test_named_columns(root: Path) -> None:
    write(
        root,
        "participants.tsv",
        "participant_id\tsite\tScanner\tyears\tage\nsub-01\tA\tT1\t5\t30\nsub-02\tB\tT2\t6\t40\n",
    )
    first = find(root).scans[0]
    assert (first.site, first.age) == ("A", 30.0)
    first = find(root, site_column="scanner", age_column="years").scans[0]
    assert (first.site, first.site_source, first.age) == ("T1", "participants.tsv:Scanner", 5.0)
    with pytest.raises(UsageError, match="--site-column where") as error:
        find(root, site_column="where")
    assert error.value.remedy == "Columns there are: participant_id, site, Scanner, years, age."
    (root / "participants.tsv").unlink()
    with pytest.raises(UsageError) as error:
        find(root, sex_column="sex")
    assert "no usable participants.tsv" in error.value.remedy


@pytest.mark.parametrize(
    ("text", "age", "note"),
    [
        ("35", 35.0, None),
        (" 35.25 ", 35.25, None),
        ("035Y", 35.0, None),
        ("0", 0.0, None),
        ("n/a", None, None),
        ("", None, None),
        ("NaN", None, None),
        ("89+", 89.0, "was read as 89"),
        (">89", 89.0, "was read as 89"),
        ("35,5", 35.5, "was read as 35.5"),
        ("18M", 1.5, "was read as 1.5"),
        ("26 weeks", 0.4983, "was read as"),
        ("-3", None, "outside"),
        ("121", None, "outside"),
        ("1e9", None, "not a number"),
        ("inf", None, "not a number"),
        ("<5", None, "not a number"),
        ("20-25", None, "not a number"),
        ("old", None, "not a number"),
    ],
)
def test_ages(text: str, age: float | None, note: str | None) -> None:
    found, said = parse_age(text)
    assert found == age
    assert (said is None) == (note is None)
    assert note is None or note in said


def test_age_units_come_from_the_data_dictionary(root: Path) -> None:
    write(root, "participants.tsv", "participant_id\tage\nsub-01\t24\nsub-02\t30\n")
    write(root, "participants.json", '{"age": {"Units": "months"}, "x": 1}')
    assert [s.age for s in find(root).scans] == [2.0, 2.5]
    write(root, "participants.json", '{"age": {"Units": "years"}}')
    assert [s.age for s in find(root).scans] == [24.0, 30.0]
    write(root, "participants.json", "{")
    assert [s.age for s in find(root).scans] == [24.0, 30.0]


def test_odd_cells_warn_their_scan(root: Path) -> None:
    write(
        root, "participants.tsv", "participant_id\tage\tsex\nsub-01\t89+\t1\nsub-02\t4\tfemale\n"
    )
    first, second = find(root).scans
    assert (first.age, first.sex) == (89.0, None)
    assert len(first.warnings) == 2
    assert first.warnings[0].startswith("participants.tsv:age: age '89+'")
    assert (second.sex, second.warnings) == ("F", ())


@pytest.mark.parametrize(
    ("text", "sex"),
    [("M", "M"), ("male", "M"), ("f", "F"), ("Female", "F"), ("O", None), (None, None)],
)
def test_sexes(text: str | None, sex: str | None) -> None:
    assert parse_sex(text) == sex


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_no_table_stops_a_run(tmp_path: Path, raw: bytes) -> None:
    path = write(tmp_path, "participants.tsv", b"participant_id\tage\n" + raw)
    for content in (raw, b"participant_id\tage\n" + raw):
        path.write_bytes(content)
        table = read_table(path, "participant_id")
        assert table.columns or table.warnings
        for row_id, row in itertools.islice(table.rows.items(), 20):
            assert row_id
            parse_age(row.get("age", ""))


# ---------------------------------------------------------------- sidecars


def test_metadata_are_inherited(root: Path) -> None:
    write(root, "sub-01/ses-a/anat/sub-01_ses-a_acq-x_T1w.nii.gz")
    levels = {
        "T1w.json": {"Manufacturer": "root", "EchoTime": 1, "FlipAngle": 1, "Other": 1},
        "acq-x_T1w.json": {"EchoTime": 2, "FlipAngle": 2},
        "acq-y_T1w.json": {"EchoTime": 99},
        "T2w.json": {"EchoTime": 98},
        "task-x_bold.json": {"EchoTime": 97},
        "sub-01/sub-01_T1w.json": {"FlipAngle": 3, "RepetitionTime": 3},
        "sub-01/ses-a/sub-01_ses-a_T1w.json": {"RepetitionTime": 4, "InversionTime": 4},
        "sub-01/ses-a/anat/sub-01_ses-a_acq-x_T1w.json": {"InversionTime": 5},
        "sub-01/ses-a/anat/sub-01_ses-a_run-1_T1w.json": {"InversionTime": 96},
    }
    for name, content in levels.items():
        write(root, name, json.dumps(content))
    scan = next(s for s in find(root).scans if s.key == "sub-01_ses-a_acq-x")
    assert scan.metadata == {
        "Manufacturer": "root",
        "EchoTime": 2,
        "FlipAngle": 3,
        "RepetitionTime": 4,
        "InversionTime": 5,
    }
    assert (scan.site, scan.site_source) == ("root", "sidecar")


@pytest.mark.parametrize(
    ("maker", "model", "tesla", "label"),
    [
        ("Siemens", "Allegra", 3, "Siemens Allegra 3T"),
        ("SIEMENS", "Prisma_fit", 2.89362, "Siemens Prisma fit 3T"),
        ("Siemens Healthineers", "Prisma fit", "3.0", "Siemens Prisma fit 3T"),
        ("GE MEDICAL SYSTEMS", "DISCOVERY MR750", 30000, "GE DISCOVERY MR750 3T"),
        ("Philips Medical Systems", "Intera", 1.494, "Philips Intera 1.5T"),
        ("Hyperfine", "", 0.064, "Hyperfine 0.064T"),
        (None, None, "high", None),
        ("", " ", float("nan"), None),
        (None, None, None, None),
    ],
)
def test_site_labels(maker: object, model: object, tesla: object, label: str | None) -> None:
    facts = {
        "Manufacturer": maker,
        "ManufacturersModelName": model,
        "MagneticFieldStrength": tesla,
    }
    assert site_label({k: v for k, v in facts.items() if v is not None}) == label


# ---------------------------------------------------------------- masks


def test_masks_of_derivatives(root: Path, tmp_path: Path) -> None:
    write(root, "sub-01/ses-a/anat/sub-01_ses-a_run-1_T1w.nii.gz")
    one, two = tmp_path / "one", tmp_path / "two"
    for name in (
        "sub-01/anat/sub-01_space-MNI152NLin6Asym_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_run-1_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_desc-brain_mask.json",
        "sub-01/anat/sub-01_desc-head_mask.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_desc-brain_mask.nii.gz",
        "sub-02/anat/sub-02_space-orig_desc-brain_mask.nii.gz",
        "sub-02/anat/sub-02_space-T1w_desc-brain_mask.nii.gz",
    ):
        write(one, name)
    masks = {s.key: s.mask for s in find(root, derivatives={"one": one}).scans}
    assert masks == {
        "sub-01": None,
        "sub-01_ses-a_run-1": None,
        "sub-02": one / "sub-02/anat/sub-02_space-T1w_desc-brain_mask.nii.gz",
    }
    write(two, "sub-01/ses-a/anat/sub-01_ses-a_run-1_desc-brain_mask.nii.gz")
    write(two, "sub-01/anat/sub-01_desc-brain_mask.nii")
    write(two, "sub-02/anat/sub-02_desc-brain_mask.nii.gz")
    masks = {s.key: s.mask for s in find(root, derivatives={"one": one, "two": two}).scans}
    assert masks["sub-01"] == two / "sub-01/anat/sub-01_desc-brain_mask.nii"
    assert masks["sub-01_ses-a_run-1"].name == "sub-01_ses-a_run-1_desc-brain_mask.nii.gz"
    assert masks["sub-02"].is_relative_to(one)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "No *_desc-brain_mask" in find(root, derivatives={"empty": empty}).warnings[0]


# ---------------------------------------------------------------- real datasets

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "n", "site"),
    [("ixi_hh", 120, "IXI-HH"), ("ds002748", 24, "NSK"), ("ds000011", 7, "UCLA")],
)
def test_real_datasets(name: str, n: int, site: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not beside the repository")
    inventory = find(SHARED / name)
    assert len(inventory.scans) == n
    assert {scan.site for scan in inventory.scans} == {site}
    assert all(scan.age and 18 < scan.age < 90 and scan.sex for scan in inventory.scans)
    assert not any(scan.warnings for scan in inventory.scans)
    if name == "ds002748":
        diagnoses = [scan.diagnosis for scan in inventory.scans]
        assert (diagnoses.count("depression"), diagnoses.count("control")) == (16, 8)
