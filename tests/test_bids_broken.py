"""What is broken in a dataset costs its own scans at most."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from bids_dataset import find, keys, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bids_harmony.bids_tables import parse_age, read_table


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
def test_bad_dataset_description_only_warns(dataset: Path, content: str, warning: str) -> None:
    (dataset / "dataset_description.json").unlink()
    if content is not None:
        write(dataset, "dataset_description.json", content)
    for labels in ((), ("01", "02")):
        inventory = find(dataset, participant_label=labels)
        assert keys(inventory) == ["sub-01", "sub-02"]
        assert warning in inventory.warnings[0]


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x01\x02", b"nonsense", b"age\tsex\n30\tM\n", b"\xff\xfeab\x00\xd8"]
)
def test_malformed_participants_table_only_warns(dataset: Path, content: bytes) -> None:
    write(dataset, "participants.tsv", content)
    inventory = find(dataset)
    assert keys(inventory) == ["sub-01", "sub-02"]
    assert len(inventory.warnings) == 1
    assert "participants.tsv" in inventory.warnings[0]
    assert "not used" in inventory.warnings[0]
    assert inventory.scans[0].age is None


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


def test_malformed_sidecar_concerns_its_scans_only(dataset: Path) -> None:
    write(dataset, "sub-01/anat/sub-01_T1w.json", '{"Manufacturer": ')
    write(dataset, "sub-02/anat/sub-02_T1w.json", '{"Manufacturer": "GE", "EchoTime": 0.003}')
    write(dataset, "sub-02/func/sub-02_task-x_bold.json", "{")
    bad, good = find(dataset).scans
    assert "sub-01/anat/sub-01_T1w.json cannot be read" in bad.warnings[0]
    assert bad.site == "unknown"
    assert (good.site, good.site_source, good.warnings) == ("GE", "sidecar", ())
    assert good.metadata == {"Manufacturer": "GE", "EchoTime": 0.003}
    write(dataset, "sub-02/anat/sub-02_T1w.json", '{"EchoTime": NaN, "Manufacturer": "\\ud800"}')
    assert find(dataset).scans[1].metadata == {}
    write(dataset, "T1w.json", "[1, 2]")
    assert all("T1w.json" in scan.warnings[0] for scan in find(dataset).scans)


def test_broken_links_are_listed_so_that_the_check_names_them(dataset: Path) -> None:
    link = dataset / "sub-03/anat/sub-03_T1w.nii.gz"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../.git/annex/objects/nothing")
    assert keys(find(dataset)) == ["sub-01", "sub-02", "sub-03"]


def test_names_that_are_not_utf8_can_be_printed(dataset: Path) -> None:
    folder = os.fsencode(dataset) + b"/sub-01/anat/"
    Path(os.fsdecode(folder + b"sub-01_acq-\xff_T1w.nii.gz")).touch()
    Path(os.fsdecode(os.fsencode(dataset) + b"/sub-\xfe")).mkdir()
    inventory = find(dataset)
    assert keys(inventory) == ["sub-01", "sub-02"]
    assert len(inventory.skipped) == 2
    for text in (*(s.what + s.why for s in inventory.skipped), *inventory.warnings):
        assert text.encode()
