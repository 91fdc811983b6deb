"""What may be written on the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from command_line import parse, refuse

from bids_harmony.cli.parser import parse_args
from bids_harmony.config import RunConfig, available_cpus


def test_defaults(paths: list[str], tmp_path: Path) -> None:
    config = parse(paths)
    cpus = available_cpus()
    assert config.bids_dir == tmp_path / "in"
    assert config.output_dir == tmp_path / "out"
    assert config.work_dir == tmp_path / "cwd/work"
    assert (config.nprocs, config.omp_nthreads) == (cpus, max(1, min(cpus - 1, 8)))
    assert config.log_dir == tmp_path / "out/logs" / config.run_uuid
    same = {f.name for f in dataclasses.fields(config)} - {
        "bids_dir", "output_dir", "work_dir", "nprocs", "omp_nthreads", "run_uuid", "train",
    }  # fmt: skip
    plain = RunConfig(bids_dir=config.bids_dir, output_dir=config.output_dir)
    assert all(getattr(config, name) == getattr(plain, name) for name in same)
    assert parse(paths).run_uuid != config.run_uuid
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cwd/work").exists()


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ("--participant-label sub-01 02", "participant_label", ("01", "02")),
        ("--participant_label sub-bus01", "participant_label", ("bus01",)),
        ("--participant-label 1 --participant-label 2,3", "participant_label", ("1", "2", "3")),
        ("--session-label ses-a b", "session_label", ("a", "b")),
        ("--session_id a", "session_label", ("a",)),
        ("--session-id a", "session_label", ("a",)),
        ("--session_label a", "session_label", ("a",)),
        ("--skip-bids-validation", "skip_bids_validation", True),
        ("--skip_bids_validation", "skip_bids_validation", True),
        ("--skip_bids_validator", "skip_bids_validation", True),
        ("--skip-bids-validator", "skip_bids_validation", True),
        ("--nprocs 3", "nprocs", 3),
        ("--nthreads 3", "nprocs", 3),
        ("--n_cpus 3", "nprocs", 3),
        ("--n-cpus 3", "nprocs", 3),
        ("--omp-nthreads 2 --nprocs 4", "omp_nthreads", 2),
        ("--omp_nthreads 2 --nprocs 4", "omp_nthreads", 2),
        ("--nprocs 4", "omp_nthreads", 3),
        ("--nprocs 20", "omp_nthreads", 8),
        ("--nprocs 1", "omp_nthreads", 1),
        ("--mem 8", "mem_gb", 8.0),
        ("--mem 8GB", "mem_gb", 8.0),
        ("--mem 7.5G", "mem_gb", 7.5),
        ("--mem 8000MB", "mem_gb", 8.0),
        ("--mem-gb 8", "mem_gb", 8.0),
        ("--mem_gb 8", "mem_gb", 8.0),
        ("--mem-mb 8000", "mem_gb", 8.0),
        ("--mem_mb 8000", "mem_gb", 8.0),
        ("--stop-on-first-crash", "stop_on_first_crash", True),
        ("--write-graph", "write_graph", True),
        ("--write_graph", "write_graph", True),
        ("--resource-monitor", "resource_monitor", True),
        ("--reports-only", "reports_only", True),
        ("--run-uuid x-1", "run_uuid", "x-1"),
        ("--notrack", "notrack", True),
        ("--sloppy", "sloppy", True),
        ("--random-seed 7", "random_seed", 7),
        ("--random_seed=7", "random_seed", 7),
        ("--dry-run", "dry_run", True),
        ("--clean-workdir", "clean_workdir", True),
        ("--device cuda", "device", "cuda"),
        ("--skull-strip bet", "skull_strip", "bet"),
        ("--skull_strip skip", "skull_strip", "skip"),
        ("--registration flirt", "registration", "flirt"),
        ("--n-atlases 3", "n_atlases", 3),
        ("--bundle none", "bundle", "none"),
        ("--site-column x", "site_column", "x"),
        ("--age_column x", "age_column", "x"),
        ("--sex-column x", "sex_column", "x"),
        ("--diagnosis-column x", "diagnosis_column", "x"),
        ("--output-spaces T1w", "output_spaces", ("template", "T1w")),
        ("--output-spaces MNI152NLin2009aSym:res-2 anat", "output_spaces", ("template", "T1w")),
        ("--output_spaces template", "output_spaces", ("template",)),
        ("-v", "log_level", 20),
        ("-vv", "log_level", 15),
        ("-vvvvv", "log_level", 10),
        ("", "log_level", 25),
    ],
)  # fmt: skip
def test_options(paths: list[str], options: str, field: str, value: object) -> None:
    assert getattr(parse(paths, *options.split()), field) == value


@pytest.mark.parametrize(
    ("flags", "field", "folder"),
    [
        (("-w", "--work-dir", "--work_dir"), "work_dir", True),
        (("--bids-database-dir", "--bids_database_dir"), "bids_database_dir", True),
        (("--atlas-dir", "--atlas_dir"), "atlas_dir", True),
        (("--bundle",), "bundle", True),
        (("--template",), "template", False),
        (("--use-plugin", "--use_plugin", "--nipype-plugin-file"), "use_plugin", False),
    ],
)
def test_paths_become_absolute(
    paths: list[str], flags: tuple[str, ...], field: str, folder: bool
) -> None:
    target = Path.cwd() / "there"
    target.mkdir() if folder else target.write_text("")
    for flag in flags:
        assert str(getattr(parse(paths, flag, "there"), field)) == str(target)


def test_derivatives(paths: list[str], tmp_path: Path) -> None:
    for name in ("fmriprep", "a=b"):
        (tmp_path / name / "sub-01").mkdir(parents=True)
    config = parse(paths, "-d", f"x={tmp_path}/fmriprep", f"{tmp_path}/fmriprep")
    assert config.derivatives == {"x": tmp_path / "fmriprep", "fmriprep": tmp_path / "fmriprep"}
    config = parse(paths, "--derivatives", f"{tmp_path}/a=b", "--derivatives", "y=../fmriprep")
    assert config.derivatives == {"a=b": tmp_path / "a=b", "y": tmp_path / "fmriprep"}


def test_derivatives_of_one_name_are_refused(paths: list[str], tmp_path: Path) -> None:
    """Both folders are called ``masks``; the last one would have been searched alone."""
    a, b = tmp_path / "a" / "masks", tmp_path / "b" / "masks"
    for folder in (a, b):
        (folder / "sub-01").mkdir(parents=True)
    error = refuse([*paths, "participant", "--derivatives", str(a), str(b)])
    assert "masks is given twice" in error.cause
    assert parse(paths, "-d", str(a), str(a)).derivatives == {"masks": a}


def test_filter_file(paths: list[str], tmp_path: Path) -> None:
    file = tmp_path / "filter.json"
    file.write_text('{"T1w": {"acq": "x", "run": null}}')
    for flag in ("--bids-filter-file", "--bids_filter_file"):
        assert parse(paths, flag, str(file)).bids_filters == {"acquisition": ["x"], "run": [None]}
    file.write_text("{,}")
    assert "cannot be read" in refuse([*paths, "participant", flag, str(file)]).cause


def test_options_before_positionals_are_fine_when_they_take_one_value(paths: list[str]) -> None:
    assert parse_args(["--nprocs", "2", "-v", *paths, "participant"]).nprocs == 2
