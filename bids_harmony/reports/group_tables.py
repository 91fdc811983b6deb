"""Tables of the dataset's report: who was scanned how, and how predictions did, by site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from bids_harmony.reports.reportlets import TARGET_NAMES

if TYPE_CHECKING:
    import pandas as pd

    from bids_harmony.qc.dataset import Group

N_BOOTSTRAP, N_PARTS = 2000, 20
#: Persons below which drawing them again says nothing, and scans below which a correlation does.
LEAST_DRAWN, LEAST_R = 3, 5
SEED = 42
#: Different values of a cell that are named one by one.
MOST_NAMED = 3
PROTOCOL = (
    ("repetition_time", "TR {:.4g} s"),
    ("echo_time", "TE {:.3g} s"),
    ("inversion_time", "TI {:.3g} s"),
    ("flip_angle", "flip angle {:.3g}°"),
)
VOXEL = ("voxel_x_mm", "voxel_y_mm", "voxel_z_mm")
ALL = "All sites"


def site_rows(scans: pd.DataFrame) -> list[dict[str, Any]]:
    """Describe each site, and all together, as the paper's Tables 3 and 4 do.

    Parameters
    ----------
    scans : pandas.DataFrame
        Of :class:`bids_harmony.qc.dataset.Group`.

    Returns
    -------
    list of dict
        ``site``, ``n`` scans, ``people``, ``age`` (mean), ``ages`` (range), ``sex``,
        ``diagnosis``, ``scanner``, ``field``, ``protocol``, ``voxel``: texts, ``n/a`` where
        nothing is known.
    """
    rows = []
    for site, here in _by_site(scans):
        age = here["age"].dropna()
        missing = f", unknown for {len(here) - len(age)}" if len(age) < len(here) else ""
        scanner = _joined(here, ("manufacturer", "model"))
        rows.append(
            {
                "site": site,
                "n": len(here),
                "people": persons(here).nunique(),
                "age": f"{age.mean():.1f}" if len(age) else "n/a",
                "ages": f"{age.min():.3g} to {age.max():.3g}{missing}" if len(age) else "n/a",
                "sex": _counts(here["sex"]),
                "diagnosis": _counts(here["diagnosis"]),
                "scanner": _counts(scanner),
                "field": _counts(_spoken(here["field_strength"], "{:.3g} T")),
                "protocol": _counts(_protocol(here)),
                "voxel": _counts(_voxels(here)),
            }
        )
    return rows


def status_rows(group: Group) -> list[dict[str, Any]]:
    """Count each site's scans by status, flags and ratings.

    Returns
    -------
    list of dict
        ``site``, ``n``, the statuses, ``flagged`` and the ratings, with counts.
    """
    scans = group.scans
    flagged = scans["scan"].isin(list(group.flags))
    rows = []
    for site, here in _by_site(scans):
        status, rating = here["qc_status"].value_counts(), here["rating"].value_counts()
        rows.append(
            {
                "site": site,
                "n": len(here),
                **{name: int(status.get(name, 0)) for name in ("pass", "warn", "fail", "error")},
                "flagged": int(flagged[here.index].sum()),
                **{name: int(rating.get(name, 0))
                   for name in ("accept", "reject", "unsure", "disputed")},
            }
        )  # fmt: skip
    return rows


def _by_site(scans: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    sites = sorted(scans["site"].unique())
    rows = [(site, scans[scans["site"] == site]) for site in sites]
    return [*rows, (ALL, scans)] if len(sites) > 1 else rows


def _counts(values: Iterable[Any]) -> str:
    """Name the most frequent values with their counts.

    >>> _counts(["F", "M", "F", None]), _counts(["a", "a"]), _counts([None])
    ('F (2), M (1), unknown (1)', 'a', 'n/a')
    """
    found = Counter(v if isinstance(v, str) and v else None for v in values)
    unknown = found.pop(None, 0)
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    if not ordered:
        return "n/a"
    if len(ordered) == 1 and not unknown:
        return str(ordered[0][0])
    parts = [f"{value} ({n})" for value, n in ordered[:MOST_NAMED]]
    if more := ordered[MOST_NAMED:]:
        parts.append(f"{len(more)} more ({sum(n for _, n in more)})")
    return ", ".join([*parts, *([f"unknown ({unknown})"] if unknown else [])])


def _spoken(values: pd.Series, form: str) -> list[str | None]:
    return [form.format(v) if v == v else None for v in values]


def _joined(scans: pd.DataFrame, columns: Iterable[str], mark: str = " ") -> list[str | None]:
    rows = zip(*(scans[c] for c in columns), strict=True)
    return [mark.join(v for v in row if isinstance(v, str)) or None for row in rows]


def _protocol(scans: pd.DataFrame) -> list[str | None]:
    parts = [scans["sequence"].tolist()]
    parts += [_spoken(scans[column], form) for column, form in PROTOCOL]
    return [", ".join(v for v in row if isinstance(v, str)) or None
            for row in zip(*parts, strict=True)]  # fmt: skip


def _voxels(scans: pd.DataFrame) -> list[str | None]:
    sizes = zip(*(_spoken(scans[c], "{:.3g}") for c in VOXEL), strict=True)
    return [None if None in row else f"{' × '.join(map(str, row))} mm" for row in sizes]


def kept(group: Group) -> pd.DataFrame:
    """Leave out the scans that the raters rejected; figures are made from the others."""
    return group.scans[group.scans["rating"] != "reject"]


def persons(scans: pd.DataFrame) -> pd.Series:
    """Whose scan each is; a failed scan's record may not say."""
    named: pd.Series = scans["person"].fillna(scans["participant_id"].str.removeprefix("sub-"))
    return named


