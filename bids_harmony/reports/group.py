"""The dataset's report: one HTML file with tables, charts, pictures, and a place for verdicts.

What needs no mouse and no script (tables, pictures) is written here; charts and the list of
scans are drawn in the browser from the scans' values, which the page holds once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from bids_harmony.files import write_text
from bids_harmony.qc.dataset import prediction_columns
from bids_harmony.reports.group_images import dataset_pictures
from bids_harmony.reports.group_tables import (
    age_rows,
    probability_tables,
    site_rows,
    status_rows,
)
from bids_harmony.reports.reportlets import TARGET_NAMES

if TYPE_CHECKING:
    import pandas as pd

    from bids_harmony.qc.dataset import Group

NAME = "group_T1w.html"
#: Columns of texts and of numbers that the page shows of a scan, beside metrics and predictions.
TEXTS = ("participant_id", "session_id", "site", "sex", "diagnosis", "manufacturer", "model",
         "qc_status", "error", "harmonization_status", "rating")  # fmt: skip
NUMBERS = ("age", "field_strength", "outlier_rank", "outlier_score")
DIGITS = 5
#: Kinds of pictures in the order in which a rater wants them; unknown ones come after.
PICTURES = ("brainmask", "norm", "harmonized", "histogram", "qc", "predictions")


def write_group_report(group: Group, out: Path) -> Path:
    """Write ``group_T1w.html`` beside the participants' folders.

    Parameters
    ----------
    group : Group
        The dataset.
    out : pathlib.Path
        The output folder, where ``group.volumes`` are read; the scans' own pictures are shown
        from there, not copied.

    Returns
    -------
    pathlib.Path
        The page. It fetches nothing from elsewhere, and its bytes depend on the outputs alone.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    pictures, notes = dataset_pictures(group, out)
    folder = files("bids_harmony.data")
    parts = {kind: (folder / f"group_report.{kind}").read_text(encoding="utf-8")
             for kind in ("html", "css", "js")}  # fmt: skip
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(figure=figure, fixed=fixed)
    ages = age_rows(group)
    page = environment.from_string(parts["html"]).render(
        css=parts["css"],
        script=parts["js"],
        plotly=get_plotlyjs(),
        data=script_json(page_data(group)),
        group=group,
        sites=site_rows(group.scans),
        statuses=status_rows(group),
        ages=ages,
        left_out=_left_out(group, ages[-1]["n"]) if ages else "",
        probabilities=probability_tables(group),
        pictures=pictures,
        picture_notes=notes,
    )
    target = out / NAME
    write_text(target, page)
    return target


def _left_out(group: Group, n: int) -> str:
    """Say which scans the figures of brain age leave out."""
    scans = group.scans
    kept = scans[scans["rating"] != "reject"]
    counts = {
        "rejected by the raters": len(scans) - len(kept),
        "without an age": int(kept["age"].isna().sum()),
        "without both predictions": len(kept.dropna(subset=["age"])) - n,
    }
    parts = [f"{count} {why}" for why, count in counts.items() if count]
    return f"Left out: {', '.join(parts)}." if parts else "All scans are in it."


