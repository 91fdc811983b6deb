"""What builds and runs the container: Dockerfile, Singularity.def, make targets and CI agree."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import parse, refuse
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from bids_harmony import __version__
from bids_harmony.errors import CONTAINER_VARIABLES, HarmonyError

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CI = yaml.safe_load((ROOT / ".circleci/config.yml").read_text())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", name)[0]).lower()


def stages(text: str) -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage of a Dockerfile; those before the first under ''."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {"": []}
    name = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            rest, _, name = rest.partition(" AS ")
            found[name] = []
        found[name].append((word, rest))
    return found


STAGES = stages((ROOT / "Dockerfile").read_text())


def values(stage: str, instruction: str) -> dict[str, str]:
    """``NAME=VALUE`` pairs of a stage's ENV, LABEL or ARG instructions."""
    text = " ".join(rest for word, rest in STAGES[stage] if word == instruction)
    return dict(pair.split("=", 1) for pair in shlex.split(text) if "=" in pair)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def ci_commands() -> list[str]:
    """Every shell command of the CI configuration."""
    steps = [s for part in ("jobs", "commands") for j in CI[part].values() for s in j["steps"]]
    runs = [step["run"] for step in steps if isinstance(step, dict) and "run" in step]
    return [run if isinstance(run, str) else run["command"] for run in runs]


def test_every_dependency_is_pinned_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = {normal(name): version for name, version in (line.split("==") for line in lines)}
    extras = [x for group in PROJECT["optional-dependencies"].values() for x in group]
    for text in [*PROJECT["dependencies"], *extras]:
        requirement = Requirement(text)
        assert pins[normal(requirement.name)] in requirement.specifier, text
    assert "setuptools" in pins


