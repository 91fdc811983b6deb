"""Reports: pictures show what they say, and the page holds everything, whatever the scans did."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bids_harmony.anat.template import load_template
from bids_harmony.bids.records import failed_record, scan_record
from bids_harmony.config import Contract
from bids_harmony.qc import reference as references
from bids_harmony.qc.reference import brain_histogram
from bids_harmony.reports import figures
from bids_harmony.reports.participant import (
    participant_page,
    scan_view,
    write_participant_report,
)

MAX_FIGURE = 250_000


@pytest.fixture(scope="module")
def brain():
    """A noisy brain on the template grid, scaled, and its image."""
    template = load_template(2)
    rng = np.random.default_rng(0)
    data = np.asarray(template.t1w.dataobj) * 1.2 + rng.normal(0, 0.05, template.mask.shape)
    data = np.where(template.mask, np.clip(data, 0.01, 2), 0).astype(np.float32)
    return nib.Nifti1Image(data, template.t1w.affine), template


def brain_age(harmonized=38.4):
    z = list(range(-28, 52, 2))
    slices = {
        kind: value and [value + ((7 * i) % 11) - 5 for i in range(len(z))]
        for kind, value in (("raw", 60.2), ("harmonized", harmonized))
    }
    return {
        "raw": 60.2, "interval_90_raw": [50.9, 69.5], "gap_raw": 24.2, "harmonized": harmonized,
        "interval_90": [29.1, 47.7], "gap_harmonized": harmonized and 2.4,
        "per_slice": {"z_mm": z, **slices}, "training_data": "IXI-HH, 96 scans",
    }  # fmt: skip


def draw_all(brain, folder, key="scan"):
    """Draw every figure; return their paths by desc."""
    image, template = brain
    data = np.asarray(image.dataobj)
    brighter = nib.Nifti1Image(np.where(template.mask, data * 1.1, 0), image.affine)
    mask = nib.Nifti1Image(template.mask.astype(np.uint8), image.affine)
    reference = references.reference_statistics(
        {"A": [{"brain_volume_ml": 1400.0 + i, "snr_wm": 10 + i / 10} for i in range(40)]}
    )
    out = {what: folder / f"{key}_desc-{what}_T1w.png" for what in figures.FIGURES}
    figures.mask_figure(image, mask, out["brainmask"])
    figures.registration_figure(image, template, out["norm"])
    figures.harmonization_figure(image, brighter, template.mask, out["harmonized"])
    before, after = (brain_histogram(data * k, template.mask) for k in (1, 1.1))
    histograms = {"before": before, "after": after}
    figures.histogram_figure(histograms | {"reference": before}, "A", out["histogram"])
    figures.prediction_figure(brain_age(), out["predictions"], age=36.0)
    figures.metrics_figure({"brain_volume_ml": 870.0, "snr_wm": 11.0}, reference, out["qc"])
    return out


@pytest.fixture(scope="module")
def drawn(brain, tmp_path_factory):
    return draw_all(brain, tmp_path_factory.mktemp("figures"))


def test_figures_are_small_and_the_same_every_time(brain, drawn, tmp_path):
    again = draw_all(brain, tmp_path)
    for what, path in drawn.items():
        content = path.read_bytes()
        assert content == again[what].read_bytes(), what
        assert 2000 < len(content) <= MAX_FIGURE, what
        with Image.open(path) as picture:
            assert set(picture.info) <= {"transparency", "dpi"}, "no dates, no software"
            assert 900 <= picture.width <= 1400


def colour_share(path, colour, tolerance=60):
    """Share of pixels near a colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
    return float((np.abs(pixels - wanted).max(axis=-1) < tolerance).mean())


def test_figures_show_what_there_is_and_no_more(brain, drawn, tmp_path):
    assert colour_share(drawn["brainmask"], figures.VERMILION) > 0.002
    assert colour_share(drawn["norm"], figures.SKY) > 0.002
    assert colour_share(drawn["harmonized"], "#ffffff") > 0.01, "the difference"
    assert colour_share(drawn["histogram"], figures.RAW) > 0.001
    assert colour_share(drawn["histogram"], figures.HARMONIZED) > 0.001
    assert colour_share(drawn["qc"], figures.VERMILION) > 1e-4, "870 mL is out of range"
    image, template = brain
    empty = nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine)
    figures.mask_figure(image, empty, tmp_path / "empty.png")
    assert colour_share(tmp_path / "empty.png", figures.VERMILION) < 1e-4
    figures.metrics_figure({"snr_wm": 1.0}, {}, tmp_path / "qc.png")
    assert not (tmp_path / "qc.png").exists()
    histogram = brain_histogram(np.asarray(image.dataobj), template.mask)
    figures.histogram_figure({"before": histogram, "after": histogram, "reference": None}, "A",
                             tmp_path / "h.png")  # fmt: skip
    assert colour_share(tmp_path / "h.png", figures.REFERENCE, 20) < 0.01
    figures.prediction_figure(brain_age(harmonized=None), tmp_path / "p.png")
    assert colour_share(tmp_path / "p.png", figures.HARMONIZED) < 1e-4


