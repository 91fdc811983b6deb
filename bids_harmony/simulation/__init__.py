"""Simulate heads with known ground truth, and scan them with simulated scanners into BIDS."""

#: Name in ``GeneratedBy`` of simulated datasets.
GENERATOR = "bids_harmony-simulate"
#: Kinds of bad scans that a rater would reject, with the range of their severity. The units are
#: described in ``derivatives/truth/scans.json``.
KINDS: dict[str, tuple[float, float]] = {
    "ghosting": (3.0, 6.0),
    "wrong-contrast": (80.0, 120.0),
    "cropped": (0.15, 0.35),
    "noise": (0.25, 0.45),
    "wrong-orientation": (40.0, 140.0),
    "wrong-mask": (0.3, 0.5),
    "lesion": (0.0, 0.0),
}
