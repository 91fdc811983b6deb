"""The command ``bids_harmony-simulate``."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_simulation_dataset import digests

from bids_harmony.cli import simulate
from bids_harmony.simulation.defects import KINDS


def test_command_writes_a_dataset_and_says_what_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bids"
    argv = [str(out), "--sites", "1", "--subjects", "1", "--resolution", "4", "--nprocs", "1"]
    assert simulate.main(argv) == 0
    said = capsys.readouterr().out
    assert "[1/1] sub-01" in said
    assert f"bids_harmony {out} {out / 'derivatives' / 'bids_harmony'} participant" in said
    before = digests(out)

    assert simulate.main(argv) == 2
    complaint = capsys.readouterr().err
    assert "is not empty" in complaint
    assert "--overwrite" in complaint
    assert digests(out) == before

    kept = out / "derivatives" / "bids_harmony" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("a result")
    (out / "sub-99").mkdir()
    assert simulate.main([*argv, "--overwrite"]) == 0
    assert digests(out) == before | {str(kept.relative_to(out)): digests(kept.parent)["kept.txt"]}
    assert not (out / "sub-99").exists()


def test_overwrite_replaces_nothing_but_simulated_datasets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dataset_description.json").write_text('{"Name": "real"}')
    (tmp_path / "sub-01").mkdir()
    assert simulate.main([str(tmp_path), "--overwrite"]) == 2
    assert "did not write" in capsys.readouterr().err
    assert (tmp_path / "sub-01").is_dir()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--sites", "0"],
        ["--subjects", "-1"],
        ["--seed", "-1"],
        ["--resolution", "9"],
        ["--resolution", "nan"],
        ["--stripped-sites", "4"],
        ["--nprocs", "0"],
        ["--subjects", "3", "4"],
        ["--subjects", "3", "4", "0"],
        ["--travelling", "--subjects", "3", "4", "5"],
        ["--pathology", "1.5"],
        ["--bad", "-0.1"],
        ["--bad", "nan"],
        ["--confound", "31"],
        ["--confound", "nan"],
        ["--diagnosis-effect", "-0.1"],
        ["--diagnosis-effect", "nan"],
        ["--confound", "10", "--sites", "1"],
        ["--confound", "10", "--travelling"],
        ["--bad-kinds", "ugly"],
        ["--bad", "1", "--pathology", "0.5"],
        ["--anatomies", "nowhere"],
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    out = tmp_path / "bids"
    assert simulate.main([str(out), *wrong]) == 2
    complaint = capsys.readouterr().err
    assert wrong[0] in complaint or wrong[1] in complaint
    assert not out.exists()


def test_an_output_that_cannot_be_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        assert simulate.main([str(path)]) == 2
        assert str(path) in capsys.readouterr().err


def test_help_is_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        simulate.main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for title in ("Sites and heads:", "What heads are like:", "What scans are like:", "Running:"):
        assert title in said
    assert ", ".join(KINDS) in " ".join(said.split()).replace("- ", "-")
