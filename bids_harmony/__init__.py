"""bids_harmony: harmonize T1-weighted brain scans to one reference site and predict there.

The command is described in the documentation; four functions do the same on nibabel images:
:func:`load_bundle`, :func:`calibrate`, :func:`harmonize` and :func:`predict`
(:mod:`bids_harmony.models.apply`). These names, and what they take and return, are stable: what is
to change or go gives a ``FutureWarning`` for at least one minor version before. Everything else
in the package may change with any version.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bids_harmony.models.apply import calibrate, harmonize, predict
    from bids_harmony.models.bundle import load_bundle

__version__ = "0.3.0"
__all__ = ["calibrate", "harmonize", "load_bundle", "predict"]


def __getattr__(name: str) -> Any:
    """Load the functions when they are first asked for: importing the package stays fast."""
    if name in __all__:
        from bids_harmony.models import apply as api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