def page_data(group: Group) -> dict[str, Any]:
    """Put what the page's script needs into compact JSON: columns, not rows.

    Parameters
    ----------
    group : Group
        The dataset.

    Returns
    -------
    dict
        ``scan`` keys; ``texts``: by column, ``levels`` and a code for each scan (-1: missing);
        ``numbers``: by column, values or None; ``metrics`` and ``targets`` with their
        descriptions; ``flags`` and ``pictures`` by the scan's place; ``ratings`` as rows.
    """
    scans = group.scans
    place = {scan: i for i, scan in enumerate(scans["scan"])}
    predicted = [name for name in prediction_columns(group.targets) if name in scans]
    columns = dict.fromkeys([*NUMBERS, *group.metrics, *predicted])
    paths: dict[str, int] = {}
    pictures = {
        place[scan]: [
            paths.setdefault(_pattern(path, scan), len(paths))
            for path in sorted(group.figures[scan], key=_order)
        ]
        for scan in scans["scan"]
        if group.figures.get(scan)
    }
    return {
        "scan": scans["scan"].tolist(),
        "texts": {name: _levels(scans[name]) for name in TEXTS},
        "numbers": {name: _numbers(scans[name].to_numpy(float)) for name in columns},
        "metrics": [_described(group, name) for name in group.metrics],
        "targets": [_target(group, name) for name in group.targets],
        "flags": {
            place[scan]: [[flag.metric, flag.text] for flag in flags]
            for scan, flags in group.flags.items()
            if scan in place
        },
        "patterns": list(paths),
        "captions": _captions(),
        "pictures": pictures,
        "ratings": group.ratings[["scan", "rater", "time", "verdict", "comment"]].values.tolist(),
    }


def _pattern(path: str, scan: str) -> str:
    """Cut a picture's path to what all scans share: ten thousand paths take megabytes.

    >>> _pattern("sub-01/figures/sub-01_ses-a_desc-qc_T1w.png", "sub-01_ses-a")
    '{p}/figures/{s}_desc-qc_T1w.png'
    """
    subject = scan.split("_")[0]
    return path.replace(f"/{scan}_", "/{s}_").replace(f"{subject}/", "{p}/", 1)


def _order(path: str) -> int:
    kinds = [f"_desc-{kind}_" in path for kind in PICTURES]
    return kinds.index(True) if any(kinds) else len(kinds)


def _captions() -> dict[str, str]:
    """Name each kind of picture as the participants' reports do."""
    spec = (files("bids_harmony.data") / "reports-spec.yml").read_text(encoding="utf-8")
    parts = yaml.safe_load(spec)
    return {part["figure"]: part["subtitle"] for part in parts if "figure" in part}


def _levels(values: pd.Series) -> dict[str, list[Any]]:
    codes, levels = values.factorize(sort=True)
    return {"levels": [str(level) for level in levels], "codes": codes.tolist()}


def _numbers(values: np.ndarray) -> list[float | None]:
    """Round to :data:`DIGITS` significant digits; whole numbers lose their point."""
    texts = (f"{v:.{DIGITS}g}" for v in values.tolist())
    rounded = (float(text) for text in texts)
    return [(int(v) if v.is_integer() else v) if np.isfinite(v) else None for v in rounded]


def _described(group: Group, name: str) -> dict[str, str]:
    facts = group.dictionary.get(name) or {}
    return {
        "name": name,
        "label": str(facts.get("LongName", name)),
        "text": str(facts.get("Description", "")),
        "units": str(facts.get("Units", "")),
        "direction": str(facts.get("Direction", "")),
        "group": str(facts.get("Group", "Others")),
    }


def _target(group: Group, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": TARGET_NAMES.get(name, name.replace("_", " ")),
        "simulated": name in (group.bundle or {}).get("simulated", ()),
    }


def script_json(values: Any) -> str:
    r"""Write JSON that may stand in a script element: nothing in it can end the element.

    >>> script_json("</script>")
    '"\\u003c/script>"'
    """
    text = json.dumps(values, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c")


def fixed(value: float | None, digits: int = 2) -> str:
    """Write a number with some decimals, ``n/a`` for None."""
    # Without the sum, what rounds to nothing would keep its sign.
    return "n/a" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def figure(measured: tuple[float | None, Iterable[float] | None], digits: int = 2) -> str:
    """Write a figure with its interval.

    >>> figure((1.0, (0.5, 2.0)), 1), figure((3.14159, None)), figure((None, None))
    ('1.0 [0.5, 2.0]', '3.14', 'n/a')
    """
    value, ends = measured
    text = fixed(value, digits)
    return text if ends is None else f"{text} [{', '.join(fixed(e, digits) for e in ends)}]"
