"""The ``evaluate`` level: the paper's experiments on any dataset, honest by construction."""

from __future__ import annotations

from dataclasses import dataclass

from bids_harmony.errors import UsageError

#: ``sites``: trained at the reference, tested at every site (the paper's Table 1 and Figure 2).
#: ``rotations``: one or two training sites in every order (Table 2). ``size``: from how few
#: persons of a site it can be calibrated.
EXPERIMENTS = ("sites", "rotations", "size")


@dataclass(frozen=True)
class EvaluateOptions:
    """What a user chooses at ``bids_harmony BIDS OUT evaluate`` besides training's options.

    Attributes
    ----------
    experiments : tuple of str
        Some of :data:`EXPERIMENTS`.
    cv_folds : int
        Parts of the subjects, each tested by what was trained on the others.
    n_seeds : int
        Times that everything is trained again from other random weights and with other folds.
    train_sites : tuple of str
        Trainings of ``rotations``, each ``SITE`` or ``REFERENCE+SITE``; empty: all.

    Raises
    ------
    UsageError
        For a value outside its choices or its range.
    """

    experiments: tuple[str, ...] = ("sites",)
    cv_folds: int = 3
    n_seeds: int = 1
    train_sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if wrong := [name for name in self.experiments if name not in EXPERIMENTS]:
            raise UsageError(
                f"--experiments '{wrong[0]}' is not known.",
                f"Choose among {', '.join(EXPERIMENTS)}.",
            )
        for name, least in (("cv_folds", 2), ("n_seeds", 1)):
            if (value := getattr(self, name)) < least:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag} is {value}.", f"It must be at least {least}.")
