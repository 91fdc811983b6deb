"""Shared fixtures. Tests run side by side, so every library keeps to one thread."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Behind a shell's `&` Ctrl-C is ignored, also by what is started here; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[_name] = "1"
os.environ["NO_ET"] = os.environ["NIPYPE_NO_ET"] = "1"
os.environ["TEMPLATEFLOW_HOME"] = str(
    Path(__file__).resolve().parents[1] / "bids_harmony" / "data" / "templateflow"
)

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from bids_harmony.console import set_up_logging, stop_logging  # noqa: E402

# On a busy machine an example may take any time.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Log to the standard streams, as the command does."""
    set_up_logging()
    yield
    stop_logging()


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real scans; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared real scans are not here")
    return SHARED


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two simulated heads of two sites, at 2 mm."""
    from bids_harmony.simulation.dataset import simulate_dataset

    out = tmp_path_factory.mktemp("heads") / "bids"
    simulate_dataset(out, n_sites=2, n_subjects=1, seed=5, resolution=2.0)
    return out


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset of two subjects; the folder's own name would confuse a search by path."""
    from bids_dataset import write

    root = tmp_path / "sub-projects" / "func" / "ds"
    write(root, "dataset_description.json", '{"Name": "d", "BIDSVersion": "1.10.0"}')
    write(root, "participants.tsv", "participant_id\tage\tsex\nsub-01\t30\tM\nsub-02\t40.5\tF\n")
    for sub in ("01", "02"):
        write(root, f"sub-{sub}/anat/sub-{sub}_T1w.nii.gz")
    return root


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """BIDS_DIR and OUTPUT_DIR; the current folder is elsewhere, for ./work."""
    from bids_harmony.errors import CONTAINER_VARIABLES

    for name in CONTAINER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "in/sub-01/anat").mkdir(parents=True)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return [str(tmp_path / "in"), str(tmp_path / "out")]
