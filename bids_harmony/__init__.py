"""bids_harmony: harmonize T1-weighted brain scans to a reference site and predict from them.

Besides the command line (see the documentation), four functions work on nibabel images:
:func:`load_bundle`, :func:`calibrate`, :func:`harmonize` and :func:`predict`
(:mod:`bids_harmony.models.apply`). Their names, parameters and return values are stable:
anything to be changed or removed raises a ``FutureWarning`` for at least one minor version
first. Everything else in the package may change in any version.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bids_harmony.models.apply import calibrate, harmonize, predict
    from bids_harmony.models.bundle import load_bundle

__version__ = "0.3.0"
__all__ = ["calibrate", "harmonize", "load_bundle", "predict"]


def __getattr__(name: str) -> Any:
    """Import the API functions on first access, so that importing the package stays fast."""
    if name in __all__:
        from bids_harmony.models import apply as api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
