"""Write the group report: one HTML file with tables, charts, images and a rating form.

Tables and images are part of the HTML. Charts and the list of scans are drawn in the browser from
the scans' values, which the page contains once as JSON. The tables summarize participants,
acquisition and prediction performance by site.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from bids_harmony.bids.tables import CONTROLS
from bids_harmony.files import write_text
from bids_harmony.qc.dataset import STATUSES, prediction_columns
from bids_harmony.reports import render, target_title
from bids_harmony.reports.figures import FIGURES
from bids_harmony.reports.group_figures import dataset_pictures, not_rejected
from bids_harmony.sites.statistics import offset_and_scatter, with_intervals

if TYPE_CHECKING:
    from bids_harmony.qc.dataset import Group

#: Text and number columns in the page's data, besides metrics and predictions.
TEXTS = ("participant_id", "session_id", "site", "sex", "diagnosis", "manufacturer", "model",
         "qc_status", "error", "harmonization_status", "rating")  # fmt: skip
NUMBERS = ("age", "field_strength", "outlier_rank", "outlier_score")
#: Fields of the page's metric descriptions, and their names in the data dictionary.
DESCRIBED = {"label": "LongName", "text": "Description", "units": "Units",
             "direction": "Direction", "group": "Group"}  # fmt: skip
#: Significant digits of numbers in the page's data.
DIGITS = 5
#: Bootstrap draws of persons for the intervals in tables, and the random seed.
N_BOOTSTRAP, SEED = 2000, 42
#: Fewest persons for a bootstrap interval, and for a correlation.
LEAST_DRAWN, LEAST_R = 3, 5
#: Most values that a table cell lists one by one.
MOST_NAMED = 3
RATINGS = ("accept", "reject", "unsure", "disputed")
#: Acquisition: columns of the group table, and the format of their values.
SCANNER = {"manufacturer": "{}", "model": "{}"}
PROTOCOL = {
    "sequence": "{}",
    "repetition_time": "TR {:.4g} s",
    "echo_time": "TE {:.3g} s",
    "inversion_time": "TI {:.3g} s",
    "flip_angle": "flip angle {:.3g}°",
}
VOXEL = {"voxel_x_mm": "{:.3g}", "voxel_y_mm": "× {:.3g}", "voxel_z_mm": "× {:.3g} mm"}
ALL = "All sites"
KINDS = ("raw", "harmonized")


def write_group_report(group: Group, out: Path) -> Path:
    """Write ``group_T1w.html`` into the output folder.

    Parameters
    ----------
    group : Group
        The dataset.
    out : pathlib.Path
        Output folder, from which ``group.volumes`` are read. The page links to the scans' figures
        there and does not copy them.

    Returns
    -------
    pathlib.Path
        Path of the page. It loads nothing from the internet, and equal outputs give equal bytes.
    """
    from plotly.offline import get_plotlyjs

    pictures, notes = dataset_pictures(group, out)
    scans = not_rejected(group)
    page = render(
        "group_report.html",
        plotly=get_plotlyjs(),
        data=script_json(page_data(group)),
        group=group,
        sites=site_rows(group),
        ages=age_rows(group),
        rejected=len(group.scans) - len(scans),
        ageless=int(scans["age"].isna().sum()),
        probabilities=probability_tables(group),
        target_title=target_title,
        pictures=pictures,
        picture_notes=notes,
    )
    target = out / "group_T1w.html"
    write_text(target, page)
    return target


def page_data(group: Group) -> dict[str, Any]:
    """Return the data of the page's script as compact, column-wise JSON.

    Parameters
    ----------
    group : Group
        The dataset.

    Returns
    -------
    dict
        * ``scan``: keys of the scans;
        * ``texts``: ``levels`` and one code per scan (-1: missing) for each text column;
        * ``numbers``: values or None for each number column;
        * ``metrics``, ``targets``: names and descriptions;
        * ``flags``, ``pictures``: by index of the scan;
        * ``patterns``: path patterns that ``pictures`` refers to by index;
        * ``captions``: titles of the figures;
        * ``ratings``: rows of the rating files.
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
    r"""Serialize to JSON that is safe inside an HTML script element.

    >>> script_json("</script>")
    '"\\u003c/script>"'
    """
    text = json.dumps(values, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("<", "\\u003c")


def _pattern(path: str, scan: str) -> str:
    """Return a figure's path as a pattern shared by all scans, which keeps the page small.

    >>> _pattern("sub-01/figures/sub-01_ses-a_desc-qc_T1w.png", "sub-01_ses-a")
    '{p}/figures/{s}_desc-qc_T1w.png'
    """
    subject = scan.split("_")[0]
    return path.replace(f"/{scan}_", "/{s}_").replace(f"{subject}/", "{p}/", 1)


def _order(path: str) -> int:
    """Return the sort key of a figure: its position in :data:`FIGURES`, unknown ones last."""
    return next((i for i, name in enumerate(FIGURES) if f"_desc-{name}_" in path), len(FIGURES))


def _levels(values: pd.Series) -> dict[str, list[Any]]:
    codes, levels = values.factorize(sort=True)
    return {"levels": [str(level) for level in levels], "codes": codes.tolist()}


def _numbers(values: pd.Series) -> list[float | None]:
    """Round to :data:`DIGITS` significant digits; whole numbers become int, NaN becomes None."""
    rounded = (float(f"{v:.{DIGITS}g}") for v in values.tolist())
    return [(int(v) if v.is_integer() else v) if np.isfinite(v) else None for v in rounded]


def _described(group: Group, name: str) -> dict[str, str]:
    facts = {"LongName": name, "Group": "Others"} | (group.dictionary.get(name) or {})
    return {"name": name} | {key: str(facts.get(of, "")) for key, of in DESCRIBED.items()}


def site_rows(group: Group) -> list[dict[str, Any]]:
    """Summarize each site, and all sites together, as in the paper's Tables 3 and 4.

    Returns
    -------
    list of dict
        ``site``, ``n`` (scans), ``people`` (persons), numbers of scans by status, ``flagged`` and
        by rating; and as text ``age`` (mean), ``ages`` (range), ``sex``, ``diagnosis``,
        ``scanner``, ``field``, ``protocol`` and ``voxel``, ``n/a`` if unknown.
    """
    scans = group.scans.assign(
        flagged=group.scans["scan"].isin(list(group.flags)),
        scanner=_joined(group.scans, SCANNER, " "),
        field=_joined(group.scans, {"field_strength": "{:.3g} T"}),
        protocol=_joined(group.scans, PROTOCOL),
        voxel=_joined(group.scans, VOXEL, " "),
    )
    rows = []
    for site, here in _by_site(scans):
        age = here["age"].dropna()
        unknown = f", unknown for {len(here) - len(age)}" if len(age) < len(here) else ""
        texts = ("sex", "diagnosis", "scanner", "field", "protocol", "voxel")
        rows.append(
            {
                "site": site,
                "n": len(here),
                "people": persons(here).nunique(),
                "age": f"{age.mean():.1f}" if len(age) else "n/a",
                "ages": f"{age.min():.3g} to {age.max():.3g}{unknown}" if len(age) else "n/a",
                "flagged": int(here["flagged"].sum()),
                **{name: int((here["qc_status"] == name).sum()) for name in STATUSES},
                **{name: int((here["rating"] == name).sum()) for name in RATINGS},
                **{name: _counts(here[name]) for name in texts},
            }
        )
    return rows


def persons(scans: pd.DataFrame) -> pd.Series:
    """Return the person of each scan; the participant if a failed scan's record has none."""
    named: pd.Series = scans["person"].fillna(scans["participant_id"].str.removeprefix("sub-"))
    return named


def age_rows(group: Group) -> list[dict[str, Any]]:
    """Compare raw and harmonized brain age with chronological age, on the same scans.

    Parameters
    ----------
    group : Group
        The dataset. Scans without an age or without both predictions, and scans rejected by the
        raters, are excluded.

    Returns
    -------
    list of dict
        One row per site, and one for all sites: ``site``; ``n`` (scans); ``people`` (persons); for
        ``raw`` and ``harmonized``, the measures in years ``raw_mae``, ``raw_bias`` (mean of
        predicted minus true) and, if the group has a line, ``raw_offset`` and ``raw_scatter``
        (mean and standard deviation about the reference site's line), and the correlation
        ``raw_r``; and ``change`` of the mean absolute error. The ends of their 95 % bootstrap
        intervals over persons have the suffixes ``_low`` and ``_high``. Empty if brain age was not
        predicted.
    """
    columns = ["age", *(f"brain_age_{kind}" for kind in KINDS)]
    if "brain_age" not in group.targets:
        return []
    scans = not_rejected(group).dropna(subset=columns)
    rows = []
    for site, here in _by_site(scans):
        row = _measured(here, columns, partial(_age_measures, group.line))
        if row["people"] < LEAST_R:
            row |= {name: np.nan for name in row if name.split("_")[1:2] == ["r"]}
        rows.append({"site": site, **row})
    return rows


def probability_tables(group: Group) -> list[dict[str, Any]]:
    """Summarize raw and harmonized probabilities by diagnosis.

    Returns
    -------
    list of dict
        One table per target whose name ends with ``_probability``: ``target``; ``simulated``;
        ``rows``, one per ``diagnosis`` with ``n`` and the mean under ``raw`` and ``harmonized``,
        with intervals as in :func:`age_rows`; and ``separation``, the area under the ROC curve
        of each diagnosis against the controls, in the same form, if exactly one diagnosis is a
        control label (:data:`CONTROLS`).
    """
    tables = []
    for target in group.targets:
        columns = [f"{target}_{kind}" for kind in KINDS]
        scans = not_rejected(group).dropna(subset=columns)
        if not target.endswith("_probability") or scans.empty:
            continue
        scans = scans.assign(diagnosis=scans["diagnosis"].fillna("unknown"))
        groups = dict(iter(scans.groupby("diagnosis", sort=True)))
        controls = [name for name in groups if str(name).strip().lower() in CONTROLS]
        cases = [name for name in groups if name not in (*controls, "unknown")]
        rows = [{"diagnosis": d, **_measured(groups[d], columns, _means)} for d in groups]
        separation = []
        for name in cases if len(controls) == 1 else ():
            both = scans[scans["diagnosis"].isin([name, *controls])]
            both = both.assign(case=(both["diagnosis"] == name).astype(float))
            # One person of a class would be the same in all draws.
            enough = persons(both).groupby(both["case"]).nunique().min() >= LEAST_DRAWN
            row = _measured(both, ["case", *columns], _areas, enough=bool(enough))
            n = {"cases": len(groups[name]), "controls": len(groups[controls[0]])}
            separation.append({"diagnosis": name, "against": controls[0], **row, **n})
        simulated = target in (group.bundle or {}).get("simulated", ())
        tables.append(
            {"target": target, "simulated": simulated, "rows": rows, "separation": separation}
        )
    return tables


def _joined(scans: pd.DataFrame, forms: Mapping[str, str], mark: str = ", ") -> pd.Series:
    """Join formatted columns of each scan into one text; missing values are skipped."""
    texts = [scans[name].map(form.format, na_action="ignore") for name, form in forms.items()]
    rows = zip(*texts, strict=True)
    joined = [mark.join(v for v in row if isinstance(v, str)) or None for row in rows]
    return pd.Series(joined, index=scans.index, dtype=object)


def _by_site(scans: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    rows = [(str(site), here) for site, here in scans.groupby("site", sort=True)]
    return [*rows, (ALL, scans)] if len(rows) > 1 else rows


def _counts(values: pd.Series) -> str:
    """Format the most frequent values with their counts.

    >>> _counts(pd.Series(["F", "M", "F", None])), _counts(pd.Series(["a", "a"]))
    ('F (2), M (1), unknown (1)', 'a')
    """
    found = values.value_counts().sort_index().sort_values(ascending=False, kind="stable")
    unknown = len(values) - found.sum()
    if found.empty:
        return "n/a"
    if len(found) == 1 and not unknown:
        return str(found.index[0])
    parts = [f"{value} ({n})" for value, n in found.iloc[:MOST_NAMED].items()]
    if len(more := found.iloc[MOST_NAMED:]):
        parts.append(f"{len(more)} more ({more.sum()})")
    return ", ".join([*parts, *([f"unknown ({unknown})"] if unknown else [])])


def _measured(
    scans: pd.DataFrame,
    columns: list[str],
    measure: Callable[..., dict[str, float]],
    *,
    enough: bool = True,
) -> dict[str, Any]:
    """Compute measures of columns with 95 % bootstrap intervals over persons.

    Returns
    -------
    dict
        ``n`` (scans), ``people`` (persons), and the result of
        :func:`bids_harmony.sites.statistics.with_intervals`.
    """
    people, values = persons(scans).to_numpy(dtype=str), scans[columns].to_numpy(float)
    row = {"n": len(scans), "people": len(np.unique(people))}
    enough = enough and row["people"] >= LEAST_DRAWN
    return row | with_intervals(
        lambda draw: measure(*values[draw].T), people, N_BOOTSTRAP, SEED, enough=enough
    )


def _age_measures(
    line: tuple[float, float] | None, age: np.ndarray, *predictions: np.ndarray
) -> dict[str, float]:
    """Return the measures of brain age that :func:`age_rows` describes."""
    found: dict[str, float] = {}
    for kind, predicted in zip(KINDS, predictions, strict=True):
        error = predicted - age
        with np.errstate(invalid="ignore", divide="ignore"):
            r = np.corrcoef(predicted, age)[0, 1]
        found |= {
            f"{kind}_mae": np.abs(error).mean(),
            f"{kind}_bias": error.mean(),
            f"{kind}_r": r,
        }
        if line is not None:
            about = offset_and_scatter(predicted, age, line)
            found[f"{kind}_offset"], found[f"{kind}_scatter"] = about
    return found | {"change": found["harmonized_mae"] - found["raw_mae"]}


def _means(*values: np.ndarray) -> dict[str, float]:
    return dict(zip(KINDS, (v.mean() for v in values), strict=True))


def _areas(case: np.ndarray, *scores: np.ndarray) -> dict[str, float]:
    """Return the area under the ROC curve of each score; ties count half."""
    n, pairs = case.sum(), case.sum() * (1 - case).sum()
    ranks = (rankdata(score)[case == 1].sum() for score in scores)
    return {
        kind: (rank - n * (n + 1) / 2) / pairs if pairs else np.nan
        for kind, rank in zip(KINDS, ranks, strict=True)
    }
