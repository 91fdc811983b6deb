"""The wheel, the container image and CI: what building and smoke tests do not show."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from bids_dataset import write
from command_line import parse, refuse, run
from documented import ROOT
from packaging.requirements import Requirement

from bids_harmony import __version__
from bids_harmony.errors import HarmonyError

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CI = yaml.safe_load((ROOT / ".circleci/config.yml").read_text())
RUN_BY_CI = [
    what if isinstance(what, str) else what["command"]
    for job in CI["jobs"].values()
    for step in job["steps"]
    if isinstance(step, dict) and (what := step.get("run"))
]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = {normal(name): version for name, version in (line.split("==") for line in lines)}
    extras = [x for group in PROJECT["optional-dependencies"].values() for x in group]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        assert pins[normal(requirement.name)] in requirement.specifier, requirement
    assert "setuptools" in pins


def test_the_wheel_has_every_module(tmp_path: Path) -> None:
    # A copy, so that nothing is left here, and nothing that an earlier build left is packed.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    modules = set()
    for name, installed in (("bids_harmony", ""), ("workflows", "bids_harmony/")):
        shutil.copytree(ROOT / name, source / name)
        paths = (ROOT / name).rglob("*.py")
        modules |= {installed + path.relative_to(ROOT).as_posix() for path in paths}
    command = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w"]
    subprocess.run([sys.executable, *command, str(tmp_path), str(source)], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert modules | {"bids_harmony/data/bundle/bundle.json"} <= set(wheel.namelist())


@pytest.mark.parametrize("pinned", ["3.1", "3.0"])
def test_unpinned_packages_stop_the_build(tmp_path: Path, pinned: str) -> None:
    """Of an invented package, and of one that an invented torch pins itself."""
    for name, version, requires in (
        ("torch", "2.0+cpu", "Requires-Dist: nvidia-blas==1.0\n"),
        ("nvidia_blas", "1.0", ""),
        ("Some.Name", "3.1", ""),
    ):
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}"
        write(tmp_path, f"{name}-{version}.dist-info/METADATA", text)
    pins = write(tmp_path, "pins", f"torch==2.0\nsome-name=={pinned}\n")
    # The script's own folder comes first on the path, which holds no package.
    script = ROOT / "container/check_pins.py"
    ran = run(sys.executable, "-S", script, pins, PYTHONPATH=str(tmp_path))
    wrong = [] if pinned == "3.1" else ["some-name==3.1"]
    assert (ran.returncode == 0, ran.stdout.split()[-1:]) == (not wrong, wrong), ran.stderr


def test_image_is_labelled_and_slim_contains_nothing_of_fsl() -> None:
    """FSL's licence forbids commercial use; ``full`` contains it with its licence and sources."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    parts = re.split("^FROM ", text, flags=re.MULTILINE)
    stages = {part.partition("\n")[0].split(" AS ")[-1]: part for part in parts}
    for name in ("wheel", "dependencies", "slim"):
        assert "fsl" not in stages[name].lower()
    assert list(stages)[-1] == "full"
    assert "container/FSL_LICENCE.txt /opt/fsl/LICENCE" in stages["full"]
    assert "non-commercial use" in (ROOT / "container/FSL_LICENCE.txt").read_text()
    assert not re.search(r"rm .*/opt/fsl/src", text)
    build = run("make", "-C", ROOT, "-n", "image", "SOURCE=https://x/y.git").stdout
    for name in ("created", "version", "revision", "source", "url", "documentation"):
        assert f'org.opencontainers.image.{name}="${{{name.upper()}}}"' in stages["slim"]
        assert f"--build-arg {name.upper()}=" in build
    for name in ("name", "digest"):
        assert f'image.base.{name}="${{BASE_{name.upper()}}}"' in stages["slim"]
    assert "ENV BIDS_HARMONY_DOCKER_TAG=${IMAGE}" in stages["slim"]
    assert "--build-arg IMAGE=bids_harmony:full" in build


