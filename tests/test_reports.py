"""Reports: pictures show what they say, and the page holds everything, whatever the scans did."""

from __future__ import annotations

import base64
import gc
import html
import io
import json
import re
import shutil
from collections import Counter
from importlib.resources import files

import nibabel as nib
import numpy as np
import pytest
import yaml
from bids import BIDSLayout
from PIL import Image

from bids_harmony.anat.template import load_template
from bids_harmony.contract import Contract
from bids_harmony.qc import reference as references
from bids_harmony.qc.record import failed_record, scan_record
from bids_harmony.reports import figures, methods
from bids_harmony.reports.mosaic import layout
from bids_harmony.reports.participant import MAX_PICTURES, write_participant_report

MAX_FIGURE = 250_000


@pytest.fixture(scope="module")
def brain():
    """A noisy brain on the template grid, scaled, and its image."""
    template = load_template(2)
    rng = np.random.default_rng(0)
    data = np.asarray(template.t1w.dataobj) * 1.2 + rng.normal(0, 0.05, template.mask.shape)
    data = np.where(template.mask, np.clip(data, 0.01, 2), 0).astype(np.float32)
    return nib.Nifti1Image(data, template.t1w.affine), template


def brain_age(raw=60.2, harmonized=38.4):
    z = list(range(-28, 52, 2))
    wobble = [((7 * i) % 11) - 5 for i in range(len(z))]
    slices = {
        kind: None if value is None else [value + w for w in wobble]
        for kind, value in (("raw", raw), ("harmonized", harmonized))
    }
    return {
        "raw": raw,
        "harmonized": harmonized,
        "interval_90": [29.1, 47.7],
        "interval_90_raw": [50.9, 69.5],
        "gap_raw": 24.2,
        "gap_harmonized": None if harmonized is None else 2.4,
        "per_slice": {"z_mm": z, **slices},
        "slice_mad": 3.0,
        "training_data": "IXI-HH, 96 scans",
        "age_in_training_range": True,
    }


def draw_all(brain, folder, key="scan"):
    """Draw every figure; return their paths by desc."""
    image, template = brain
    data = np.asarray(image.dataobj)
    brighter = nib.Nifti1Image(np.where(template.mask, data * 1.1, 0), image.affine)
    mask = nib.Nifti1Image(template.mask.astype(np.uint8), image.affine)
    reference = references.reference_statistics(
        {"A": [{"brain_volume_ml": 1400.0 + i, "snr_wm": 10 + i / 10} for i in range(40)]}
    )
    out = {
        what: folder / f"{key}_desc-{what}_T1w.png"
        for what in ("brainmask", "norm", "harmonized", "histogram", "predictions", "qc")
    }
    figures.mask_figure(image, mask, out["brainmask"])
    figures.registration_figure(image, template, out["norm"])
    figures.harmonization_figure(image, brighter, template.mask, out["harmonized"])
    histogram = references.brain_histogram(data, template.mask)
    figures.histogram_figure(
        data, data * 1.1, template.mask, out["histogram"], reference=histogram, reference_name="A"
    )
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


def test_outlines_and_marks_are_drawn(brain, drawn, tmp_path):
    assert colour_share(drawn["brainmask"], figures.VERMILION) > 0.002
    assert colour_share(drawn["norm"], figures.SKY) > 0.002
    assert colour_share(drawn["histogram"], figures.RAW) > 0.001
    assert colour_share(drawn["histogram"], figures.HARMONIZED) > 0.001
    assert colour_share(drawn["qc"], figures.VERMILION) > 1e-4, "870 mL is out of range"
    image, _ = brain
    empty = nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine)
    figures.mask_figure(image, empty, tmp_path / "empty.png")
    assert colour_share(tmp_path / "empty.png", figures.VERMILION) < 1e-4


def test_slices_show_left_on_the_left_and_the_nose_on_the_left():
    volume = np.zeros((40, 60, 50), np.float32)
    volume[5, 30, 25] = 1  # left
    volume[20, 55, 25] = 2  # front
    plan = layout(np.ones(volume.shape, bool), (1, 1, 1), margin_mm=0)
    axial = plan.panel(volume, 2, 25)
    assert axial.shape == (60, 40)
    rows, columns = np.nonzero(axial == 1)
    assert (rows[0], columns[0]) == (29, 5)
    assert np.nonzero(axial == 2)[0][0] == 4, "the front is at the top"
    sagittal = plan.panel(volume, 0, 20)
    assert np.nonzero(sagittal == 2)[1][0] == 4, "the front is at the left"


