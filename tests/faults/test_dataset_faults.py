"""Names, tables and sizes of datasets that nobody should have made."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import pytest
from bids_dataset import find, write
from command_line import assert_sentences, harmony, new_dataset

from bids_harmony.cli.run import main

HARM = "<img src=x onerror='window.hit=1'><script>window.hit=1</script>"
LABELS = {
    "space": "01 copy",
    "quotes": "0'1\"",
    "HTML": "<b onclick=x>",
    "dots": "..",
    "look-alike": "０１а",
    "terminal": "\x1b[2J\n01",
    "long": "a" * 200,
}


@pytest.mark.parametrize("kind", LABELS)
def test_names_that_are_not_bids_are_left_out_and_told(
    dataset: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    label = LABELS[kind]
    write(dataset, f"sub-{label}/anat/sub-{label}_T1w.nii.gz", "x")
    argv = [str(dataset), str(dataset.parent / "out"), "participant", "--dry-run"]
    assert main([*argv, "--bundle", "none"]) == 0
    said = capsys.readouterr().out
    assert "2 scans of 2 participants would be processed" in said
    assert ("its name is longer than" if kind == "long" else "not a BIDS entity") in said
    assert "\x1b" not in said


@pytest.mark.parametrize("label", ["../x", "..", "/etc", "01/../../x", "0 1", "<b>", "*", "０１"])
def test_labels_that_lead_elsewhere_are_refused(
    dataset: Path, label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(dataset), str(dataset.parent / "out"), "participant", "--dry-run"]
    assert main([*argv, "--participant-label", label]) == 2
    said = capsys.readouterr().err
    assert_sentences(said)
    assert "has no participant" in said


def test_a_table_from_a_spreadsheet_is_read(dataset: Path) -> None:
    text = "\ufeffparticipant_id,age,site\r\nsub-01,30,A\r\nsub-01,99,B\r\nsub-02,40,A\r\n"
    write(dataset, "participants.tsv", text.encode())
    inventory = find(dataset)
    assert [(s.age, s.site) for s in inventory.scans] == [(None, "unknown"), (40.0, "A")]
    assert any("several rows for" in note for note in inventory.warnings)


def test_text_of_tables_and_sidecars_runs_nothing_in_any_report(tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here")
    root, out = new_dataset(tmp_path / "bids"), tmp_path / "out"
    cells = "\t".join([HARM] * 4)
    table = f"participant_id\tsite\tage\tsex\tdiagnosis\nsub-01\t{cells}\n"
    write(root, "participants.tsv", table)
    write(root, "sub-01/anat/sub-01_T1w.json", f'{{"Manufacturer": "{HARM}"}}')
    # The scan is broken: its report has the text all the same, and is there in a moment.
    write(root, "sub-01/anat/sub-01_T1w.nii.gz", "no image")
    for level, code in (("participant", 1), ("group", 0)):
        ran = harmony(root, out, level, "-w", tmp_path / "work", "--bundle", "none")
        assert ran.returncode == code, ran.stdout + ran.stderr
    with api.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in ("sub-01.html", "group_T1w.html"):
            page = browser.new_page()
            page.goto((out / name).as_uri())
            page.wait_for_load_state("load")
            if name == "group_T1w.html":
                page.keyboard.press("j")
                page.keyboard.press("Enter")
            assert HARM in page.locator("body").inner_text()
            assert page.evaluate("window.hit") is None
        browser.close()


@pytest.mark.slow
def test_ten_thousand_participants_are_listed_in_bounded_time_and_memory(tmp_path: Path) -> None:
    root = new_dataset(tmp_path / "bids")
    for n in range(10_000):
        for name in ("anat/sub-{}_T1w.nii.gz", "anat/sub-{}_T1w.json", "dwi/sub-{}_dwi.nii.gz"):
            write(root / f"sub-{n:05d}", name.format(f"{n:05d}"), "{}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = harmony(root, tmp_path / "out", "participant", "--dry-run", "--bundle", "none")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Left to pytest, they would go when another run starts.
    shutil.rmtree(root)
    assert ran.returncode == 0, ran.stderr
    assert "10000 scans of 10000 participants would be processed" in ran.stdout
    # CPU time, which other work on the machine does not lengthen; kB of the largest child so far.
    assert used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime < 60
    assert used.ru_maxrss < 1e6
