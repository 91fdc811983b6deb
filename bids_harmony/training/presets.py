"""The two ways of training the maps, each one frozen set of numbers.

``ARTICLE`` is the paper's: the original CycleGAN with the site as planes into the backward map
(preprint §4.3, science.md §2). ``FAST``, the default, preserves structure by its form and is
trained in minutes on a CPU (science.md §10). It holds those parts of :data:`FULL` that earned
their place when each was switched off (:data:`ABLATIONS`, docs/training.md).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from bids_harmony.models.discriminators import (
    Discriminator,
    PairedDiscriminators,
    SharedDiscriminator,
)
from bids_harmony.models.generators import Generator, build_generator


@dataclass(frozen=True)
class Preset:
    """Networks, losses and optimisation of the maps' training.

    Attributes
    ----------
    name : str
        Name on the command line.
    generator : str
        ``residual`` or ``resnet`` (:data:`bids_harmony.models.generators.GENERATORS`).
    channels : tuple of int
        Widths of the residual generator's U-Net, empty for none; the width and the number of
        blocks of the resnet.
    bins : int
        Intensities of the bilateral grid; 0: none.
    around : int
        Neighbours the forward map sees on each side (2.5-D); 0: none. The backward map sees
        none: it could copy from them what it ought to rebuild.
    embedding : int
        Length of the site's learnt code in the backward map (FiLM); 0: planes.
    unknown : float
        Share of slices whose site the backward map is not told in the cycle, so that it also
        knows an unknown site; needs a code or planes of zeros.
    shared : bool
        One discriminator with an output per domain, else the article's two.
    width, halvings, norm : int, int, str
        Of the discriminators (:func:`bids_harmony.models.discriminators.patch_layers`). Two
        halvings judge patches of 68 mm at 2 mm, as three do at 1 mm.
    batch : int
        Pairs of slices per step, over all devices.
    learning_rate : float
        Of Adam (0.5, 0.999); falls linearly to 0 over the second half of the steps.
    cycle, identity, edges, tissue : float
        Weights of the losses (``training/losses.py``); the adversarial weight is 1.
    cycle_noise : float
        Standard deviation of noise added to a mapped slice before it is mapped back, so that
        nothing can be hidden in it.
    pool : int
        Mapped slices remembered for the discriminator; 0: it sees the newest only.
    shift : int
        Pixels by which what the discriminator sees is moved at random.
    ema : float
        Decay of the averaged maps, which are the ones kept; 0: the last weights are kept.
    clip : float
        Largest norm of the maps' gradients; 0: as they are.
    precision : str
        Of Lightning Fabric: ``bf16-mixed`` or ``32-true``.
    """

    name: str
    generator: str
    channels: tuple[int, ...]
    bins: int = 0
    around: int = 0
    embedding: int = 0
    unknown: float = 0.0
    shared: bool = False
    width: int = 64
    halvings: int = 3
    norm: str = "instance"
    batch: int = 1
    learning_rate: float = 2e-4
    cycle: float = 10.0
    identity: float = 5.0
    edges: float = 0.0
    tissue: float = 0.0
    cycle_noise: float = 0.0
    pool: int = 50
    shift: int = 0
    ema: float = 0.0
    clip: float = 0.0
    precision: str = "32-true"

    def generator_options(self, n_sites: int = 0) -> dict[str, Any]:
        """Options of the forward map, or with ``n_sites`` of the backward map, for a bundle."""
        if self.generator == "resnet":
            width, blocks = self.channels
            return {"width": width, "blocks": blocks, "n_sites": n_sites}
        options = {
            "channels": list(self.channels),
            "bins": self.bins,
            "around": 0 if n_sites else self.around,
        }
        return options | ({"n_sites": n_sites, "embedding": self.embedding} if n_sites else {})

    def build_maps(self, n_sites: int) -> tuple[Generator, Generator]:
        """Make the forward and the backward map."""
        return (
            build_generator(self.generator, self.generator_options()),
            build_generator(self.generator, self.generator_options(n_sites)),
        )

    def build_discriminator(self, n_sites: int) -> Discriminator:
        """Make what judges the mapped slices."""
        kind = SharedDiscriminator if self.shared else PairedDiscriminators
        return kind(n_sites, self.width, self.halvings, self.norm)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self) | {"channels": list(self.channels)}


ARTICLE = Preset("article", "resnet", (64, 9))
FAST = Preset(
    "fast",
    "residual",
    (),
    bins=8,
    embedding=16,
    unknown=0.1,
    shared=True,
    width=32,
    halvings=2,
    norm="spectral",
    batch=4,
    learning_rate=4e-4,
    edges=1.0,
    tissue=1.0,
    cycle_noise=0.02,
    shift=2,
    ema=0.999,
    clip=5.0,
    precision="bf16-mixed",
)
PRESETS = {preset.name: preset for preset in (FAST, ARTICLE)}
#: What ``FAST`` was chosen from: every part that science.md §10 recommends.
FULL = replace(FAST, channels=(32, 64), around=1)
#: What switches off each part of ``FULL``; both of the last are off in ``FAST``.
ABLATIONS: dict[str, dict[str, Any]] = {
    "bilateral grid": {"bins": 0},
    "FiLM": {"embedding": 0},
    "spectral norm": {"norm": "none"},
    "EMA": {"ema": 0.0},
    "edge term": {"edges": 0.0},
    "tissue-fraction term": {"tissue": 0.0},
    "cycle noise": {"cycle_noise": 0.0},
    "U-Net": {"channels": ()},
    "2.5-D": {"around": 0},
    "U-Net and 2.5-D": {"channels": (), "around": 0},
}