def test_anisotropic_scans_keep_their_proportions():
    mask = np.zeros((50, 50, 25), bool)
    mask[10:40, 10:40, 5:20] = True
    plan = layout(mask, (1, 1, 2), margin_mm=0, n_cuts=1)
    assert plan.panel(mask, 0, 25).shape == (30, 30)
    canvas, places = plan.canvas(mask.astype(np.float32))
    assert len(places) == 3
    assert canvas.max() == 1


def test_figures_without_reference_or_harmonized_values(brain, tmp_path):
    image, template = brain
    data = np.asarray(image.dataobj)
    assert figures.metrics_figure({"snr_wm": 1.0}, {}, tmp_path / "qc.png") is None
    assert not (tmp_path / "qc.png").exists()
    figures.histogram_figure(data, data, template.mask, tmp_path / "h.png")
    assert colour_share(tmp_path / "h.png", figures.REFERENCE, 20) < 0.01
    figures.prediction_figure(brain_age(harmonized=None), tmp_path / "p.png")
    assert colour_share(tmp_path / "p.png", figures.HARMONIZED) < 1e-4


def facts(name, subject, site="IXI-HH", age=36.0, **entities):
    return {
        "name": name,
        "entities": {"subject": subject, **entities},
        "source": f"sub-{subject}/anat/{name}_T1w.nii.gz",
        "site": site,
        "site_source": "participants.tsv:site",
        "age": age,
        "sex": "F",
        "diagnosis": None,
        "scanner": {"Manufacturer": "Philips", "MagneticFieldStrength": 3},
        "warnings": [],
        "processing": {
            "version": "0.1.0",
            "skull_strip": "auto",
            "registration": "auto",
            "template": "MNI152NLin2009aSym",
            "contract": Contract().to_dict(),
        },
        "bundle": {"name": "small", "version": "1", "sha256": "ab" * 32},
    }


def predictions(**changes):
    return {
        "brain_age": brain_age(**changes),
        "schizophrenia_probability": {
            "raw": 0.314, "harmonized": 0.276, "training_data": "simulated", "per_slice": {},
        },
        "in_training": {"site": False, "reference_site": False},
        "bundle": {"name": "small", "version": "1", "sha256": "ab" * 32},
    }  # fmt: skip


def write_scan(out, drawn, fact, *, method="deepbet", failed=None, metrics=None):
    """Write a scan's outputs as a run leaves them."""
    subject, name = fact["entities"]["subject"], fact["name"]
    folder = out / f"sub-{subject}"
    session = fact["entities"].get("session")
    anat = (folder / f"ses-{session}" if session else folder) / "anat"
    anat.mkdir(parents=True, exist_ok=True)
    if failed:
        record = failed_record(fact, *failed)
    else:
        record = scan_record(
            fact,
            check={
                "shape": [256, 256, 170], "voxel_size_mm": [1, 1, 1], "orientation": "LAS",
                "notes": [],
            },
            mask={"method": method},
            scale={},
            metrics=metrics or {"brain_volume_ml": 1523.4, "fber": None},
        )  # fmt: skip
        written = [anat / f"{name}_desc-harmony_predictions.json"]
        written[0].write_text(json.dumps(predictions()))
        (folder / "figures").mkdir(exist_ok=True)
        for what, path in drawn.items():
            written.append(folder / "figures" / f"{name}_desc-{what}_T1w.png")
            shutil.copy(path, written[-1])
        record["outputs"] = [path.relative_to(out).as_posix() for path in written]
    (anat / f"{name}_desc-harmony_qc.json").write_text(json.dumps(record))


@pytest.fixture
def out(tmp_path, drawn):
    """A participant with a good, a stripped and a failed scan, one of them without any entity."""
    root = tmp_path / "out"
    write_scan(root, drawn, facts("sub-01_T1", "01"))
    write_scan(root, drawn, facts("sub-01_run-10", "01", run="10"), method="skip")
    evil = facts("sub-01_run-2", "01", run="2", site="<script>alert(1)</script>")
    evil["warnings"] = ['age > 120 & "odd" <b>{subject}</b>']
    write_scan(
        root, drawn, evil, failed=("It is <i>broken</i>.", "Mend {out_dir}.", "crash-1.txt")
    )
    return root


