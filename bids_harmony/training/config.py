"""Options of the ``train`` level."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bids_harmony.errors import UsageError
from bids_harmony.models.contract import Contract

RECIPES = ("fast", "article")
#: Kinds of map: the curve alone, a network after it, and that fine-tuned on unpaired real scans.
CURVE, NETWORK, CYCLEGAN = MAPS = ("intensity-mapping", "network", "cyclegan")
#: Below two folds no scan is unseen by a network, and intervals cannot be calibrated.
MINIMA = {"predictor_steps": 1, "folds": 2}


@dataclass(frozen=True)
class TrainOptions:
    """What a user chooses at ``bids_harmony BIDS OUT train``.

    Attributes
    ----------
    reference_site : str or None
        Site predictors are trained on; None takes the site with most scans.
    targets : tuple of str
        Predictors to train: columns of numbers (``age`` gives ``brain_age``) or of two classes,
        and ``simulated-schizophrenia`` (``schizophrenia_probability``, on simulated labels).
    fit_filter : str or None
        Condition on the dataset's tables that scans must meet for the reference's appearance,
        calibrations and the predictors of numbers to be fitted on them, such as
        ``diagnosis == "control"``.
    model_name : str
        Name of the bundle, and of its folder under ``OUT/models``.
    predictor : str
        ``fast`` or ``article`` (``training/predictor.py``): how the predictors are trained.
    map : str
        ``network``: after the intensity mapping, a network trained on pairs with known truth;
        ``cyclegan``: that network fine-tuned on unpaired scans of the other sites;
        ``intensity-mapping``: neither.
    predictor_steps : int or None
        Of each predictor network; None: as the recipe says.
    holdout : float
        Fraction of the subjects of each site held out of everything for the figures in
        ``bundle.json``.
    validation : float
        Fraction on which the guard's limits are set; the article's predictors watch it to know
        when to end.
    folds : int
        The predictor is an ensemble of this many networks, each trained without one fold of the
        reference scans; their errors on it calibrate the prediction interval.
    seed : int
        Seed of splits, initial weights and sampling.
    device : str
        ``auto``, ``cpu`` or ``cuda``.
    threads : int
        CPU threads.
    fast_dev_run : bool
        A few steps of everything, to see that it runs.
    contract : Contract
        How the scans were preprocessed.

    Raises
    ------
    UsageError
        For a value outside its choices or its range.
    """

    reference_site: str | None = None
    targets: tuple[str, ...] = ("age", "simulated-schizophrenia")
    fit_filter: str | None = None
    model_name: str = "harmony"
    predictor: str = "fast"
    map: str = NETWORK
    predictor_steps: int | None = None
    holdout: float = 0.15
    validation: float = 0.15
    folds: int = 5
    seed: int = 42
    device: str = "auto"
    threads: int = 1
    fast_dev_run: bool = False
    contract: Contract = field(default_factory=Contract)

    def __post_init__(self) -> None:
        for name, least in MINIMA.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise UsageError(f"{_flag(name)} is {value}.", f"It must be at least {least}.")
        if min(self.holdout, self.validation) < 0 or not self.holdout + self.validation < 1:
            raise UsageError(
                f"--holdout {self.holdout:g} and --validation {self.validation:g} leave nothing "
                "to train on.",
                "Each is a part between 0 and 1, and together they must be less than 1.",
            )
        if not re.fullmatch(r"\w[\w.-]*", self.model_name):
            raise UsageError(
                f"--model-name '{self.model_name}' cannot name a folder.",
                "Use letters, digits, '-', '_' and '.'.",
            )

    def shortened(self) -> TrainOptions:
        """Return the options, with a few steps of everything when ``fast_dev_run`` is set."""
        if not self.fast_dev_run:
            return self
        return replace(self, predictor_steps=2, folds=2)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-ready values, for ``bundle.json``."""
        values = asdict(self)
        values["targets"] = list(self.targets)
        values["contract"] = self.contract.to_dict()
        return values


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
