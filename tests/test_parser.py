"""What may be written on the command line, and what is answered to what may not."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bids_harmony.cli.checks import CONTAINER_VARIABLES
from bids_harmony.cli.parser import build_parser, parse_args
from bids_harmony.config import RunConfig, available_cpus
from bids_harmony.errors import UsageError


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """BIDS_DIR and OUTPUT_DIR; the current folder is elsewhere, for ./work."""
    for name in CONTAINER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "in/sub-01/anat").mkdir(parents=True)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return [str(tmp_path / "in"), str(tmp_path / "out")]


def parse(paths: list[str], *options: str, level: str = "participant") -> RunConfig:
    return parse_args([*paths, level, *options])


def refuse(argv: list[str]) -> UsageError:
    """The error for some arguments, which must have one sentence of cause and one of remedy."""
    with pytest.raises(UsageError) as info:
        parse_args(argv)
    error = info.value
    assert error.exit_code == 2
    assert error.cause.endswith((".", "?"))
    assert error.remedy
    assert "\n" not in str(error)
    return error


# ---------------------------------------------------------------- what may be written


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


def test_filter_file(paths: list[str], tmp_path: Path) -> None:
    file = tmp_path / "filter.json"
    file.write_text('{"T1w": {"acq": "x", "run": null}}')
    for flag in ("--bids-filter-file", "--bids_filter_file"):
        assert parse(paths, flag, str(file)).bids_filters == {"acquisition": ["x"], "run": [None]}
    file.write_text("{,}")
    assert "JSON syntax error in" in refuse([*paths, "participant", flag, str(file)]).cause


def test_training_options(paths: list[str]) -> None:
    config = parse(
        paths, "--reference-site", "A", "--targets", "age", "--folds", "3", "--holdout", "0.1",
        "--random-seed", "5", "--nprocs", "3", level="train",
    )  # fmt: skip
    train = config.train
    assert (train.reference_site, train.targets, train.folds, train.holdout) == (
        "A",
        ("age",),
        3,
        0.1,
    )
    again = parse(
        paths, "--target", "age", "--target", "diagnosis", "bmi", "--force",
        "--fit-filter", "diagnosis == 'control'", level="train",
    ).train  # fmt: skip
    assert (again.targets, again.force) == (("age", "diagnosis", "bmi"), True)
    assert again.fit_filter == "diagnosis == 'control'"
    assert (train.seed, train.device, train.threads) == (5, "auto", 3)
    assert "--folds" in train_flag_error(paths)


def test_options_of_the_harmonizer(paths: list[str]) -> None:
    train = parse(
        paths, "--preset", "article", "--batch", "8", "--devices", "2", "--nodes", "3",
        "--precision", "32-true", "--harmonizer-steps", "70", "--epoch-steps", "9",
        "--fast-dev-run", "--add-site", "C", level="train",
    ).train  # fmt: skip
    assert (train.preset, train.batch, train.precision, train.add_site) == (
        "article", 8, "32-true", "C",
    )  # fmt: skip
    assert (train.devices, train.nodes) == (2, 3)
    short = train.shortened()
    assert short.harmonizer_steps < 10 < train.harmonizer_steps
    assert replace(train, fast_dev_run=False).shortened().epoch_steps == 9


def train_flag_error(paths: list[str]) -> str:
    return refuse([*paths, "participant", "--folds", "3"]).cause


# ---------------------------------------------------------------- configuration file


def test_configuration_survives_json(paths: list[str], tmp_path: Path) -> None:
    (tmp_path / "d/sub-01").mkdir(parents=True)
    config = parse(
        paths, "--participant-label", "01", "--mem", "4", "-d", f"n={tmp_path}/d",
        "--output-spaces", "T1w", "--work-dir", str(tmp_path / "w"), "-v",
    )  # fmt: skip
    assert RunConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["derivatives"] == {"n": str(tmp_path / "d")}


def test_config_file_is_taken_over_and_overridden(paths: list[str], tmp_path: Path) -> None:
    first = parse(
        paths, "--skull-strip", "bet", "--nprocs", "5", "--session-label", "a", "--dry-run"
    )
    file = tmp_path / "c.json"
    file.write_text(first.to_json())
    config = parse(paths, "--config-file", str(file), "--nprocs", "2")
    assert (config.skull_strip, config.nprocs, config.session_label) == ("bet", 2, ("a",))
    assert config.dry_run is False
    assert config.run_uuid != first.run_uuid
    trained = parse(paths, "--folds", "3", "--model-name", "m", level="train")
    file.write_text(trained.to_json())
    config = parse(paths, "--config-file", str(file), "--folds", "6", level="train")
    assert (config.train.folds, config.train.model_name) == (6, "m")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{", "is not valid JSON"),
        ("3", "does not hold a JSON object"),
        ('{"nproc": 3}', "unknown options: nproc"),
        ('{"nprocs": "3"}', 'nprocs the value "3"'),
        ('{"nprocs": true}', "nprocs the value true"),
        ('{"participant_label": "01"}', "participant_label the value"),
        ('{"train": {"fold": 3}}', "train the value"),
        ('{"skull_strip": "magic"}', "--skull-strip is 'magic'"),
        ('{"template": "/absent/x.nii"}', "--template does not exist"),
    ],
)
def test_wrong_config_files(paths: list[str], tmp_path: Path, text: str, cause: str) -> None:
    file = tmp_path / "c.json"
    file.write_text(text)
    assert cause in refuse([*paths, "participant", "--config-file", str(file)]).cause


# ---------------------------------------------------------------- what may not be written


@pytest.mark.parametrize(
    ("options", "cause", "remedy"),
    [
        ("--nprocs 0", "--nprocs is 0", "at least 1"),
        ("--nprocs x", "--nprocs 'x' is not a whole number", "whole number"),
        ("--nprocs 1.5", "is not a whole number", "whole number"),
        ("--omp-nthreads -1", "--omp-nthreads is -1", "at least 1"),
        ("--n-atlases 0", "--n-atlases is 0", "at least 1"),
        ("--random-seed -1", "--random-seed is -1", "at least 0"),
        ("--random-seed 4294967296", "--random-seed is", "below"),
        ("--device gpu", "--device is 'gpu'", "auto, cpu, cuda"),
        ("--skull-strip hd-bet", "--skull-strip is 'hd-bet'", "deepbet"),
        ("--registration spm", "--registration is 'spm'", "flirt"),
        ("--mem lots", "--mem lots is no amount", "--mem 8"),
        ("--mem 1.2.3", "--mem 1.2.3 is no amount", "--mem 8"),
        ("--mem 0", "--mem is 0 GB", "GB"),
        ("--mem 16000", "is 16000 GB", "--mem-mb 16000"),
        ("--mem-mb 8GB", "--mem-mb 8GB", "MB"),
        ("--holdout much", "--holdout 'much' is not a number", "number"),
        ("--output-spaces MNI152NLin6Asym", "no such space", "T1w"),
        ("--skull-strip multi-atlas", "needs atlases", "--atlas-dir"),
        ("--run-uuid ../x", "cannot name a folder", "letters"),
        ("--reports-only --run-uuid none", "no earlier run", "--run-uuid"),
        ("--participant-lable 01", "Unknown argument: --participant-lable", "--participant-label"),
        ("--participant 01", "Unknown argument: --participant", "--participant-label"),
        ("extra", "Unknown argument: extra", "--help"),
        ("--participant-label", "--participant-label: expected at least one", "--help"),
        ("--template absent.nii", "--template does not exist", "path"),
        ("--template .", "--template is not a file", "file"),
        ("--bundle absent", "--bundle does not exist", "path"),
        ("--use-plugin absent", "--use-plugin does not exist", "path"),
        ("--config-file absent", "cannot be read", "path"),
        ("--bids-filter-file absent", "cannot be read", "path"),
        ("-d x=absent", "--derivatives x does not exist", "path"),
    ],
)  # fmt: skip
def test_wrong_values(paths: list[str], options: str, cause: str, remedy: str) -> None:
    error = refuse([*paths, "participant", *options.split()])
    assert cause in error.cause
    assert remedy in error.remedy


@pytest.mark.parametrize("level", ["group", "evaluate"])
def test_levels_of_later_versions(paths: list[str], level: str) -> None:
    error = refuse([*paths, level])
    assert error.cause == f"The {level} level is not part of this version."
    assert "participant" in error.remedy


def test_unknown_level(paths: list[str]) -> None:
    error = refuse([*paths, "subject"])
    assert "'subject'" in error.cause
    assert "participant" in error.remedy


def test_positionals_after_a_list_are_put_first(paths: list[str]) -> None:
    bids, out = paths
    first = f"bids_harmony {bids} {out} participant --participant-label 01"
    for argv in (
        ["--participant-label", "01", bids, out, "participant"],
        [bids, "--participant-label", "01", out, "participant"],
        [bids, out, "--participant-label", "01", "participant"],
    ):
        error = refuse(argv)
        assert error.cause.startswith("Missing: ")
        assert error.remedy == f"Put the paths and the level first: {first}"
    error = refuse(["-d", "x=/y", bids, out, "participant", "--nprocs", "2"])
    assert error.remedy.endswith(f"{bids} {out} participant -d x=/y --nprocs 2")
    for argv in ([], [bids], ["--nprocs", "2"], ["--nprocs", "2", bids, "participant"]):
        assert (
            refuse(argv).remedy == "Write: bids_harmony BIDS_DIR OUTPUT_DIR participant [options]"
        )


def test_options_before_positionals_are_fine_when_they_take_one_value(paths: list[str]) -> None:
    assert parse_args(["--nprocs", "2", "-v", *paths, "participant"]).nprocs == 2


# ---------------------------------------------------------------- paths


def test_dataset_must_be_a_folder(paths: list[str], tmp_path: Path, monkeypatch) -> None:
    error = refuse([str(tmp_path / "absent"), paths[1], "participant"])
    assert error.cause == f"The dataset does not exist: {tmp_path}/absent."
    assert "container" not in error.remedy
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refuse([str(tmp_path / "file"), paths[1], "participant"]).cause
    for name in ("IS_DOCKER_8395080871", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        monkeypatch.setenv(name, "1")
        remedy = refuse([str(tmp_path / "absent"), paths[1], "participant"]).remedy
        assert "In a container only mounted folders are seen" in remedy
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("out", "work", "cause"),
    [
        ("in", "w", "is the dataset"),
        ("in/out", "w", "among the raw data"),
        ("in/sub-01/out", "w", "among the raw data"),
        ("in/derivatives", "w", "derivatives of all programs"),
        ("link", "w", "is the dataset"),
        ("out", "in/work", "inside the dataset"),
        ("out", "in", "inside the dataset"),
        ("out", "out", "is the output folder"),
        ("out", ".", "is the output folder, or holds it"),
    ],
)
def test_places_that_do_harm(
    paths: list[str], tmp_path: Path, out: str, work: str, cause: str
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "in")
    error = refuse([paths[0], f"{tmp_path}/{out}", "participant", "-w", f"{tmp_path}/{work}"])
    assert cause in error.cause
    if work == "w":
        assert f"{tmp_path}/in/derivatives/bids_harmony" in error.remedy


def test_work_folder_in_the_dataset_by_default(paths: list[str], monkeypatch) -> None:
    monkeypatch.chdir(paths[0])
    assert "--work-dir" in refuse([*paths, "participant"]).remedy


def test_places_that_are_fine(paths: list[str], tmp_path: Path, capsys) -> None:
    for out in ("in/derivatives/bids_harmony", "in/derivatives/bids_harmony-0.1", "."):
        parse([paths[0], f"{tmp_path}/{out}"], "-w", f"{tmp_path}/w/x") if out != "." else None
    assert capsys.readouterr().err == ""
    parse([paths[0], f"{tmp_path}/in/derivatives/mine"])
    assert "contain 'bids_harmony'" in capsys.readouterr().err
    parse(paths, "-w", f"{paths[1]}/work")
    assert "inside the output folder" in capsys.readouterr().err
    parse(paths, "--nprocs", "1", "--omp-nthreads", "2")
    assert "--omp-nthreads 2 is more than --nprocs 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("description", "cause"),
    [
        ({"Name": "x", "BIDSVersion": "1.8.0"}, "a raw dataset"),
        ({"DatasetType": "raw"}, "a raw dataset"),
        ({"DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep"}]}, "fMRIPrep"),
        ({"DatasetType": "derivative", "GeneratedBy": [{"Name": "bids_harmony"}]}, None),
        ({"DatasetType": "derivative"}, None),
        ([], None),
    ],
)
def test_output_of_other_programs_is_left_alone(
    paths: list[str], description: object, cause: str | None
) -> None:
    out = Path(paths[1])
    out.mkdir()
    (out / "dataset_description.json").write_text(json.dumps(description))
    if cause is None:
        parse(paths)
    else:
        assert cause in refuse([*paths, "participant"]).cause


def test_places_must_be_writable(paths: list[str], tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    error = refuse([paths[0], f"{tmp_path}/file/out", "participant"])
    assert "is not a folder" in error.cause
    locked = tmp_path / "locked"
    locked.mkdir()
    real = os.access
    # Tests may run as root, to whom every folder is writable.
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p) != locked and real(p, mode))
    for argv in (
        [paths[0], f"{locked}/a/out", "participant"],
        [*paths, "participant", "-w", str(locked)],
        [*paths, "participant", "--bids-database-dir", f"{locked}/db"],
    ):
        error = refuse(argv)
        assert f"no permission for {locked}" in error.cause
        assert "permissions" in error.remedy


def test_derivatives_must_be_one_pipeline(paths: list[str], tmp_path: Path) -> None:
    (tmp_path / "in/derivatives/fmriprep/sub-01").mkdir(parents=True)
    error = refuse([*paths, "participant", "-d", f"{tmp_path}/in/derivatives"])
    assert "holds no sub-* folder" in error.cause
    assert f"fmriprep={tmp_path}/in/derivatives/fmriprep" in error.remedy


# ---------------------------------------------------------------- help


def test_help_names_every_option_once_and_its_default() -> None:
    text = build_parser().format_help()
    for action in build_parser()._actions:
        assert action.help
        if action.option_strings:
            long = [name for name in action.option_strings if name.startswith("--")]
            assert f"{long[0]} " in text or f"{long[0]}\n" in text
            for name in long:
                assert name.replace("-", "_").replace("__", "--", 1) in long
    assert "_label" not in text
    for default in ("(default: auto)", "(default: 42)", "(default: 6)"):
        assert default in " ".join(text.split())


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    code = (
        "import sys\n"
        "from bids_harmony.cli.run import main\n"
        "try:\n"
        f"    main([{option!r}])\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "heavy = {'torch', 'ants', 'nipype', 'bids', 'nibabel', 'pandas', 'numpy', 'deepbet'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "bids_harmony" in done.stdout


def test_errors_reach_the_user_as_two_sentences(paths: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bids_harmony", *paths, "participant", "--nprocs", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "bids_harmony: error: --nprocs is 0.",
        "  It must be at least 1.",
    ]