def page_of(out, subject="01"):
    return write_participant_report(out, subject).read_text(encoding="utf-8")


def test_every_scan_has_its_section_in_the_order_of_runs(out):
    page = page_of(out)
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == ["Summary", "T1w scan", "run 2", "run 10", "Methods"]
    anchors = re.findall(r'<a href="#([^"]+)"', page)
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    assert set(anchors) <= ids
    counts = Counter(re.findall(r'\bid="([^"]+)"', page))
    assert max(counts.values()) == 1, counts.most_common(3)
    assert "3 T1-weighted scans: 2 without remarks, 1 failed." in page


def test_the_page_is_one_file_without_scripts_or_outside_parts(out):
    page = page_of(out)
    sources = re.findall(r'\bsrc="([^"]{0,40})', page)
    assert len(sources) == 12
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in page
    assert "<link" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert re.findall(r'<img alt="Brain mask" width="1056"', page)
    for source in re.findall(r'src="data:image/png;base64,([^"]+)"', page):
        Image.open(io.BytesIO(base64.b64decode(source))).verify()


def test_values_are_escaped_and_errors_shown(out):
    page = page_of(out)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "It is &lt;i&gt;broken&lt;/i&gt;." in page
    assert "Mend {out_dir}." in html.unescape(page)
    assert "&lt;b&gt;{subject}&lt;/b&gt;" in page
    assert "crash-1.txt" in page


def test_the_simulated_prediction_says_so_beside_its_number(out):
    page = page_of(out)
    row = re.search(r"<tr><th>Schizophrenia probability.*?</tr>", page, re.DOTALL)
    assert row is not None
    assert "trained on simulated labels; not a diagnosis" in row[0]
    assert "0.31" in row[0]
    assert "<strong>0.28</strong>" in row[0]
    assert "60.2 [50.9 to 69.5]" in page
    assert "38.4 [29.1 to 47.7]" in page
    assert "+24.2" in page
    assert "was not among those the bundle was trained on" in page


def test_the_report_depends_on_the_outputs_alone(out, tmp_path):
    first = page_of(out)
    assert page_of(out) == first
    moved = tmp_path / "elsewhere"
    shutil.copytree(out, moved)
    assert page_of(moved) == first
    assert str(tmp_path) not in first
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_a_participant_whose_scans_all_failed(tmp_path, drawn):
    write_scan(tmp_path, drawn, facts("sub-02", "02", age=None), failed=("Damaged.", ""))
    (tmp_path / "sub-02" / "anat" / "sub-02_run-2_desc-harmony_qc.json").write_text("{")
    page = page_of(tmp_path, "02")
    assert "Damaged." in page
    assert "sub-02_run-2_desc-harmony_qc.json cannot be read" in page
    assert "2 T1-weighted scans: 2 failed." in page
    assert "No scan was finished" in page
    assert "<img" not in page


def test_a_participant_without_any_record(tmp_path):
    assert "No scan of this participant was processed." in page_of(tmp_path, "03")


def test_reports_leave_no_index_in_memory(out):
    def indexes():
        gc.collect()
        return sum(isinstance(thing, BIDSLayout) for thing in gc.get_objects())

    before = indexes()
    write_participant_report(out, "01")
    assert indexes() <= before


def test_many_scans_stay_below_ten_megabytes(tmp_path, drawn):
    rng = np.random.default_rng(0)
    noise = tmp_path / "noise.png"
    Image.fromarray(rng.integers(0, 255, (300, 500, 3), dtype=np.uint8)).save(noise)
    heavy = dict.fromkeys(drawn, noise)
    for run in range(1, 7):
        write_scan(tmp_path, heavy, facts(f"sub-01_run-{run}", "01", run=str(run)))
    assert 36 * noise.stat().st_size * 4 / 3 > MAX_PICTURES
    report = write_participant_report(tmp_path, "01")
    assert report.stat().st_size < 10_000_000
    assert report.read_text().count("data:image/webp;base64,") == 36


