"""Readers fed with anything at all: they read it or refuse it in a sentence, and stay small."""

from __future__ import annotations

import hashlib
import json
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bids_dataset import write
from faulty_scans import raw
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bids_harmony.anat.check import load_t1w
from bids_harmony.bids.filters import matches, read_filters
from bids_harmony.bids.sidecars import Sidecars, site_label
from bids_harmony.bids.tables import describe, read_table
from bids_harmony.errors import BundleError, HarmonyError, ScanError, UsageError
from bids_harmony.models.bundle import KEYS, load_bundle
from bids_harmony.qc.ratings import merge_ratings, read_ratings

#: What the readers may take beyond what the tests themselves have taken.
ROOM = 1.5e9
MANY = settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
DEEP = "[" * 100_000


def keyed(*keys: str, values: st.SearchStrategy[Any] = JSON) -> st.SearchStrategy[Any]:
    """Dictionaries with some of these keys."""
    return st.dictionaries(st.sampled_from(keys), values)


def encoded(content: object) -> bytes:
    return json.dumps(content).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module", autouse=True)
def little_memory() -> Iterator[None]:
    """Refuse memory beyond :data:`ROOM`: what takes more raises MemoryError and fails its test."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (int(used + ROOM), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def check(error: HarmonyError) -> None:
    """See that an error is said in one sentence, with its remedy."""
    assert error.cause
    assert error.remedy
    assert len(str(error).splitlines()) == 1


@MANY
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 347), st.binary(min_size=1, max_size=4)), max_size=6
    ),
    keep=st.none() | st.integers(0, 1000),
)
@example(changes=[(40, b"\x03\x00\x58\x02\x58\x02\x58\x02")], keep=None)
@example(changes=[(108, b"\x00\x00\x80\x7f")], keep=None)
@example(changes=[(261, b"\x00\x00@")], keep=None)
@example(changes=[(309, b"\x00\x00[")], keep=None)
def test_no_header_raises_anything_else_or_takes_memory(
    tmp_path: Path, changes: list[tuple[int, bytes]], keep: int | None
) -> None:
    content = bytearray(raw())
    for place, new in changes:
        content[place : place + len(new)] = new
    path = write(tmp_path, "x_T1w.nii", bytes(content[:keep]))
    try:
        assert load_t1w(path)[0].ndim == 3
    except ScanError as error:
        check(error)


@MANY
@given(keyed("Manufacturer", "MagneticFieldStrength", "x"))
@example({"MagneticFieldStrength": 10**400})
def test_no_sidecar_stops_a_run(tmp_path: Path, content: dict[str, Any]) -> None:
    scan = write(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    whole = encoded(content)
    for text in (whole, whole[:-1], encoded([content]), b"\x00"):
        write(tmp_path, "sub-01/anat/sub-01_T1w.json", text)
        facts, warnings = Sidecars(tmp_path).facts(scan)
        json.dumps(facts, allow_nan=False)
        site_label(facts)
        assert facts.keys() <= content.keys()
        assert all("\n" not in line for line in warnings)


HEADER = b"participant_id\tfilename\tsession_id\tage\tsex\tsite\tsession\n"


@MANY
@given(
    st.binary(max_size=300),
    keyed("age", "Age", "x", values=JSON | keyed("Units", "unit")),
    st.sampled_from(["participants", "sub-01_scans", "sub-01_sessions"]),
)
@example(b"participant_id\tage\n\t1e999\nsub-01\t" + b"9" * 5000, {}, "participants")
@example(b"sub-1\tsub-1_T1w.nii\t1\t1\tM\tA\t1\n", {"age": {"Units": "month"}}, "sub-01_scans")
def test_no_table_and_no_data_dictionary_stops_a_run(
    tmp_path: Path, content: bytes, dictionary: dict[str, Any], name: str
) -> None:
    for text in (content, HEADER + content):
        path = write(tmp_path, f"{name}.tsv", text)
        write(tmp_path, f"{name}.json", encoded(dictionary)[: len(content) or None])
        table = read_table(path)
        assert all(table.rows)
        assert table.columns or table.warnings
        said = [*table.warnings]
        for row in [*list(table.rows)[:5], "01", "1_1", ""]:
            facts = describe([(table, row)])
            assert 0 <= facts.get("age", 0) <= 120
            said += facts["warnings"]
        assert all("\n" not in line and line.encode() for line in said)
        try:
            merge_ratings(read_ratings([path])[0])
        except UsageError as error:
            check(error)


@MANY
@given(JSON | keyed("t1w", "bold", "T1W", values=JSON | keyed("run", "acquisition", "session")))
@example({"t1w": {"a\nb\u2028c": None}})
def test_filter_files_are_read_or_refused(tmp_path: Path, content: object) -> None:
    for text in (encoded(content), encoded(content)[:-1], b"\xff\xfe{"):
        path = write(tmp_path, "filter.json", text)
        try:
            filters = read_filters(path)
        except UsageError as error:
            check(error)
        else:
            matches("sub-01_run-1_T1w.nii.gz", {"subject": "01", "run": "1"}, filters)


def test_json_nested_without_end_stops_nothing(tmp_path: Path) -> None:
    write(tmp_path, "sub-01/anat/sub-01_T1w.json", DEEP)
    write(tmp_path, "participants.json", DEEP)
    table = write(tmp_path, "participants.tsv", "participant_id\tage\nsub-01\t30\n")
    scan = write(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    facts, (warning,) = Sidecars(tmp_path).facts(scan)
    assert facts == {}
    assert "cannot be read" in warning
    assert read_table(table).rows == {"01": {"participant_id": "sub-01", "age": "30"}}
    with pytest.raises(UsageError):
        read_filters(write(tmp_path, "filter.json", DEEP))


INFO = st.fixed_dictionaries(
    dict.fromkeys(KEYS - {"networks"}, JSON)
    | {"networks": st.dictionaries(st.text(max_size=3), JSON | keyed("kind", "files", "options"))}
)


@settings(MANY, max_examples=25)
@given(INFO, st.binary(max_size=64))
def test_bundles_are_read_or_refused(info: dict[str, Any], weights: bytes) -> None:
    from bids_harmony.config import Contract

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "w").write_bytes(weights)
        whole = {
            **info, "files": {"w": hashlib.sha256(weights).hexdigest()},
            "contract": Contract().to_dict(), "format": 1, "targets": {}, "sites": {},
        }  # fmt: skip
        for values in (info, whole):
            (folder / "bundle.json").write_bytes(encoded(values))
            try:
                load_bundle(folder).networks()
            except BundleError as error:
                check(error)
