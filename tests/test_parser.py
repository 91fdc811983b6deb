"""What may be written on the command line, and where data may lie and results may go."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from command_line import harmony, parse, refuse, run

from bids_harmony.cli.parser import build_parser
from bids_harmony.config import RunConfig, TrainOptions, available_cpus


def test_defaults(paths: list[str], tmp_path: Path) -> None:
    config, cpus = parse(paths), available_cpus()
    assert config.bids_dir == tmp_path / "in"
    assert config.output_dir == tmp_path / "out"
    assert config.work_dir == tmp_path / "cwd/work"
    assert (config.nprocs, config.omp_nthreads) == (cpus, max(1, min(cpus - 1, 8)))
    assert config.log_dir == tmp_path / "out/logs" / config.run_uuid
    assert parse(paths).run_uuid != config.run_uuid
    plain = RunConfig(
        bids_dir=config.bids_dir, output_dir=config.output_dir, run_uuid=config.run_uuid,
        omp_nthreads=config.omp_nthreads, train=TrainOptions(threads=cpus),
    )  # fmt: skip
    assert config == plain
    assert json.loads(config.to_json())["train"]["contract"] == json.loads(
        json.dumps(asdict(plain.train.contract))
    )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cwd/work").exists()


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ("--participant-label sub-01 02", "participant_label", ("01", "02")),
        ("--participant_label sub-bus01", "participant_label", ("bus01",)),
        ("--participant-label 1 --participant-label 2,3", "participant_label", ("1", "2", "3")),
        ("--session-label ses-a b", "session_label", ("a", "b")),
        ("--nthreads 3", "nprocs", 3),
        ("--n_cpus 3", "nprocs", 3),
        ("--omp_nthreads=2 --nprocs 4", "omp_nthreads", 2),
        ("--nprocs 4", "omp_nthreads", 3),
        ("--nprocs 20", "omp_nthreads", 8),
        ("--nprocs 1", "omp_nthreads", 1),
        ("--mem 8", "mem_gb", 8.0),
        ("--mem 7.5G", "mem_gb", 7.5),
        ("--mem 8000MB", "mem_gb", 8.0),
        ("--notrack --skip_bids_validation", "sloppy", False),
        ("--testing", "sloppy", True),
        ("--random_seed=7", "random_seed", 7),
        ("--bundle none", "bundle", "none"),
        ("--fit-filter x=='a_b'", "fit_filter", "x=='a_b'"),
        ("--age_column x", "age_column", "x"),
        ("--output-spaces T1w", "output_spaces", ("template", "T1w")),
        ("--output-spaces MNI152NLin2009aSym:res-2 anat", "output_spaces", ("template", "T1w")),
        ("--output_spaces template", "output_spaces", ("template",)),
        ("-v", "log_level", 20),
        ("-vvvvv", "log_level", 10),
        ("", "log_level", 25),
    ],
)
def test_options(paths: list[str], options: str, field: str, value: object) -> None:
    assert getattr(parse(paths, *options.split()), field) == value


def test_paths_become_absolute(paths: list[str]) -> None:
    Path("folder").mkdir()
    Path("file").touch()
    config = parse(paths, "-w", "folder", "--atlas_dir", "folder", "--template", "file")
    assert (config.work_dir, config.atlas_dir) == (Path.cwd() / "folder", Path.cwd() / "folder")
    assert config.template == Path.cwd() / "file"
    assert parse(paths, "--bundle", "folder").bundle == str(Path.cwd() / "folder")


def test_derivatives_are_of_one_pipeline_each(paths: list[str], tmp_path: Path) -> None:
    for name in ("fmriprep", "a=b"):
        (tmp_path / name / "sub-01").mkdir(parents=True)
    config = parse(paths, "-d", f"{tmp_path}/a=b", "--derivatives", "../fmriprep")
    assert config.derivatives == (tmp_path / "a=b", tmp_path / "fmriprep")
    error = refuse([*paths, "participant", "-d", str(tmp_path)])
    assert f"{tmp_path} contains no sub-* folder" in error.cause
    assert f"{tmp_path}/fmriprep" in error.remedy


def test_filter_file(paths: list[str], tmp_path: Path) -> None:
    file = tmp_path / "filter.json"
    file.write_text('{"T1w": {"acq": "x", "run": null}}')
    config = parse(paths, "--bids_filter_file", str(file))
    assert config.bids_filters == {"acquisition": ["x"], "run": [None]}
    file.write_text("{,}")
    error = refuse([*paths, "participant", "--bids-filter-file", str(file)])
    assert "cannot be read" in error.cause


def test_training_options(paths: list[str]) -> None:
    train = parse(
        paths, "--reference-site", "01", "--targets", "age", "--folds", "3", "--holdout", "0.1",
        "--random-seed", "5", "--nprocs", "3", level="train",
    ).train  # fmt: skip
    assert (train.reference_site, train.targets) == ("1", ("age",))
    assert (train.folds, train.holdout) == (3, 0.1)
    assert (train.seed, train.device, train.threads) == (5, "auto", 3)
    config = parse(
        paths, "--target", "age", "--target", "diagnosis", "bmi", "--train-sites", "A", "A+02",
        "--fit-filter", "diagnosis == 'control'", "--predictor-steps", "70", level="evaluate",
    )  # fmt: skip
    assert config.train.targets == ("age", "diagnosis", "bmi")
    assert config.train.fit_filter == config.fit_filter == "diagnosis == 'control'"
    assert config.train.shortened().predictor_steps == 70
    assert config.evaluate.train_sites == ("A", "A+02")
    assert config.evaluate.experiments == ("sites", "rotations")
    train = parse(paths, "--predictor-steps", "70", "--fast-dev-run", level="train").train
    assert (train.shortened().predictor_steps, train.shortened().folds) == (2, 2)


@pytest.mark.parametrize(
    ("level", "options", "ignored"),
    [
        ("train", "--skull-strip skip --nprocs 2", "--skull-strip"),
        ("evaluate", "--holdout 0.2 --skull-strip skip", "--holdout, --skull-strip"),
        ("participant", "--folds 3", "--folds"),
        (
            "calibrate",
            "--calibration x --participant-label 1",
            "--calibration, --participant-label",
        ),
        ("train", "--nprocs 2 --holdout 0.2", ""),
        ("participant", "--skull-strip skip", ""),
    ],
)
def test_options_that_a_level_ignores_are_named(
    paths: list[str], level: str, options: str, ignored: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parse(paths, *options.split(), level=level)
    warning = f"the {level} level ignores {ignored}."
    assert (warning in capsys.readouterr().err) if ignored else not capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "cause", "remedy"),
    [
        ("--nprocs 0", "--nprocs: 0 is not at least 1", "--help"),
        ("--random-seed -1", "--random-seed: -1 is not at least 0", "--help"),
        ("--random-seed 4294967296", "at most", "--help"),
        ("--device gpu", "--device: invalid choice: 'gpu' (choose from", "--help"),
        ("--mem 0", "--mem: '0' is not an amount", "--help"),
        ("--mem 16000", "such as 8 or 8000MB", "--help"),
        ("--holdout nan", "nan is not at least 0.0", "--help"),
        ("--model-name ../x", "is not a valid folder name", "--help"),
        ("--experiments size sex", "--experiments: invalid choice: 'sex'", "--help"),
        ("--output-spaces MNI152NLin6Asym", "is not available", "T1w"),
        ("--skull-strip multi-atlas", "needs atlases", "--atlas-dir"),
        ("--participant-lable 01", "arguments: --participant-lable", "--participant-label?"),
        ("extra", "Unrecognized arguments: extra", "--help"),
        ("--participant-label", "--participant-label: expected at least one", "--help"),
        ("--template absent.nii", "--template does not exist", "path"),
        ("--bids-filter-file absent", "cannot be read", "path"),
        ("-d absent", "--derivatives does not exist", "path"),
    ],
)
def test_wrong_values(paths: list[str], options: str, cause: str, remedy: str) -> None:
    error = refuse([*paths, "participant", *options.split()])
    assert cause in error.cause
    assert remedy in error.remedy


def test_wrong_positionals(paths: list[str]) -> None:
    assert "LEVEL: invalid choice: 'subject'" in refuse([*paths, "subject"]).cause
    # A list of labels takes in what follows it.
    error = refuse(["--participant-label", "01", *paths, "participant"])
    assert "arguments are required: BIDS_DIR" in error.cause
    assert "bids_harmony BIDS_DIR OUTPUT_DIR" in error.remedy


def test_errors_reach_the_user_as_two_sentences(paths: list[str]) -> None:
    done = harmony(*paths, "participant", "--nprocs", 0)
    assert done.returncode == 2
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first == "bids_harmony: error: --nprocs: 0 is not at least 1."
    assert second.startswith("  Usage: bids_harmony BIDS_DIR OUTPUT_DIR {participant,")


def test_help_describes_every_option() -> None:
    parser = build_parser()
    text = " ".join(parser.format_help().split())
    assert all(action.help for action in parser._actions)
    for default in ("--skull-strip {auto,deepbet", "(default: auto)", "(default: 42)"):
        assert default in text


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
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert "bids_harmony" in done.stdout


# Where data may lie and results may go


def test_dataset_must_be_a_folder(paths: list[str], tmp_path: Path, monkeypatch) -> None:
    error = refuse([str(tmp_path / "absent"), paths[1], "participant"])
    assert error.cause == f"The dataset does not exist: {tmp_path}/absent."
    assert "container" not in error.remedy
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refuse([str(tmp_path / "file"), paths[1], "participant"]).cause
    for name in ("IS_DOCKER_8395080871", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        monkeypatch.setenv(name, "1")
        remedy = refuse([str(tmp_path / "absent"), paths[1], "participant"]).remedy
        assert "In a container, only mounted folders" in remedy
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("out", "work", "cause"),
    [
        ("in/out", "w", "in the raw dataset"),
        ("in/derivatives", "w", "in the raw dataset"),
        ("link", "w", "in the raw dataset"),
        ("out", "in/work", "inside the dataset"),
        ("out", "out", "contains the output folder"),
        ("out", ".", "contains the output folder"),
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


def test_places_that_are_fine(paths: list[str], tmp_path: Path, capsys) -> None:
    for out in ("in/derivatives/bids_harmony", "in/derivatives/bids_harmony-0.1"):
        parse([paths[0], f"{tmp_path}/{out}"], "-w", f"{tmp_path}/w/x")
    assert capsys.readouterr().err == ""
    parse(paths, "-w", f"{paths[1]}/work")
    assert "inside the output folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("description", "cause"),
    [
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
    ):
        error = refuse(argv)
        assert f"no permission for {locked}" in error.cause
        assert "permissions" in error.remedy


def test_an_output_folder_that_ends_with_the_container_is_warned_of(
    paths: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    parse(paths)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("IS_DOCKER_8395080871", "1")
    for mounted, warned in (([], True), ([tmp_path], False), ([Path("/")], True)):
        monkeypatch.setattr(os.path, "ismount", lambda path, m=mounted: path in m)
        parse(paths)
        assert ("is not mounted" in capsys.readouterr().err) == warned
