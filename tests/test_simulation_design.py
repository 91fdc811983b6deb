"""Who is scanned where: sizes of sites, ages, pathologies and bad scans."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bids_harmony.simulation.defects import KINDS
from bids_harmony.simulation.plan import (
    Subject,
    add_defects,
    add_pathology,
    plan_subjects,
)
from bids_harmony.simulation.scanner import draw_scanner

SCANNERS = [draw_scanner(5, site) for site in (1, 2, 3)]


def ages_by_site(subjects: list[Subject]) -> dict[str, np.ndarray]:
    return {
        scanner.site: np.array([s.age for s in subjects if s.scanners == (scanner,)])
        for scanner in SCANNERS
    }


def test_ages_cover_the_range_and_groups_are_balanced_at_every_site() -> None:
    scanners = [draw_scanner(5, site) for site in (1, 2)]
    subjects = plan_subjects(scanners, 20, seed=5, travelling=False)
    assert len({s.label for s in subjects}) == 40
    for scanner in scanners:
        here = [s for s in subjects if s.scanners == (scanner,)]
        ages = sorted(s.age for s in here)
        assert ages[0] < 23
        assert ages[-1] > 80
        assert max(np.diff(ages)) < 7
        for field, value in (("diagnosis", "control"), ("sex", "M")):
            assert sum(getattr(s, field) == value for s in here) == 10
    more = plan_subjects([*scanners, draw_scanner(5, 3)], 20, seed=5, travelling=False)
    assert more[:40] == subjects


def test_each_site_has_its_size() -> None:
    subjects = plan_subjects(SCANNERS, [60, 60, 8], seed=5, travelling=False)
    assert [len(ages) for ages in ages_by_site(subjects).values()] == [60, 60, 8]
    # A smaller third site changes nobody else.
    assert subjects[:120] == plan_subjects(SCANNERS, 60, seed=5, travelling=False)[:120]


@pytest.mark.parametrize("years", [8.0, 20.0, -30.0])
def test_confounded_ages_differ_by_the_years_asked_and_span_the_range(years: float) -> None:
    subjects = plan_subjects(SCANNERS, [40, 60, 30], seed=5, travelling=False, confound=years)
    site1, *others = ages_by_site(subjects).values()
    assert site1.mean() - np.concatenate(others).mean() == pytest.approx(years, abs=1.0)
    for ages in (site1, *others):
        assert 18 <= ages.min() < 32
        assert 71 < ages.max() <= 85
    plain = plan_subjects(SCANNERS, [40, 60, 30], seed=5, travelling=False)
    assert [s.sex + s.diagnosis for s in subjects] == [s.sex + s.diagnosis for s in plain]


def test_pathologies_and_bad_scans_are_spread_over_sites_and_kinds() -> None:
    subjects = plan_subjects(SCANNERS, [130, 130, 80], seed=5, travelling=False)
    subjects = add_pathology(subjects, 0.15, seed=5)
    subjects = add_defects(subjects, 0.21, tuple(KINDS), seed=5)
    ill = Counter(s.pathology for s in subjects if s.pathology != "none")
    assert ill == {"lesion": 17, "resection": 17, "atrophy": 17}
    bad = [s for s in subjects if s.defects != ("good",)]
    counts = Counter(s.defects[0] for s in bad)
    assert set(counts) == set(KINDS)
    assert sum(counts.values()) == round(0.21 * 340)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert all(s.pathology == "none" for s in bad)
    by_site = Counter(s.scanners[0].site for s in bad)
    assert [by_site[s.site] for s in SCANNERS] == pytest.approx([27, 27, 17], abs=2)
    assert add_defects(subjects, 0.21, tuple(KINDS), seed=5) == subjects


def test_a_travelling_head_has_bad_scans_at_some_sites() -> None:
    subjects = plan_subjects(SCANNERS, 10, seed=5, travelling=True)
    subjects = add_defects(subjects, 0.2, ("noise",), seed=5)
    assert Counter(kind for s in subjects for kind in s.defects) == {"good": 24, "noise": 6}