def test_what_is_imported_is_declared_and_the_reverse() -> None:
    makefile = (ROOT / "Makefile").read_text()
    of_program, of_others = re.findall(r"^\t\$\(BIN\)/deptry (.*)$", makefile, re.MULTILINE)
    assert of_program == "bids_harmony workflows"
    for given in (of_program, of_others):
        ran = subprocess.run(
            [Path(sys.executable).with_name("deptry"), *shlex.split(given)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr


def test_all_that_pip_installs_in_the_image_is_pinned() -> None:
    installs = [
        command
        for instructions in STAGES.values()
        for word, rest in instructions
        if word == "RUN"
        for command in rest.split("&&")
        if re.search(r"\bpip .*\binstall\b", command)
    ]
    assert len(installs) == 4
    for command in installs:
        # The wheel made here needs no pin.
        assert "--constraint constraints.txt" in command or "--no-deps" in command
        assert "--no-cache-dir" in command


def test_base_images_are_pinned() -> None:
    assert re.fullmatch(r"\S+:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}", values("", "ARG")["BASE"])
    for name, instructions in STAGES.items():
        for word, image in instructions:
            if word == "FROM" and not image.startswith("${"):
                known = image in STAGES or image == "fsl-${FSL}"
                assert known or re.search(r":\d+\.\d+\.\d+", image), name


def test_fsl_versions_are_named() -> None:
    environment = yaml.safe_load((ROOT / "container/fsl.yml").read_text())
    assert all(re.fullmatch(r"[a-z0-9-]+=[0-9.]+", x) for x in environment["dependencies"])
    names = {x.partition("=")[0] for x in environment["dependencies"]}
    assert {"fsl-flirt", "fsl-bet2", "fsl-avwutils"} <= names


def test_slim_has_nothing_of_fsl_and_full_is_the_default() -> None:
    assert list(STAGES)[-1] == "full"
    for stage in ("wheel", "dependencies", "slim"):
        assert "fsl" not in " ".join(rest for _, rest in STAGES[stage]).lower()
    full = " ".join(rest for _, rest in STAGES["full"])
    assert "container/FSL_LICENCE.txt /opt/fsl/LICENCE" in full
    assert "non-commercial use" in (ROOT / "container/FSL_LICENCE.txt").read_text()
    assert f"fsl-{values('', 'ARG')['FSL']}" in STAGES
    assert "fsl-none" in STAGES


def test_image_is_labelled() -> None:
    prefix = "org.opencontainers.image."
    labels = {k.removeprefix(prefix): v for k, v in values("slim", "LABEL").items()}
    assert labels["title"] == PROJECT["name"]
    assert labels["description"] == PROJECT["description"]
    assert labels["licenses"] == PROJECT["license"]
    assert {labels[k] for k in ("version", "revision", "source")} == {
        "${VERSION}",
        "${REVISION}",
        "${SOURCE}",
    }
    assert values("slim", "ARG")["VERSION"] == __version__
    assert "FSL" in values("full", "LABEL")[f"{prefix}licenses"]


def test_image_runs_the_program_as_nobody_in_particular() -> None:
    last = dict([*STAGES["slim"], *STAGES["full"]])
    assert last["USER"].split(":")[0] not in ("0", "root")
    assert yaml.safe_load(last["ENTRYPOINT"]) == ["bids_harmony"]
    assert "bids_harmony" in PROJECT["scripts"]
    assert last["HEALTHCHECK"].endswith('CMD ["bids_harmony", "--version"]')
    assert last["WORKDIR"] == values("slim", "ENV")["HOME"] == "/tmp"


def test_program_knows_that_it_is_in_the_container() -> None:
    assert set(values("slim", "ENV")) & set(CONTAINER_VARIABLES)


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder with what the image's commands begin with, and a python that says what it sees."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "clean").write_bytes((ROOT / "container/clean.sh").read_bytes())
    (folder / "python").write_text('#!/bin/sh\necho "$@"\nenv\n')
    (folder / "python").chmod(0o755)
    copied, first = re.search(
        r"clean.sh (\S+)\nRUN .* sed -i '1s\|\.\*\|#!(/bin/sh \S+)\|'",
        (ROOT / "Dockerfile").read_text(),
        re.DOTALL,
    ).groups()
    assert first == f"/bin/sh {copied}"
    return folder


def test_commands_of_the_image_see_nothing_of_the_hosts_environment(
    commands: Path, tmp_path: Path
) -> None:
    harmful = {
        "PYTHONHOME": "/x", "PYTHONPATH": "/x", "PYTHONSTARTUP": "/x", "PYTHONWARNINGS": "error",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline", "MPLCONFIGDIR": "/x",
        "TEMPLATEFLOW_HOME": "/x", "FSL_LOAD_NIFTI_EXTENSIONS": "1", "XDG_CACHE_HOME": "/x",
        "NUMBA_CACHE_DIR": "/x", "ITK_GLOBAL_DEFAULT_THREADER": "x", "LD_PRELOAD_32": "/x.so",
        "CONDA_PREFIX": "/x", "BASH_ENV": "/x", "LC_ALL": "de_DE.UTF-8", "LC_NUMERIC": "de_DE",
        "TMPDIR": "/nowhere", "FSLDIR": "/x", "FSLOUTPUTTYPE": "NIFTI", "NIPYPE_CONFIG_DIR": "/x",
    }  # fmt: skip
    harmless = {
        "SLURM_PROCID": "1", "CUDA_VISIBLE_DEVICES": "0", "HOME": "/h", "LD_LIBRARY_PATH": "/gpu",
        "ODD": "a\nFSLDIR=b",
    }  # fmt: skip
    ran = subprocess.run(
        ["/bin/sh", commands / "clean", "/the/command", "an argument", "*"],
        env={"PATH": os.environ["PATH"], **harmful, **harmless},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    given, *lines = ran.stdout.splitlines()
    assert given == "/the/command an argument *"
    seen = dict(line.split("=", 1) for line in lines if "=" in line)
    assert not set(seen) & (set(harmful) - {"FSLDIR"})
    assert harmless.keys() <= seen.keys()
    assert {"LANG", "PYTHONNOUSERSITE", "PYTHONDONTWRITEBYTECODE"} <= seen.keys()
    assert ran.stderr == ""


def test_a_temporary_folder_that_is_there_is_kept(commands: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        ["/bin/sh", commands / "clean"],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"TMPDIR={tmp_path}\n" in ran.stdout


@pytest.mark.parametrize(
    ("broken", "script"),
    [
        (None, ""),
        ("bet", "exit 1"),
        ("bet", "true"),
        ("fslstats", "echo 0 0"),
        ("fslstats", "exit 1"),
        ("flirt", "true"),
    ],
)
def test_the_build_of_full_stops_where_fsl_does_not_work(
    tmp_path: Path, broken: str | None, script: str
) -> None:
    """Else ``bet``, a script, would fail for the first user for want of ``dc``."""
    works = {
        "bids_harmony-simulate": 'mkdir -p "$1/sub-01/anat"; touch "$1/sub-01/anat/a_T1w.nii.gz"',
        "bet": 'test "$3 $4" = "-R -m"; test -f "$1"; touch "${2%.nii.gz}_mask.nii.gz"',
        "fslstats": 'test -f "$1"; echo 150000 1200000',
        "flirt": 'while [ "$1" != -omat ]; do shift; done; echo 1 > "$2"',
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (works | ({broken: script} if broken else {})).items():
        (folder / name).write_text(f"#!/bin/sh\nset -e\n{text}\n")
        (folder / name).chmod(0o755)
    ran = subprocess.run(
        ["/bin/sh", ROOT / "container/try_fsl.sh"],
        env={"PATH": f"{folder}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert (ran.returncode == 0) == (broken is None)
    full = [rest for word, rest in STAGES["full"] if word == "RUN"]
    assert any(re.search(r"apt-get install .* dc\b", rest) for rest in full)
    assert full[-1].endswith("sh /opt/fsl/try_fsl.sh")


def test_errors_about_paths_speak_of_mounts_in_a_container_only(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bids_harmony.bids.dataset import list_subjects

    absent = str(tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = (
        lambda: parse([absent, paths[1]]),
        lambda: parse(paths, "--bids-filter-file", absent),
        lambda: list_subjects(empty),
    )
    for inside in (False, True):
        if inside:
            monkeypatch.setenv("IS_DOCKER_8395080871", "1")
        for case in cases:
            with pytest.raises(HarmonyError) as info:
                case()
            assert ("docker -v HOST:CONTAINER" in info.value.remedy) == inside


def test_a_folder_that_cannot_be_written_asks_for_the_users_own_uid(
    paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("IS_DOCKER_8395080871", "1")
    assert "--user $(id -u):$(id -g)" in refuse([*paths, "participant"]).remedy


def test_build_context_has_all_that_is_copied_and_no_more() -> None:
    ignored, *kept = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] in "*!"
    ]
    assert ignored == "*"
    allowed = {line[1:] for line in kept if line.startswith("!")}
    copied = {
        Path(source).parts[0]
        for instructions in STAGES.values()
        for word, rest in instructions
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_apptainer_sets_what_the_dockerfile_sets() -> None:
    text = (ROOT / "Singularity.def").read_text()
    section = re.search(r"^%environment\n(.*?)^%", text, re.MULTILINE | re.DOTALL)[1]
    exported = dict(
        pair.split("=", 1)
        for line in section.splitlines()
        if line.strip().startswith("export ")
        for pair in shlex.split(line)[1:]
    )
    wanted = values("slim", "ENV") | values("full", "ENV")
    del wanted["HOME"]  # Apptainer's own
    path = exported.pop("PATH").split(":")
    assert path[0] == wanted.pop("PATH").split(":")[0].replace("$PATH", "/opt/bids_harmony/bin")
    assert path[-1] == "/opt/fsl/bin"
    assert {name: value for name, value in exported.items() if value} == wanted
    # Apptainer hands the host's variables on, which would put other modules first.
    assert {name for name, value in exported.items() if not value} >= {"PYTHONPATH", "PYTHONHOME"}
    assert 'exec bids_harmony "$@"' in text
    default = re.search(r"^ +IMAGE=(\S+)", text, re.MULTILINE)[1]
    assert default.split(":")[1] == list(STAGES)[-1]


@pytest.mark.parametrize("command", sorted(set(ci_commands())))
def test_every_command_of_ci_exists(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert words[1] in targets()
        assert all(re.match(r"TARGET=(slim|full)$", word) for word in words[2:])
    elif words[0].startswith(".ci/"):
        script = ROOT / words[0]
        assert os.access(script, os.X_OK)
        steps = re.findall(r"^step_(\w+)\(\)", script.read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(steps)
    else:
        assert words[0] in ("docker", "sudo", "python3", "validator/bin/pip")


def test_every_job_command_and_file_of_ci_exists() -> None:
    builtin = {"checkout", "run", "attach_workspace", "persist_to_workspace", "store_artifacts"}
    for job in [*CI["jobs"].values(), *CI["commands"].values()]:
        for step in job["steps"]:
            name = step if isinstance(step, str) else next(iter(step))
            assert name in builtin | set(CI["commands"])
    for job in CI["jobs"].values():
        executor = job["executor"]
        assert (executor if isinstance(executor, str) else executor["name"]) in CI["executors"]
    order: dict[str, dict[str, Any]] = {}
    for job in CI["workflows"]["test_and_deploy"]["jobs"]:
        ((name, options),) = job.items()
        assert name in CI["jobs"]
        assert set(options.get("requires", [])) <= set(order), f"{name} comes before its needs"
        given = set(options.get("matrix", {}).get("parameters", {}))
        assert given == set(CI["jobs"][name].get("parameters", {}))
        order[name] = options
    assert set(order) == set(CI["jobs"])
    assert order["deploy"]["filters"]["branches"] == {"ignore": "/.*/"}
    # A job runs on a tag only if it and all before it say so.
    assert all("tags" in options["filters"] for options in order.values())


def test_pythons_of_ci_are_allowed() -> None:
    jobs = CI["workflows"]["test_and_deploy"]["jobs"]
    unit = next(job["unit"] for job in jobs if "unit" in job)
    for version in unit["matrix"]["parameters"]["version"]:
        assert version in SpecifierSet(PROJECT["requires-python"])


def test_ci_run_and_circleci_call_the_same() -> None:
    local = [
        line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("make ")
    ]
    assert local == ["make lint", "make docs", "make test", "make test-slow"]
    assert set(local) <= set(ci_commands())
    # The rest needs a container engine; its smoke test is the one that `make smoke` runs.
    steps = {w for c in ci_commands() if c.startswith(".ci/smoke") for w in c.split()[1:]}
    script = (ROOT / ".ci/smoke").read_text()
    assert steps == set(re.search(r"^steps=\((.*)\)", script, re.MULTILINE)[1].split())


def test_smoke_refuses_steps_it_does_not_have(tmp_path: Path) -> None:
    for given, said in ([], "say which steps"), (["participant", "gruop"], "no step gruop"):
        ran = subprocess.run(
            [ROOT / ".ci/smoke", *given],
            env={**os.environ, "ENGINE": "false", "WORK": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 1
        assert said in ran.stderr


def test_smoke_finds_a_missing_and_a_superfluous_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = (ROOT / ".ci/smoke_tree.txt").read_text().split()
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()

    def tree() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / ".ci/smoke", "tree"],
            env={**os.environ, "WORK": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert tree().returncode == 0
    (out / "sub-01.html").rename(out / "sub-01.htm")
    ran = tree()
    assert ran.returncode != 0
    assert "< ./sub-01.html" in ran.stdout
    assert "> ./sub-01.htm\n" in ran.stdout


@pytest.mark.slow
def test_smoke_passes_but_for_the_container(tmp_path: Path) -> None:
    """All its steps, on the program of this machine: the tree that CI expects is the real one."""
    engine = tmp_path / "engine"
    standin = ROOT / "tests/standins/engine.py"
    engine.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{standin}" "$@"\n')
    engine.chmod(0o755)
    (tmp_path / "there").mkdir()
    ran = subprocess.run(
        [ROOT / ".ci/smoke", "all"],
        env={
            **os.environ,
            "ENGINE": str(engine),
            "WORK": str(tmp_path / "smoke"),
            "STANDIN_FOLDER": str(tmp_path / "there"),
            "VALIDATOR": str(Path(sys.executable).with_name("bids-validator-deno")),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]


def test_deploy_refuses_a_tag_of_another_version() -> None:
    ran = subprocess.run(
        [ROOT / ".ci/deploy"],
        env={**os.environ, "CIRCLE_TAG": "v99.0.0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert f"the program's version {__version__}" in ran.stderr


def test_unpinned_packages_stop_the_build(tmp_path: Path) -> None:
    """In an environment of two made-up packages, beside a made-up torch."""
    site = tmp_path / "site"
    for name, version, requires in (
        ("torch", "2.0+cpu", "Requires-Dist: nvidia-blas==1.0\n"),
        ("nvidia_blas", "1.0", ""),
        ("Some.Name", "3.1", ""),
    ):
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}"
        )
    script = (
        f"import sys; sys.path[:] = [{str(site)!r}, *sys.path]\n"
        "sys.path[:] = [p for p in sys.path if 'site-packages' not in p]\n"
        f"sys.argv[:] = ['x', {str(tmp_path / 'pins')!r}]\n"
        f"exec(open({str(ROOT / 'container/check_pins.py')!r}).read())\n"
    )

    def check(pins: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "pins").write_text(pins)
        return subprocess.run(
            [sys.executable, "-S", "-c", script],
            cwd=site,  # not where this project's own metadata lie
            capture_output=True,
            text=True,
            check=False,
        )

    assert check("torch==2.0\nsome-name==3.1\n").returncode == 0
    ran = check("torch==2.0\nsome-name==3.0\n")
    assert ran.returncode == 1
    assert "some-name==3.1" in ran.stdout
    assert "nvidia" not in ran.stdout