def age_rows(group: Group) -> list[dict[str, Any]]:
    """Measure predicted against true age, raw beside harmonized, on the same scans.

    Parameters
    ----------
    group : Group
        Scans without an age or without either prediction, and rejected ones, are left out.

    Returns
    -------
    list of dict
        For each site and all: ``site``, ``n``, ``people`` and, under ``raw``, ``harmonized``
        and ``change`` (of the absolute error), the figures ``mae``, ``bias`` (mean of predicted
        minus true), ``r`` and, where the group has a line, ``offset`` and ``scatter`` (mean and
        standard deviation about the reference site's line), each (value, (low, high)): 95 %
        intervals from drawing persons again; None where too few say nothing. Empty without a
        brain age.
    """
    if "brain_age" not in group.targets:
        return []
    columns = ["age", "brain_age_raw", "brain_age_harmonized"]
    scans = kept(group).dropna(subset=columns)
    rows = []
    for site, here in _by_site(scans) if len(scans) else ():
        age, raw, mapped = here[columns].to_numpy(float).T
        weights = _draws(persons(here))
        people = persons(here).nunique()
        figures = {
            kind: _figures(predicted, age, people) | _about_line(predicted, age, group.line)
            for kind, predicted in (("raw", raw), ("harmonized", mapped))
        }
        figures["change"] = {"mae": _mean(np.abs(mapped - age) - np.abs(raw - age))}
        rows.append(
            {
                "site": site,
                "n": len(here),
                "people": people,
                **{kind: {name: _measured(f, len(here), weights) for name, f in row.items()}
                   for kind, row in figures.items()},
            }
        )  # fmt: skip
    return rows


Figure = Callable[[np.ndarray], np.ndarray]


def _mean(values: np.ndarray) -> Figure:
    return lambda w: w @ values / w.sum(-1)


def _figures(predicted: np.ndarray, truth: np.ndarray, n_people: int) -> dict[str, Figure]:
    """Figures as functions of the scans' weights, (scans,) or (draws, scans)."""
    error = predicted - truth

    def r(w: np.ndarray) -> np.ndarray:
        # Centred, so that sums of squares lose no digits.
        x, y = predicted - predicted.mean(), truth - truth.mean()
        mx, my, mxx, myy, mxy = (_mean(v)(w) for v in (x, y, x * x, y * y, x * y))
        spread = np.sqrt(np.maximum((mxx - mx**2) * (myy - my**2), 0))
        with np.errstate(invalid="ignore", divide="ignore"):
            value: np.ndarray = np.where(spread > 1e-9, (mxy - mx * my) / spread, np.nan)
        return value

    figures = {"mae": _mean(np.abs(error)), "bias": _mean(error)}
    return figures | ({"r": r} if n_people >= LEAST_R else {"r": lambda _: np.array(np.nan)})


def _about_line(
    predicted: np.ndarray, age: np.ndarray, line: tuple[float, float] | None
) -> dict[str, Figure]:
    """Mean and standard deviation about the reference site's line, where there is one."""
    if line is None:
        return {}
    apart = predicted - (line[0] * age + line[1])
    mean, square = _mean(apart), _mean(apart**2)
    return {"offset": mean, "scatter": lambda w: np.sqrt(np.maximum(square(w) - mean(w) ** 2, 0))}