def facts(name, site="IXI-HH", age=36.0, version="0.1.0"):
    return {
        "name": name, "source": f"{name[:6]}/anat/{name}_T1w.nii.gz", "site": site,
        "site_source": "participants.tsv:site", "age": age, "sex": "F", "diagnosis": None,
        "scanner": {"Manufacturer": "Philips", "MagneticFieldStrength": 3}, "warnings": [],
        "processing": {
            "version": version, "template": "MNI152NLin2009aSym", "contract": Contract().to_dict(),
        },
        "bundle": {"name": "small", "version": "1", "sha256": "ab" * 32},
    }  # fmt: skip


PREDICTIONS = {
    "brain_age": brain_age(),
    "schizophrenia_probability": {"raw": 0.314, "harmonized": 0.276, "training_data": "simulated"},
    "in_training": {"site": False, "reference_site": False},
}


def write_scan(out, drawn, fact, *, method="deepbet", failed=None, **changes):
    """Write a scan's outputs as a run leaves them."""
    name = fact["name"]
    anat, pictures = (out / name[:6] / folder for folder in ("anat", "figures"))
    for folder in (anat, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    record = failed_record(fact, *failed) if failed else record_with(method, fact=fact)
    if not failed:
        written = [anat / f"{name}_desc-harmony_predictions.json"]
        written[0].write_text(json.dumps(PREDICTIONS))
        for what, path in drawn.items():
            written.append(pictures / f"{name}_desc-{what}_T1w.png")
            shutil.copy(path, written[-1])
        record["outputs"] = [path.relative_to(out).as_posix() for path in written]
    (anat / f"{name}_desc-harmony_qc.json").write_text(json.dumps(record | changes))


def record_with(method, affine="ants", step=None, *, fact=None, **mask):
    return scan_record(
        fact or facts("sub-01"),
        check={"shape": [256, 256, 170], "voxel_size_mm": [1, 1, 1], "orientation": "LAS"},
        mask={"method": method, **mask},
        affine={"method": affine, **(step or {})},
        metrics={"brain_volume_ml": 1523.4, "fber": None},
    )


@pytest.fixture
def out(tmp_path, drawn):
    """A participant with a good, a stripped and a failed scan, one of them without any entity."""
    root = tmp_path / "out"
    write_scan(root, drawn, facts("sub-01"))
    newer = facts("sub-01_run-10", version="0.2.0")
    write_scan(root, drawn, newer, method="skip", status="warn", flagged=["brain_volume_ml"],
               reasons=["Brain is small"])  # fmt: skip
    evil = facts("sub-01_run-2", site="<script>alert(1)</script>")
    evil["warnings"] = ['age > 120 & "odd" <b>{subject}</b>']
    write_scan(
        root, drawn, evil, failed=("It is <i>broken</i>.", "Mend {out_dir}.", "crash-1.txt")
    )
    return root


def page_of(out, subject="01"):
    return write_participant_report(out, subject).read_text(encoding="utf-8")


def test_every_scan_has_its_section_with_its_values_and_reasons(out):
    page = page_of(out)
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == ["Summary", "T1w scan", "run 2", "run 10", "Methods"]
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert set(re.findall(r'<a href="#([^"]+)"', page)) <= set(ids)
    assert len(ids) == len(set(ids))
    for said in (
        "3 T1-weighted scans: 1 passed,\n1 with warnings, 1 failed.",
        "Processed with bids_harmony 0.1.0 and 0.2.0.",
        "60.2 [50.9 to 69.5]", "38.4 [29.1 to 47.7]", "+24.2", "1523 mL",
        "was not among those the bundle was trained on",
        '<tr class="flagged"><td>Brain volume', "<li>Brain is small</li>",
        '<span class="badge warn">warn</span>',
    ):  # fmt: skip
        assert said in page, said
    row = re.search(r"<tr><th>Schizophrenia probability.*?</tr>", page, re.DOTALL)
    assert row is not None
    for said in ("trained on simulated labels; not a diagnosis", "0.31", "<strong>0.28</strong>"):
        assert said in row[0], "the simulated prediction says so beside its number"


def test_the_page_is_one_file_and_escapes_what_it_shows(out, tmp_path):
    page = page_of(out)
    sources = re.findall(r'\bsrc="data:image/png;base64,([^"]+)"', page)
    assert len(sources) == page.count("src=") == 12
    for source in sources:
        Image.open(io.BytesIO(base64.b64decode(source))).verify()
    assert '<img alt="Brain mask" src="' in page
    for outside in ("<script", "<link", "@import", "url("):
        assert outside not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "It is &lt;i&gt;broken&lt;/i&gt;." in page
    assert "&lt;b&gt;{subject}&lt;/b&gt;" in page
    assert "Mend {out_dir}." in html.unescape(page)
    assert "crash-1.txt" in page
    # Its bytes depend on the outputs alone, wherever they lie.
    assert str(out) not in page
    assert page_of(shutil.copytree(out, tmp_path / "elsewhere")) == page


def test_a_participant_without_results_or_without_any_record(tmp_path, drawn):
    write_scan(tmp_path, drawn, facts("sub-02", age=None), failed=("Damaged.", ""))
    (tmp_path / "sub-02" / "anat" / "sub-02_run-2_desc-harmony_qc.json").write_text("{")
    page = page_of(tmp_path, "02")
    assert "Damaged." in page
    assert "sub-02_run-2_desc-harmony_qc.json cannot be read" in page
    assert "2 failed." in page
    assert "No scan was processed successfully" in page
    assert "<img" not in page
    assert "No scan of this participant was processed." in page_of(tmp_path, "03")


def methods_of(*records):
    page = participant_page("01", [scan_view(f"sub-01_run-{i}", r, {}) for i, r in
                                   enumerate(records)])  # fmt: skip
    return re.sub(r"\s+", " ", page[page.index('<section id="methods">') :])


@pytest.mark.parametrize(
    ("record", "said", "unsaid"),
    [
        (record_with("deepbet"), ["deepbet", "ANTs"], ["BET", "FLIRT", "MASS"]),
        (record_with("bet", "flirt"), ["FSL BET", "FSL FLIRT"], ["deepbet", "antspyx"]),
        (record_with("multi-atlas"), ["MASS", "Doshi"], ["deepbet", "FLIRT"]),
        (record_with("skip", detected="stripped"), ["recognised as stripped"], ["deepbet"]),
        (record_with("skip"), ["without skull stripping"], ["deepbet", "recognised"]),
        (record_with("precomputed"), ["mask given with the data"], ["deepbet"]),
    ],
)
def test_methods_tell_what_ran_and_nothing_else(record, said, unsaid):
    text = methods_of(record)
    assert all(word in text for word in said)
    assert not any(word in text for word in [*unsaid, "[@"])
    cited = re.findall(r'href="#ref-(\w+)"', text)
    assert set(cited) == set(re.findall(r'id="ref-(\w+)"', text))
    assert "monotone" in text
    assert "monotone" not in methods_of(record | {"bundle": None})


def test_methods_name_each_tool_with_its_version_and_count_finished_scans():
    ants = {"tool": "antspyx", "version": "0.6.3"}
    flirt = {"tool": "FSL", "version": "<6>", "command": "flirt -in a"}
    deepbet = record_with("deepbet", step=ants, tool="deepbet", version="1.0.2")
    deepbet["processing"]["tools"] = {"nipype": "1.11.0", "torch": "2.13.0"}
    fsl = record_with("bet", "flirt", flirt, tool="FSL", version="6.0.0", command="bet a b -R")
    # Of another version: not the same method.
    newer = record_with("deepbet", tool="deepbet", version="1.1")
    text = methods_of(deepbet, fsl, fsl, newer, failed_record(facts("sub-01"), "No."))
    for said in (
        "Nipype 1.11.0", "PyTorch 2.13.0", "(antspyx 0.6.3)", "(deepbet 1.0.2) (1 scan)",
        "(FSL 6.0.0, <code>bet a b -R</code>) (2 scans)",
        "(FSL &lt;6&gt;, <code>flirt -in a</code>) (2 scans)",
    ):  # fmt: skip
        assert said in text, said
