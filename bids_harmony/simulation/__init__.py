"""Simulated heads with known truth, scanned by simulated scanners into BIDS datasets."""

#: Name by which a simulated dataset says who made it.
GENERATOR = "bids_harmony-simulate"
#: Kinds of bad scans that a person looking would reject, and the range their severity is drawn
#: from; the truth's ``scans.json`` says what each is and what its severity counts.
KINDS: dict[str, tuple[float, float]] = {
    "ghosting": (3.0, 6.0),
    "wrong-contrast": (80.0, 120.0),
    "cropped": (0.15, 0.35),
    "noise": (0.25, 0.45),
    "wrong-orientation": (40.0, 140.0),
    "wrong-mask": (0.3, 0.5),
    "lesion": (0.0, 0.0),
}