def _draws(people: pd.Series) -> np.ndarray | None:
    """How often each scan counts when persons are drawn again: (draws, scans)."""
    codes, names = people.factorize()
    if len(names) < LEAST_DRAWN:
        return None
    rng, n = np.random.default_rng(SEED), len(names)
    rows = (np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(N_BOOTSTRAP))
    counts = np.fromiter(rows, np.dtype((float, n)), N_BOOTSTRAP)
    return counts[:, codes]


def _measured(
    figure: Figure, n: int, weights: np.ndarray | None
) -> tuple[float | None, tuple[float, float] | None]:
    value = float(figure(np.ones(n)))
    if not np.isfinite(value):
        return None, None
    if weights is None:
        return value, None
    # In parts, so that ten thousand scans fit into little memory.
    drawn = np.concatenate([figure(part) for part in np.array_split(weights, N_PARTS)])
    low, high = np.nanpercentile(drawn, (2.5, 97.5))
    return value, (float(low), float(high))


def probability_tables(group: Group) -> list[dict[str, Any]]:
    """Summarize predicted probabilities by diagnosis, raw beside harmonized.

    Returns
    -------
    list of dict
        For each target whose name ends with ``_probability``: ``target``, ``title``,
        ``simulated``, ``rows`` (``diagnosis``, ``n``, and mean with interval as in
        :func:`age_rows` under ``raw`` and ``harmonized``) and ``separation``: the same of the
        area under the curve, by diagnosis, against the controls.
    """
    scans = kept(group)
    tables = []
    for target in group.targets:
        columns = [f"{target}_raw", f"{target}_harmonized"]
        here = scans.dropna(subset=columns)
        if not target.endswith("_probability") or here.empty:
            continue
        groups = {
            str(name): rows
            for name, rows in here.groupby(here["diagnosis"].fillna("unknown"), sort=True)
        }
        tables.append(
            {
                "target": target,
                "title": TARGET_NAMES.get(target, target.replace("_", " ")),
                "simulated": target in (group.bundle or {}).get("simulated", ()),
                "rows": [_probabilities(name, rows, columns) for name, rows in groups.items()],
                "separation": _separations(groups, columns),
            }
        )
    return tables


def _probabilities(name: str, rows: pd.DataFrame, columns: list[str]) -> dict[str, Any]:
    weights = _draws(persons(rows))
    return {"diagnosis": name, "n": len(rows)} | {
        column.rpartition("_")[2]: _measured(
            _mean(rows[column].to_numpy(float)), len(rows), weights
        )
        for column in columns
    }


def _separations(groups: dict[str, pd.DataFrame], columns: list[str]) -> list[dict[str, Any]]:
    import pandas as pd

    from bids_harmony.training.targets import CONTROLS

    controls = [name for name in groups if name.strip().lower() in CONTROLS]
    found = []
    for name in groups if len(controls) == 1 else ():
        if name in (*controls, "unknown"):
            continue
        both = pd.concat([groups[controls[0]], groups[name]])
        truth = np.repeat([0.0, 1.0], [len(groups[controls[0]]), len(groups[name])])
        # One person is in every draw that has the class.
        few = min(persons(groups[k]).nunique() for k in (controls[0], name))
        weights = None if few < LEAST_DRAWN else _draws(persons(both))
        found.append(
            {"diagnosis": name, "controls": controls[0],
             "n": (int((truth == 0).sum()), int(truth.sum()))}
            | {column.rpartition("_")[2]:
               _measured(_area(both[column].to_numpy(float), truth), len(both), weights)
               for column in columns}
        )  # fmt: skip
    return found


def _area(score: np.ndarray, truth: np.ndarray) -> Figure:
    """Area under the curve as a function of the scans' weights; ties count half."""
    _, level = np.unique(score, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(level.max() + 1))

    def area(w: np.ndarray) -> np.ndarray:
        cases = np.add.reduceat((w * truth)[..., order], starts, axis=-1, dtype=float)
        controls = np.add.reduceat((w * (1 - truth))[..., order], starts, axis=-1, dtype=float)
        below = np.cumsum(controls, axis=-1) - controls / 2
        total = cases.sum(-1) * controls.sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            value: np.ndarray = np.where(total > 0, (cases * below).sum(-1) / total, np.nan)
        return value

    return area
