"""The dataset's report: one HTML file with tables, charts, pictures, and a place for verdicts.

What needs no mouse and no script (tables, pictures) is written here; charts and the list of
scans are drawn in the browser from the scans' values, which the page holds once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_harmony.files import write_text
from bids_harmony.qc.dataset import prediction_columns
from bids_harmony.reports import render, target_title
from bids_harmony.reports.figures import FIGURES
from bids_harmony.reports.group_figures import dataset_pictures
from bids_harmony.reports.group_tables import age_rows, kept, probability_tables, site_rows

if TYPE_CHECKING:
    import pandas as pd

    from bids_harmony.qc.dataset import Group

#: Columns of texts and of numbers that the page shows of a scan, beside metrics and predictions.
TEXTS = ("participant_id", "session_id", "site", "sex", "diagnosis", "manufacturer", "model",
         "qc_status", "error", "harmonization_status", "rating")  # fmt: skip
NUMBERS = ("age", "field_strength", "outlier_rank", "outlier_score")
#: What the page says of a metric, by its name in the dictionary.
DESCRIBED = {"label": "LongName", "text": "Description", "units": "Units",
             "direction": "Direction", "group": "Group"}  # fmt: skip
#: Significant digits of numbers.
DIGITS = 5


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
    from plotly.offline import get_plotlyjs

    pictures, notes = dataset_pictures(group, out)
    ages = age_rows(group)
    page = render(
        "group_report.html",
        plotly=get_plotlyjs(),
        data=script_json(page_data(group)),
        group=group,
        sites=site_rows(group),
        ages=ages,
        left_out=_left_out(group, ages[-1]["n"]) if ages else "",
        probabilities=probability_tables(group),
        target_title=target_title,
        pictures=pictures,
        picture_notes=notes,
    )
    target = out / "group_T1w.html"
    write_text(target, page)
    return target


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
    numbers = (*NUMBERS, *group.metrics, *predicted)
    simulated = (group.bundle or {}).get("simulated", ())
    paths: dict[str, int] = {}
    return {
        "scan": list(place),
        "texts": {name: _levels(scans[name]) for name in TEXTS},
        "numbers": {name: _numbers(scans[name]) for name in numbers},
        "metrics": [_described(group, name) for name in group.metrics],
        "targets": [
            {"name": name, "label": target_title(name), "simulated": name in simulated}
            for name in group.targets
        ],
        "flags": {
            place[scan]: [[flag.metric, flag.text] for flag in flags]
            for scan, flags in group.flags.items()
            if scan in place
        },
        "pictures": {
            i: [paths.setdefault(_pattern(path, scan), len(paths))
                for path in sorted(group.figures[scan], key=_order)]
            for scan, i in place.items()
            if group.figures.get(scan)
        },
        "patterns": list(paths),
        "captions": FIGURES,
        "ratings": group.ratings[["scan", "rater", "time", "verdict", "comment"]].values.tolist(),
    }  # fmt: skip


def script_json(values: Any) -> str:
    r"""Write JSON that may stand in a script element: nothing in it can end the element.

    >>> script_json("</script>")
    '"\\u003c/script>"'
    """
    text = json.dumps(values, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c")


def _left_out(group: Group, n: int) -> str:
    """Say which scans the figures of brain age leave out."""
    scans = kept(group)
    counts = {
        "rejected by the raters": len(group.scans) - len(scans),
        "without an age": int(scans["age"].isna().sum()),
        "without both predictions": int(scans["age"].notna().sum()) - n,
    }
    parts = [f"{count} {why}" for why, count in counts.items() if count]
    return f"Left out: {', '.join(parts)}." if parts else "All scans are in it."


def _pattern(path: str, scan: str) -> str:
    """Cut a picture's path to what all scans share: ten thousand paths take megabytes.

    >>> _pattern("sub-01/figures/sub-01_ses-a_desc-qc_T1w.png", "sub-01_ses-a")
    '{p}/figures/{s}_desc-qc_T1w.png'
    """
    subject = scan.split("_")[0]
    return path.replace(f"/{scan}_", "/{s}_").replace(f"{subject}/", "{p}/", 1)


def _order(path: str) -> int:
    """Sort pictures as a rater wants them, unknown ones last."""
    return next((i for i, name in enumerate(FIGURES) if f"_desc-{name}_" in path), len(FIGURES))


def _levels(values: pd.Series) -> dict[str, list[Any]]:
    codes, levels = values.factorize(sort=True)
    return {"levels": [str(level) for level in levels], "codes": codes.tolist()}


def _numbers(values: pd.Series) -> list[float | None]:
    """Round to :data:`DIGITS` significant digits; whole numbers lose their point."""
    rounded = (float(f"{v:.{DIGITS}g}") for v in values.tolist())
    return [(int(v) if v.is_integer() else v) if np.isfinite(v) else None for v in rounded]


def _described(group: Group, name: str) -> dict[str, str]:
    facts = {"LongName": name, "Group": "Others"} | (group.dictionary.get(name) or {})
    return {"name": name} | {key: str(facts.get(of, "")) for key, of in DESCRIBED.items()}
