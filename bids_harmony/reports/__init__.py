"""Figures and HTML reports; each page is a Jinja template in ``data/``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def render(template: str, **values: Any) -> str:
    """Render a Jinja template.

    All values are escaped; undefined ones are rendered as empty text. Templates can also use the
    filters ``fixed`` and ``shown``, and ``source(name)``, the text of a file in
    ``bids_harmony/data``.

    Parameters
    ----------
    template : str
        File name in ``bids_harmony/data``.
    **values
        Variables of the template.

    Returns
    -------
    str
        Rendered page.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bids_harmony", "data"), extensions=["jinja2.ext.do"],
        undefined=jinja2.ChainableUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"fixed": fixed, "shown": shown}
    environment.globals["source"] = lambda name: (files("bids_harmony.data") / name).read_text(
        encoding="utf-8"
    )
    return environment.get_template(template).render(**values)


def fixed(value: Any, digits: int = 2, sign: str = "") -> str:
    """Format a finite number with a fixed number of decimals, anything else as ``n/a``.

    >>> fixed(-0.001), fixed(2.25, 1, "+"), fixed(None), fixed(float("nan"))
    ('0.00', '+2.2', 'n/a', 'n/a')
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "n/a"
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def shown(value: Any) -> str:
    """Format a value for display: numbers rounded, None and empty text as ``n/a``.

    >>> shown(0.123456), shown(None), shown([1, 2]), shown({"a": True})
    ('0.123', 'n/a', '1, 2', 'a yes')
    """
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value + 0.0:.4g}" if abs(value) >= 1000 else f"{value + 0.0:.3g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {shown(v)}" for key, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    return str(value) or "n/a"


def target_title(name: str) -> str:
    """Return the display name of a prediction target.

    >>> target_title("brain_age"), target_title("schizophrenia_probability")
    ('Brain age (years)', 'Schizophrenia probability')
    """
    title = name[0].upper() + name[1:].replace("_", " ")
    return f"{title} (years)" if name == "brain_age" else title
