"""Different scans never share a name: neither their workflows nor their outputs."""

from __future__ import annotations

import json
from pathlib import Path

from bids.layout.writing import build_path
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bids_harmony.bids import workflow_name
from bids_harmony.bids_sidecars import ENTITIES, parse_entities

LABEL = st.text("0123456789abcXYZ+", min_size=1, max_size=4)
NUMBER = st.from_regex(r"[0-9]{1,3}", fullmatch=True)
NAMES = st.fixed_dictionaries(
    {"sub": LABEL},
    optional={
        **dict.fromkeys(("ses", "task", "acq", "ce", "rec"), LABEL),
        **dict.fromkeys(("run", "echo", "chunk"), NUMBER),
        "part": st.sampled_from(["mag", "phase", "real", "imag"]),
    },
).map(lambda e: "_".join(f"{name}-{e[name]}" for name in ENTITIES if name in e))


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(NAMES, min_size=2, max_size=12, unique=True))
@example(["sub-01_acq-a", "sub-01_rec-a", "sub-01_acq-a_rec-a", "sub-01_run-1", "sub-01_run-01"])
@example(["sub-01_echo-1_part-mag", "sub-01_part-mag", "sub-01_echo-1", "sub-01_chunk-1"])
def test_different_names_give_different_outputs(names: list[str]) -> None:
    """The claim: from the file's name to every name made of it, no two scans ever meet."""
    spec = Path(__file__).resolve().parents[1] / "bids_harmony/data/io_spec.json"
    patterns = json.loads(spec.read_text())["default_path_patterns"]
    assert len({workflow_name(name) for name in names}) == len(names)
    entities = [{ENTITIES[k]: v for k, v in parse_entities(name).items()} for name in names]
    kinds = (
        {"suffix": "T1w", "extension": ".nii.gz", "space": "S", "resolution": "2", "desc": "x"},
        {"suffix": "mask", "extension": ".nii.gz", "desc": "brain"},
        {"suffix": "xfm", "extension": ".txt", "from": "T1w", "to": "S", "mode": "image"},
        {"suffix": "qc", "extension": ".json", "desc": "harmony"},
        {"suffix": "T1w", "extension": ".png", "desc": "x", "datatype": "figures"},
    )
    for kind in kinds:
        made = [build_path({**e, **kind}, patterns) for e in entities]
        assert None not in made
        assert len(set(made)) == len(names)


@given(st.lists(st.text("ab-_.+", min_size=1, max_size=6), min_size=2, unique=True))
def test_names_that_are_not_bids_still_give_different_workflows(keys: list[str]) -> None:
    assert len({workflow_name(key) for key in keys}) == len(keys)