@pytest.mark.parametrize("there", [True, False])
def test_commands_of_the_image_do_not_see_the_environment_of_the_host(
    tmp_path: Path, there: bool
) -> None:
    write(tmp_path, "python", '#!/bin/sh\necho "$@"\nenv\n').chmod(0o755)
    clean = write(tmp_path, "clean", (ROOT / "container/clean.sh").read_bytes())
    harmful = dict.fromkeys((
        "PYTHONHOME", "PYTHONPATH", "PYTHONWARNINGS", "MPLBACKEND", "MPLCONFIGDIR", "LC_ALL",
        "TEMPLATEFLOW_HOME", "FSL_LOAD_NIFTI_EXTENSIONS", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR",
        "ITK_GLOBAL_DEFAULT_THREADER", "LD_PRELOAD_32", "CONDA_PREFIX", "BASH_ENV",
        "FSLOUTPUTTYPE", "NIPYPE_CONFIG_DIR",
    ), "/x")  # fmt: skip
    harmless = {"SLURM_PROCID": "1", "HOME": "/h", "LD_LIBRARY_PATH": "/gpu", "ODD": "a\nFSLDIR=b"}
    folder = str(tmp_path if there else tmp_path / "absent")
    env = {"PATH": os.environ["PATH"], "TMPDIR": folder, **harmful, **harmless}
    command = ["/bin/sh", clean, "/the/command", "an argument", "*"]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    given, *lines = ran.stdout.splitlines()
    assert given == "/the/command an argument *"
    seen = dict(line.split("=", 1) for line in lines if "=" in line)
    assert not set(seen) & set(harmful)
    assert seen.get("TMPDIR") == (folder if there else None)
    assert {*harmless, "LANG", "PYTHONNOUSERSITE", "PYTHONDONTWRITEBYTECODE"} <= seen.keys()
    assert ran.stderr == ""


@pytest.mark.parametrize("inside", [False, True])
def test_errors_about_paths_speak_of_mounts_in_a_container_only(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    if inside:
        monkeypatch.setenv("IS_DOCKER_8395080871", "1")
    absent = str(tmp_path / "absent")
    for given in (([absent, paths[1]],), (paths, "--bids-filter-file", absent)):
        with pytest.raises(HarmonyError) as info:
            parse(*given)
        assert ("docker -v HOST:CONTAINER" in info.value.remedy) == inside
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    remedy = refuse([*paths, "participant"]).remedy
    assert ("--user $(id -u):$(id -g)" in remedy) == inside


def test_what_ci_calls_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    smoke = (ROOT / ".ci/smoke").read_text()
    commands = [shlex.split(command) for command in RUN_BY_CI]
    assert {words[1] for words in commands if words[0] == "make"} <= set(targets)
    scripts = [words for words in commands if words[0].startswith(".ci/")]
    assert all(os.access(ROOT / words[0], os.X_OK) for words in scripts)
    # All steps of the smoke test, which is the one that `make smoke` runs.
    steps = re.search(r"^steps=\((.*)\)", smoke, re.MULTILINE)[1].split()
    assert {word for words in scripts for word in words[1:]} == set(steps)
    local = re.findall(r"^make .*$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert local == ["make lint", "make docs", "make test", "make test-slow"]
    assert set(local) <= set(RUN_BY_CI)


def test_ci_tests_the_pythons_that_the_project_names_and_deploys_tags() -> None:
    jobs = {k: v for job in CI["workflows"]["test_and_deploy"]["jobs"] for k, v in job.items()}
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert jobs["unit"]["matrix"]["parameters"]["version"] == named
    # A job runs on a tag only if it and all before it say so.
    assert all("tags" in options["filters"] for options in jobs.values())
    assert jobs["deploy"]["filters"]["branches"] == {"ignore": "/.*/"}
    before = {"deploy"}
    while more := {x for name in before for x in jobs[name].get("requires", ())} - before:
        before |= more
    assert before == set(jobs)


def test_deploy_refuses_a_tag_of_another_version() -> None:
    ran = run(ROOT / ".ci/deploy", CIRCLE_TAG="v99.0.0")
    assert ran.returncode == 1
    assert f"does not match the version {__version__}" in ran.stderr


@pytest.mark.slow
def test_smoke_passes_but_for_the_container(tmp_path: Path) -> None:
    """All its steps, with the installed program: CI expects the files that are written."""
    standin = ROOT / "tests/standins/engine.py"
    engine = write(tmp_path, "engine", f'#!/bin/sh\nexec "{sys.executable}" "{standin}" "$@"\n')
    engine.chmod(0o755)
    (tmp_path / "there").mkdir()
    ran = run(
        ROOT / ".ci/smoke", "all",
        ENGINE=str(engine), WORK=str(tmp_path / "smoke"), STANDIN_FOLDER=str(tmp_path / "there"),
        VALIDATOR=str(Path(sys.executable).with_name("bids-validator-deno")),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