def test_every_version_that_made_a_scan_is_named(tmp_path, drawn):
    for run, version in (("1", "0.1.0"), ("2", "0.2.0"), ("3", "0.1.0")):
        fact = facts(f"sub-01_run-{run}", "01", run=run)
        fact["processing"]["version"] = version
        write_scan(tmp_path, drawn, fact)
    assert "Processed with bids_harmony 0.1.0 and 0.2.0." in page_of(tmp_path)


def test_metrics_out_of_range_are_marked(tmp_path, drawn):
    write_scan(tmp_path, drawn, facts("sub-01", "01"), metrics={"brain_volume_ml": 870.0})
    path = tmp_path / "sub-01" / "anat" / "sub-01_desc-harmony_qc.json"
    record = json.loads(path.read_text())
    record |= {"status": "warn", "flagged": ["brain_volume_ml"], "reasons": ["Brain is small"]}
    path.write_text(json.dumps(record))
    page = page_of(tmp_path)
    assert '<tr class="flagged"><td>Brain volume' in page
    assert "<li>Brain is small</li>" in page
    assert '<span class="badge warn">look</span>' in page


def test_the_specification_names_figures_that_are_drawn(drawn):
    parts = yaml.safe_load((files("bids_harmony.data") / "reports-spec.yml").read_text())
    assert {part["figure"] for part in parts if "figure" in part} == set(drawn)


def record_with(method, registration="auto", **mask):
    record = scan_record(
        facts("sub-01", "01"), check={}, mask={"method": method, **mask}, scale={}, metrics={}
    )
    record["processing"]["registration"] = registration
    return record


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
    text = methods.methods_html([record])
    for word in said:
        assert word in text
    for word in unsaid:
        assert word not in text
    assert "[@" not in text
    cited = re.findall(r'href="#ref-(\w+)"', text)
    assert set(cited) == set(re.findall(r'id="ref-(\w+)"', text))


def test_methods_name_each_tool_with_its_version():
    deepbet = record_with("deepbet", tool="deepbet", version="1.0.2")
    deepbet["affine"] = {"method": "ants", "tool": "antspyx", "version": "0.6.3"}
    deepbet["processing"]["tools"] = {"nipype": "1.11.0", "nilearn": "0.14.1", "torch": "2.13.0"}
    text = methods.methods_html([deepbet])
    for said in ("Nipype 1.11.0", "nilearn 0.14.1 ships", "PyTorch 2.13.0", "(deepbet 1.0.2)",
                 "(antspyx 0.6.3)"):  # fmt: skip
        assert said in text
    fsl = record_with("bet", tool="FSL", version="6.0.0", command="bet a b -R")
    fsl["affine"] = {"method": "flirt", "tool": "FSL", "version": "<6>", "command": "flirt -in a"}
    text = methods.methods_html([fsl, fsl, deepbet])
    assert "(FSL 6.0.0, <code>bet a b -R</code>) (2 scans)" in text
    assert "(deepbet 1.0.2) (1 scan)" in text
    assert "(FSL &lt;6&gt;, <code>flirt -in a</code>) (2 scans)" in text
    # Of another version: not the same method.
    newer = record_with("deepbet", tool="deepbet", version="1.1")
    assert "(deepbet 1.0.2) (1 scan)" in methods.methods_html([deepbet, newer])
    # What ran stands in the record, whatever the options were.
    assert methods.registration_kind(fsl) == "flirt"
    assert fsl["processing"]["registration"] == "auto"
    stripped = record_with("skip", detected="stripped")
    stripped["processing"]["tools"] = {"deepbet": "1.0.2"}
    assert "deepbet" not in methods.methods_html([stripped])


def test_methods_of_mixed_scans_count_them_and_leave_out_failed_ones():
    failed = failed_record(facts("sub-01", "01"), "No.")
    text = methods.methods_html([record_with("deepbet"), record_with("bet"), failed])
    assert "(1 scan)" in text
    assert "2 scans" not in text
    plain = record_with("deepbet")
    plain["bundle"] = None
    assert "monotone" not in methods.methods_html([plain])


def test_bibliography_is_complete():
    entries = methods.bibliography()
    assert len(entries) >= 12
    for entry in entries.values():
        assert {"author", "title", "journal", "pages", "year", "url", "bibtex"} <= set(entry)
        assert entry["url"].startswith("https://")
