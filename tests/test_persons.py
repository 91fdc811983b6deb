"""Statistics whose unit is the person, against published figures and some worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bids_harmony.evaluation.persons import (
    coverage,
    delong,
    drawn_persons,
    exchanged_labels,
    placements,
)

#: Albumin, total protein, Krebs-Goplerud score and outcome of the 43 women with all three measures
#: in DeLong, DeLong and Clarke-Pearson (1988), as listed in the SAS/STAT User's Guide, "The
#: LOGISTIC Procedure", example "Comparing Receiver Operating Characteristic Curves".
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
3.6 6.6 5 1
"""


@pytest.fixture(scope="module")
def ovarian() -> np.ndarray:
    return np.array(OVARIAN.split(), float).reshape(-1, 4).T


def test_delong_gives_the_published_comparison(ovarian: np.ndarray) -> None:
    albumin, protein, score, truth = ovarian
    women = np.arange(len(truth))
    assert placements(albumin, truth)[truth == 1].mean() == pytest.approx(0.7366, abs=5e-5)
    # The guide's table "ROC Contrast Estimation and Testing Results by Row".
    for measure, wanted in ((albumin, (0.0108, 0.0953, 0.9102)),
                            (protein, (-0.0780, 0.1046, 0.4561))):  # fmt: skip
        found = delong(measure[None], -score[None], truth, women)
        assert found == pytest.approx(wanted, abs=5e-5)
        # Another scale, and a scale of its own in each repetition, change nothing.
        scaled = np.array([1000 * measure - 7, np.exp(measure)])
        assert delong(scaled, -np.array([score, score]), truth, women) == pytest.approx(found)


def test_delong_gives_the_published_error_of_one_area() -> None:
    # Ratings of 109 CT images in Hanley and McNeil (1982), Table I; Stata's manual (roctab) has
    # DeLong's standard error of the area, 0.0307. A constant score has the area 0.5 for certain.
    counts = ([33, 6, 6, 11, 2], [3, 2, 2, 11, 33])
    rating = np.concatenate([np.repeat(np.arange(5.0), n) for n in counts])
    truth = np.repeat([0.0, 1.0], [58, 51])
    area, error, _ = delong(rating[None], 0 * rating[None], truth, np.arange(109))
    assert (area, error) == pytest.approx((0.8932 - 0.5, 0.0307), abs=5e-5)


def test_delong_counts_persons_not_scans(ovarian: np.ndarray) -> None:
    albumin, _, score, truth = ovarian
    women = np.arange(len(truth))
    once = delong(albumin[None], -score[None], truth, women)
    # The same scan three times is no more than once: the clustered variance stays what it was.
    many = [np.tile(v, 3) for v in (albumin, -score, truth, women)]
    thrice = delong(many[0][None], many[1][None], *many[2:])
    assert thrice == pytest.approx(once)
    as_if = delong(many[0][None], many[1][None], many[2], np.arange(3 * len(truth)))
    assert as_if[1] < 0.6 * once[1]


def test_obuchowskis_variance_worked_out_by_hand() -> None:
    # Two persons have a case and a control scan each, a third a case, a fourth a control.
    # a places cases at 1, 1, 1/3 and controls at 2/3, 2/3, 1, b all at 1/2: the differences are
    # 1/2, 1/2, -1/6 (mean 5/18) and 1/6, 1/6, 1/2 (mean 5/18). Centred, over 3: 2/27, 2/27, -4/27
    # and -1/27, -1/27, 2/27. Variance 3/2 (24 + 6) / 729 + 2 * 4/3 * (-4) / 729.
    a = np.array([[5.0, 5.0, 2.0, 3.0, 3.0, 1.0]])
    truth = np.array([1, 1, 1, 0, 0, 0])
    persons = np.array(list("pqrpqs"))
    area, error, _ = delong(a, 0 * a, truth, persons)
    assert area == pytest.approx(5 / 18)
    assert error**2 == pytest.approx((45 - 32 / 3) / 729)


def test_delong_says_nothing_of_what_it_cannot_know() -> None:
    truth = np.array([1, 1, 0, 0])
    score = np.array([[4.0, 3.0, 2.0, 1.0]])
    assert delong(score, score, truth, np.arange(4)) == (0, 0, 1)
    assert np.isnan(delong(score, -score, truth, np.arange(4))[2])  # no spread to judge it by
    assert np.isnan(delong(score, -score, truth, np.array([0, 0, 1, 2]))).all()
    missing = np.array([[4.0, 3.0, 2.0, 1.0], [np.nan] * 4])
    assert delong(missing, missing, truth, np.arange(4)) == (0, 0, 1)


def test_whole_persons_are_drawn() -> None:
    persons = np.array(["a", "b", "b", "b"])
    draws = drawn_persons(persons, 50, np.random.default_rng(0))
    for draw in draws:
        n_b = [int((draw == i).sum()) for i in (1, 2, 3)]
        assert len(set(n_b)) == 1
        assert (draw == 0).sum() + n_b[0] == 2
    assert {len(draw) for draw in draws} == {2, 4, 6}


def test_labels_are_exchanged_between_persons() -> None:
    persons = np.array(list("aabbccdd"))
    labels = np.array([1, 1, 0, 0, 0, 0, 1, 0], bool)  # d was seen in both groups
    rng = np.random.default_rng(0)
    found = np.array([exchanged_labels(labels, persons, rng) for _ in range(200)])
    pairs = found.reshape(200, 4, 2)
    assert (pairs[:, :3, 0] == pairs[:, :3, 1]).all()
    assert (pairs[:, :3, 0].sum(axis=1) == 1).all()
    assert (pairs[:, 3, 0] != pairs[:, 3, 1]).all()
    assert (pairs[:, :, 0].mean(axis=0) > 0.2).all()


def test_coverage_is_that_of_persons() -> None:
    # Wilson (1927) for 9 of 10: 0.596 to 0.982 (Newcombe 1998's formula worked out by hand).
    inside = np.array([True] * 9 + [False])
    assert coverage(inside, np.arange(10)) == pytest.approx((0.9, 0.5958, 0.9821), abs=1e-4)
    # Ninety further scans of the tenth person are still one person's.
    inside, persons = np.append(inside, [False] * 90), np.append(np.arange(10), [9] * 90)
    assert coverage(inside, persons) == pytest.approx((0.9, 0.5958, 0.9821), abs=1e-4)
    assert np.isnan(coverage(np.array([], bool), np.array([]))).all()
