"""Model bundles: a folder with everything that a run needs from training.

``bundle.json`` describes the bundle and holds the SHA-256 of every other file. Weights are saved
as safetensors, never as pickles (design.md §4).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bids_harmony.config import Contract
from bids_harmony.errors import BundleError
from bids_harmony.files import sha256_of
from bids_harmony.processes import side_by_side
from bids_harmony.sites.code import Appearance

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bids_harmony.models.networks import MapNetwork, SiteMap
    from bids_harmony.sites.code import SiteCode

FORMAT = 3
DEFAULT_BUNDLE = Path(__file__).resolve().parents[1] / "data" / "bundle"
KEYS = frozenset(
    {
        "format", "name", "version", "reference_site", "sites", "contract", "box", "networks",
        "map", "targets", "metrics", "training", "licences", "intended_use", "files",
    }
)  # fmt: skip
AGAIN = "Copy the bundle again from its source, or train a new one."


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been verified.

    Attributes
    ----------
    path : pathlib.Path
        Bundle folder.
    sha256 : str
        SHA-256 of ``bundle.json``, which holds the checksums of all other files.
    info : dict
        Content of ``bundle.json``.
    contract : Contract
        Preprocessing of the training scans.
    """

    path: Path
    sha256: str
    info: dict[str, Any]
    contract: Contract

    @property
    def name(self) -> str:
        """Name of the bundle."""
        return str(self.info["name"])

    @property
    def version(self) -> str:
        """Version of the bundle."""
        return str(self.info["version"])

    @property
    def reference_site(self) -> str:
        """Site to which scans are harmonized."""
        return str(self.info["reference_site"])

    @property
    def box(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """First and last (exclusive) row and column of the template grid used by networks."""
        (a, b), (c, d) = self.info["box"]
        return (a, b), (c, d)

    @property
    def targets(self) -> dict[str, dict[str, Any]]:
        """Prediction targets by name, with the training data of each predictor."""
        return dict(self.info["targets"])

    def qc_reference(self) -> dict[str, Any]:
        """Read reference statistics of QC metrics and reference histograms, by site."""
        return self._read("qc_reference.json") or {"metrics": {}, "histograms": {}}

    def guard(self) -> dict[str, Any] | None:
        """Read ``guard.json``, the ``limits`` of the anatomy guard; None if absent."""
        return self._read("guard.json")

    def appearance(self) -> Appearance:
        """Read ``appearance.json``, the appearance of reference scans as a function of age."""
        return Appearance.from_dict(self._read("appearance.json") or {})

    def _read(self, name: str) -> dict[str, Any] | None:
        """Read a JSON file of the bundle; None if absent."""
        if name not in self.info["files"]:
            return None
        content: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        return content

    def identity(self) -> dict[str, str]:
        """Return name, version and SHA-256, for outputs that depend on the bundle."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256}

    def networks(self, device: str = "cpu") -> dict[str, list[nn.Module]]:
        """Return the networks in evaluation mode, cached per process and device."""
        return _load_networks(self.path, self.sha256, device)

    def ensembles(self, target: str, device: str = "cpu") -> list[list[nn.Module]]:
        """Return the ensembles of a target; their mean is the prediction."""
        networks = self.networks(device)
        return [networks[name] for name in self.targets[target]["networks"]]

    @property
    def has_map_network(self) -> bool:
        """Whether a network is applied after the intensity mapping."""
        return "map" in self.info["networks"]

    def map_network(self, device: str = "cpu") -> MapNetwork | None:
        """Return the network applied after the intensity mapping; None if absent."""
        if not self.has_map_network:
            return None
        return cast("MapNetwork", self.networks(device)["map"][0])

    def site_map(self, code: SiteCode, device: str = "cpu", *, spare: bool = False) -> SiteMap:
        """Create the harmonization map of a site.

        Parameters
        ----------
        code : SiteCode
            Site code.
        device : str
            PyTorch device.
        spare : bool
            Whether to skip the network and use the intensity mapping alone.
        """
        from bids_harmony.models.networks import SiteMap

        network = None if spare else self.map_network(device)
        return SiteMap.of(code, self.appearance(), network, self.box)


def load_bundle(path: Path | str | None = None) -> Bundle:
    """Load a bundle: verify its files and read its description.

    Parameters
    ----------
    path : pathlib.Path or str, optional
        Bundle folder; the one shipped with the package if None.

    Returns
    -------
    Bundle

    Raises
    ------
    BundleError
        If a file is missing, modified, unknown or outside the folder, or if this version cannot
        read ``bundle.json``.
    """
    folder = Path(path) if path is not None else DEFAULT_BUNDLE
    try:
        raw = (folder / "bundle.json").read_bytes()
    except OSError as error:
        raise BundleError(
            f"There is no model bundle in {folder} (bundle.json cannot be read).",
            "Give --bundle the folder that contains bundle.json.",
        ) from error
    try:
        info = json.loads(raw)
    except (ValueError, RecursionError) as error:
        text = f"The bundle.json of {folder} is not valid JSON ({error})."
        raise BundleError(text, AGAIN) from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise BundleError(
            f"The bundle {folder} has another format than {FORMAT}, which this version reads.",
            "Use the default bundle, or train a new one.",
        )
    if problem := _problem(info, folder):
        raise BundleError(f"The bundle {folder} {problem}.", AGAIN)
    contract = Contract.from_dict(info["contract"])
    return Bundle(folder.resolve(), hashlib.sha256(raw).hexdigest(), info, contract)


def _problem(info: dict[str, Any], folder: Path) -> str | None:
    """Return what is wrong with ``bundle.json`` or the files in it; None if valid."""
    objects = ("files", "networks", "targets", "contract", "sites")
    if wrong := KEYS ^ set(info):
        return f"has missing or unknown entries: {sorted(wrong)}"
    if bad := [key for key in objects if not isinstance(info[key], dict)]:
        return f"has entries of the wrong type: {bad}"
    if odd := [name for name in info["networks"] if not name.isprintable()]:
        return f"has a network named {odd[0]!r}"
    there = {entry.name for entry in folder.iterdir()} - {"bundle.json", "__pycache__"}
    if extra := there - set(info["files"]):
        return f"contains files that its bundle.json does not list: {sorted(extra)}"
    for name, digest in info["files"].items():
        if Path(name).name != name or name == ".." or not name.isprintable():
            return f"lists a file outside its folder: {name!r}"
        if not (folder / name).is_file():
            return f"has no file {name}"
        if sha256_of(folder / name) != digest:
            return f"has a modified file: {name}"
    return None


def check_weights(bundle: Bundle) -> None:
    """Check that all networks of a bundle can be loaded, in a separate process.

    The checksums of :func:`load_bundle` detect modified files, but not weights that do not fit
    their network. The separate process keeps torch out of the caller, which can still fork.

    Raises
    ------
    BundleError
        If weights are missing, unexpected, of the wrong shape or not finite.
    """
    deque(side_by_side(_load_and_forget, [(bundle,)], 1), maxlen=0)


def _load_and_forget(bundle: Bundle) -> None:
    bundle.networks()


@cache
def _load_networks(folder: Path, sha256: str, device: str) -> dict[str, list[nn.Module]]:
    """Create all networks of a bundle and load their weights.

    ``sha256`` is part of the cache key, so that a bundle replaced in place is loaded again.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from bids_harmony.models.networks import GreyMatterNetwork, MapNetwork, SliceNetwork

    kinds: dict[str, type[nn.Module]] = {
        "slice": SliceNetwork, "grey_matter": GreyMatterNetwork, "map": MapNetwork,
    }  # fmt: skip
    networks: dict[str, list[nn.Module]] = {}
    for name, config in json.loads((folder / "bundle.json").read_bytes())["networks"].items():
        try:
            networks[name] = [
                _filled(
                    kinds[config["kind"]](**config["options"]), load((folder / file).read_bytes())
                ).to(device)
                for file in config["files"]
            ]
        except (
            SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError,
        ) as error:  # fmt: skip
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BundleError(
                f"The weights of {name} in the bundle {folder} cannot be loaded ({reason}).", AGAIN
            ) from error
    return networks


def _filled(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Load half-precision weights into a network, and set it to evaluation mode."""
    full = {key: v.float() if v.is_floating_point() else v for key, v in tensors.items()}
    if bad := [key for key, value in full.items() if not value.isfinite().all()]:
        raise ValueError(f"{bad[0]} is not finite")
    network.load_state_dict(full)
    return network.eval().requires_grad_(False)


def write_bundle(
    out: Path,
    info: dict[str, Any],
    networks: dict[str, list[nn.Module]],
    tables: Mapping[str, dict[str, Any] | str],
) -> Bundle:
    """Write a bundle to a temporary folder, then move it to its place.

    Parameters
    ----------
    out : pathlib.Path
        Bundle folder; an existing bundle is replaced.
    info : dict
        Content of ``bundle.json`` without ``format`` and ``files``. Each entry of ``networks``
        lists the ``files`` of its ensemble.
    networks : dict
        Ensemble of each entry of ``info["networks"]``.
    tables : mapping
        Content of further files by name: JSON such as ``qc_reference.json``, or text.

    Returns
    -------
    Bundle
        The written bundle, loaded from ``out``.
    """
    from safetensors.torch import save

    files: dict[str, bytes] = {}
    for name, config in info["networks"].items():
        for file, network in zip(config["files"], networks[name], strict=True):
            weights = network.state_dict().items()
            halves = {k: v.half() if v.is_floating_point() else v for k, v in weights}
            files[file] = save({key: value.contiguous() for key, value in halves.items()})
    for name, table in tables.items():
        files[name] = table.encode() if isinstance(table, str) else to_json(table)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    files["bundle.json"] = to_json({"format": FORMAT, **info, "files": digests})
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        new, old = Path(scratch, "new"), Path(scratch, "old")
        new.mkdir()
        for name, data in files.items():
            (new / name).write_bytes(data)
        if out.exists():
            out.replace(old)
        new.replace(out)
    return load_bundle(out)


def to_json(value: dict[str, Any]) -> bytes:
    """Return UTF-8 JSON with a final newline. Equal values give equal bytes."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
