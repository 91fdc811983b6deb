"""Ratings as people leave them: read, merged, honoured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bids_harmony.bids.dataset import Scan
from bids_harmony.config import RunConfig
from bids_harmony.errors import UsageError
from bids_harmony.qc.ratings import (
    DISPUTED,
    REJECTED,
    Rating,
    merge_ratings,
    rated_status,
    rating_files,
    read_ratings,
    unmatched,
    write_ratings,
)
from bids_harmony.training.data import find_training_scans, without_rejected


def ratings_file(path: Path, *rows: str) -> Path:
    lines = ["scan | rater | time | verdict | comment", *rows]
    path.write_text("".join(row.replace(" | ", "\t") + "\n" for row in lines))
    return path


def merged(*paths: Path) -> dict[str, Rating]:
    return merge_ratings(read_ratings(paths)[0])


def test_a_file_is_read_however_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "r.tsv"
    path.write_bytes(
        b"\xef\xbb\xbfVerdict\tscan\tnote\trater\tcomment\ttime\r\n"
        b'Reject\tsub-01/anat/sub-01_T1w.nii.gz\tx\tann\t"says ""ghosts"", no"\t2026-01-02\r\n'
        b'accept\tsub-02\tx\tann\t"an odd quote\t2026-01-02T10:00:00Z\r\n'
        b"\r\n"
        b"accept\tsub-03\r\n"
    )
    table, problems = read_ratings([path])
    assert problems == []
    assert table.to_numpy().tolist() == [
        ["sub-01", "ann", "2026-01-02", "reject", 'says "ghosts", no'],
        ["sub-02", "ann", "2026-01-02T10:00:00Z", "accept", '"an odd quote'],
        ["sub-03", "", "", "accept", ""],
    ]


@pytest.mark.parametrize(
    ("encoding", "separator", "said"),
    [
        ("utf-8-sig", ";", "is separated by ';'"),
        ("utf-16", "\t", "is UTF-16"),
        ("latin-1", "\t", "Latin-1"),
    ],
)
def test_a_file_is_read_in_any_encoding_and_with_any_separator(
    tmp_path: Path, encoding: str, separator: str, said: str
) -> None:
    path = tmp_path / "r.csv"
    rows = [["scan", "rater", "verdict"], ["sub-01", "Zo\xe9", "REJECT"], ["sub-02", "NA", "-"]]
    path.write_bytes("\r".join(map(separator.join, rows)).encode(encoding))
    table, (problem,) = read_ratings([path])
    assert said in problem
    assert table[["scan", "rater", "verdict"]].to_numpy().tolist() == [
        ["sub-01", "Zo\xe9", "reject"],
        ["sub-02", "NA", ""],
    ]


def test_a_scan_may_be_named_by_any_of_its_files(tmp_path: Path) -> None:
    names = {
        "sub-01\\anat\\sub-01_T1w.nii.gz": "sub-01", "x/sub-02_t1w.NII": "sub-02",
        "sub-03.html": "sub-03", "sub-04_acq-b_T1w.nii.gz": "sub-04_acq-b",
        "sub-05_run-1_space-T_chunk-2_res-2_desc-brain_mask.nii.gz": "sub-05_run-1_chunk-2",
    }  # fmt: skip
    rows = [f"{name} | ann | 2026-01-01 | reject | " for name in names]
    assert list(merged(ratings_file(tmp_path / "r.tsv", *rows))) == list(names.values())


def test_wrong_rows_are_named_and_kept_and_do_not_count(tmp_path: Path) -> None:
    path = ratings_file(
        tmp_path / "r.tsv",
        "sub-01 | ann | 2026-01-01 | fine | ",
        " | ann | 2026-01-01 | accept | ",
        "sub-02 | ann | yesterday | reject | ",
    )
    table, problems = read_ratings([path])
    assert [p.partition(f"{path}, ")[2] for p in problems] == [
        "line 2: the verdict 'fine' is none of accept, reject, unsure.",
        "line 3: names no scan.",
        "line 4: the time 'yesterday' cannot be read and counts as old.",
    ]
    assert len(table) == 3
    assert merge_ratings(table) == {"sub-02": Rating("reject", 1)}


def test_newest_verdict_of_a_rater_counts_whatever_the_order(tmp_path: Path) -> None:
    a = ratings_file(
        tmp_path / "a.tsv",
        "sub-01 | ann | 2026-03-01T12:00:00+02:00 | accept | ",
        "sub-02 | ann | 2026-03-01 | reject | ",
        "sub-02 | ann | 2026-03-02 |  | taken back",
    )
    b = ratings_file(
        tmp_path / "b.tsv",
        "sub-01 | ann | 2026-03-01T11:00:00Z | reject | an hour later",
        "sub-01 | ann | n/a | unsure | no time is old",
    )
    for order in ((a, b), (b, a), (a, b, a)):
        assert merged(*order) == {"sub-01": Rating("reject", 1)}


def test_disagreement_is_kept_and_decides_nothing(tmp_path: Path) -> None:
    verdicts = [("01", "ann", "accept"), ("01", "bob", "reject"), ("02", "ann", "reject"),
                ("02", "bob", "reject"), ("03", "ann", "accept"), ("04", "ann", "accept"),
                ("05", "ann", "unsure")]  # fmt: skip
    rows = [
        f"sub-{scan} | {rater} | 2026-03-01 | {verdict} | " for scan, rater, verdict in verdicts
    ]
    found = merged(ratings_file(tmp_path / "r.tsv", *rows))
    assert (found["sub-01"], found["sub-02"]) == (Rating(DISPUTED, 2), Rating("reject", 2))
    statuses = {"sub-01": "warn", "sub-02": "pass", "sub-03": "fail", "sub-04": "error",
                "sub-05": "fail", "sub-06": None}  # fmt: skip
    decided = {scan: rated_status(status, found.get(scan)) for scan, status in statuses.items()}
    assert decided == statuses | {"sub-02": REJECTED, "sub-03": "pass"}


@pytest.mark.parametrize("content", [b"", b"scan\trater\n", b"\xff\xfe\x00s", b"\0"])
def test_what_is_no_rating_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.tsv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"r\.tsv"):
        read_ratings([path])


def test_written_ratings_are_read_back_and_never_doubled(tmp_path: Path) -> None:
    a = ratings_file(tmp_path / "a.tsv", "sub-01 | ann |  | accept | good, I think")
    table, _ = read_ratings([a])
    own = tmp_path / "qc_ratings.tsv"
    write_ratings(own, table)
    again, _ = read_ratings([own, a])
    assert again.equals(table)
    config = RunConfig(bids_dir=tmp_path, output_dir=tmp_path, qc_ratings=(a, own))
    assert rating_files(config) == [own, a]


def test_training_leaves_out_what_raters_reject_and_takes_back_what_they_accept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = []
    for label, status in (("01", "pass"), ("02", "fail"), ("03", "fail")):
        stem = tmp_path / f"sub-{label}" / "anat" / f"sub-{label}_"
        stem.parent.mkdir(parents=True)
        for name in ("preproc_T1w", "brain_mask"):
            Path(f"{stem}space-MNI152NLin2009aSym_res-2_desc-{name}.nii.gz").touch()
        Path(f"{stem}desc-harmony_qc.json").write_text(f'{{"status": "{status}"}}')
        scans.append(
            Scan(path=Path("x"), key=f"sub-{label}", site="A", entities={"subject": label})
        )
    config = RunConfig(bids_dir=tmp_path, output_dir=tmp_path, level="train")

    def subjects() -> list[str]:
        found = find_training_scans(tmp_path, scans, config)[0]
        return [scan.subject for scan in without_rejected(found)]

    assert subjects() == ["01"]
    ratings_file(
        tmp_path / "qc_ratings.tsv",
        *("sub-01 | ann |  | reject | ", "sub-02 | ann |  | accept | "),
        *("sub-03 | ann |  | maybe | ", "sub-1 | ann |  | reject | "),
    )
    capsys.readouterr()
    assert subjects() == ["02"]
    out, told = (" ".join(text.split()) for text in capsys.readouterr())
    assert "preproc_T1w.nii.gz is excluded: rejected by raters." in out
    assert "line 4: the verdict 'maybe'" in told
    # A verdict on a scan that is not there.
    said = "1 rated scan without a record here: sub-1. Did you mean sub-01?"
    assert said in told
    table, _ = read_ratings(rating_files(config))
    assert unmatched(table, ["sub-01", "sub-02", "sub-03"]) == said
    assert unmatched(table, ["sub-01", "sub-02", "sub-03", "sub-1"]) == ""
    find_training_scans(tmp_path, scans, replace(config, participant_label=("01",)))
    assert "rated" not in capsys.readouterr().err
