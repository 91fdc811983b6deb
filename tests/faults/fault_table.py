"""The table of faults: what goes wrong, what the software does and says, and who tries it.

``python tests/faults/fault_table.py`` writes ``docs/faults.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
WORKS, REFUSED, ERROR, LEFT_OUT = "works", "refused", "scan fails", "left out"
WARNING, FLAG, UNSEEN, RESUMES = "warning", "QC flag", "**not detectable**", "continues"

INTRO = """\
# When things go wrong

What the software does with broken files, wrong scans and a failing machine. Every row is tried by
the test named at its end (`tests/`); this page is made from the tests' own table
(`python tests/faults/fault_table.py`).

* **works**: used like any other.
* **warning**: used, and said at the top of the log and in the scan's record; what concerns the
  whole dataset at the top of the group's page.
* **left out**: not used, and said with the reason at the end of the log.
* **QC flag**: done, with the status `warn` and the reason in the table and the report.
* **scan fails**: its record and report have the status `error` with the reason; the other scans
  are done, and the exit code is 1.
* **refused**: nothing is run.
* **continues**: the same command goes on where it stopped, and ends with the same bytes.
* **not detectable**: the software cannot tell. You must.

Exit codes: 0 all done, 1 some scans failed, 2 usage, 66 no T1w, 70 the machine or an internal
error, 78 bundle, 127 missing program, 130 interrupted.
"""


@dataclass(frozen=True)
class Fault:
    """One row.

    Attributes
    ----------
    what : str
        What is wrong.
    then : str
        What the software does: one of the words above.
    says : str
        What it says, as in the message; empty where there is nothing to say.
    exit_code : int or None
        Exit code of a run in which nothing else is wrong; None where a signal ends it.
    tried : str
        File and name of the test.
    """

    what: str
    then: str
    says: str
    exit_code: int | None
    tried: str


def _rows(
    tried: str, then: str, code: int | None, rows: dict[str, tuple[str, str]]
) -> dict[str, Fault]:
    return {key: Fault(what, then, says, code, tried) for key, (what, says) in rows.items()}


_SCAN = "test_scan_faults.py::"
_CHECK = "test_file_check.py::"
_MASK = "test_brain_mask.py::"
_MACHINE = "test_machine_faults.py::"
_GROUP = "test_group_dataset.py::"
_BUNDLE = "test_bundle_faults.py::"
_NAMES = "test_dataset_faults.py::"
_CALIBRATE = "test_calibrate.py::"
_EVALUATE = "test_evaluate_command.py::"
_TARGETS = "test_evaluation_units.py::test_targets_that_cannot_be_evaluated_are_named"
_PERSONS = "test_person_unit.py::"

FAULTS: dict[str, dict[str, Fault]] = {
    "Scans": {
        **_rows(
            _SCAN + "test_unusable_scans_fail_alone_with_their_reason", ERROR, 1,
            {
                "billions of voxels": ("header of 30000³ voxels", "claims 30000 x 30000 x 30000"),
                "negative size": ("negative number of voxels", "cannot be read"),
                "nan zoom": ("voxel size NaN", "impossible geometry"),
                "zero zoom": ("voxel size 0", "impossible geometry"),
                "infinite offset": ("data at an infinite place in the file", "cannot be read"),
                "unknown datatype": ("unknown number format", "cannot be read"),
                "overflowing slope": ("scale slope of 10³⁰", "NaN or infinite"),
                "gzip bomb": ("gzip bomb: goes on behind its image", "unpacks to more than"),
                "huge file": ("file of 32 GB", "which no T1w scan has"),
                "plain named gz": ("uncompressed, named `.nii.gz`", "cannot be read"),
                "gz named plain": ("compressed, named `.nii`", "cannot be read"),
                "dicom": ("DICOM named `.nii`", "cannot be read"),
                "mgh": ("FreeSurfer's `.mgz` named `.nii.gz`", "cannot be read"),
                "named pipe": ("a pipe instead of a file", "it is not a file"),
            },
        ),
        **_rows(
            _CHECK + "test_unusable_files_are_refused_with_their_reason", ERROR, 1,
            {
                "truncated": ("truncated gzip file", "cannot be read"),
                "corrupt": ("damaged gzip file", "cannot be read"),
                "zero bytes": ("empty file", "cannot be read"),
                "text": ("text instead of an image", "cannot be read"),
                "folder": ("a folder named like a scan", "cannot be read"),
                "broken link": ("annexed content that is not there", "broken link"),
                "4-D": ("4-D series", "not a 3-D volume"),
                "2-D": ("one slice", "not a 3-D volume"),
                "colours": ("colour image", "not a grey-scale image"),
                "all zeros": ("all voxels 0", "the same value"),
                "NaN-laced": ("a quarter of the voxels NaN", "NaN or infinite"),
                "micrometres": ("voxel size in µm", "impossible geometry"),
                "NaN affine": ("NaN in the affine", "impossible geometry"),
                "no sform and no qform": ("header without orientation", "neither sform nor qform"),
                "both forms useless": ("sform NaN, qform no rotation", "impossible geometry"),
                "40-mm slab": (
                    "slab of 40 mm",
                    "a part of the head only: 40 mm from bottom to top, where at least 80 mm",
                ),
                "slab among zeros": (
                    "slab of 40 mm in a large volume of zeros",
                    "covers a part of the head only: 40 mm from back to front",
                ),
            },
        ),
        **_rows(
            _SCAN + "test_odd_scans_are_done_like_a_plain_one", WORKS, 0,
            {
                "big-endian": ("big-endian", ""),
                "oblique by 40 degrees": ("oblique by 40°", ""),
                "no slope": ("`scl_slope` 0, which means none", ""),
                "negative zooms": ("negative voxel sizes beside a good sform", ""),
                "left-handed": ("left-handed axes", ""),
                "5-mm slices": ("5-mm slices", ""),
                "0.4-mm slices": ("0.4-mm slices", ""),
            },
        ),
        **_rows(
            _SCAN + "test_odd_scans_are_done_like_a_plain_one", WARNING, 0,
            {
                "sform of zeros": (
                    "sform of zeros, singular or NaN beside a good qform", "the qform was used",
                ),
                "padding": ("padding of −1000 outside the field of view", "taken as padding"),
                "padding of 65535": ("padding of 65535", "taken as padding"),
                "NaN around": (
                    "NaN where nothing was scanned", "around the brain were NaN or infinite",
                ),
            },
        ),
        "NaN within": Fault(
            "NaN in more than 1 % of the brain", ERROR, "that are not background are NaN", 1,
            _CHECK + "test_values_that_are_none_within_a_brain_are_refused",
        ),
        "soft mask": Fault(
            "mask from `--derivatives` that is not 0 and 1: above 0.5 is brain, above half of the "
            "highest value (0 to 100, 0 to 255), or every label", WARNING, "was taken as brain", 0,
            _MASK + "test_how_a_mask_was_read_stands_in_the_record_and_among_the_warnings",
        ),
        "mask without orientation": Fault(
            "mask with a useless header and the scan's shape", WARNING,
            "taken to lie on the scan's own grid", 0,
            _MASK + "test_a_mask_with_a_broken_header_lies_where_its_scan_does",
        ),
        "few NaN": Fault(
            "a few voxels NaN or infinite", WARNING, "were set to 0", 0,
            _CHECK + "test_a_few_bad_voxels_are_replaced_and_counted",
        ),
        "two orientations": Fault(
            "sform and qform disagree", WARNING, "disagree by", 0,
            _CHECK + "test_conflicting_forms_are_noted_and_the_sform_wins",
        ),
    },
    "Heads": {
        "turned by 90 degrees": Fault(
            "head turned by 90° against its header", FLAG, "Centroid offset", 0, "",
        ),
        "upside down": Fault(
            "head upside down against its header", FLAG, "Centroid offset", 0, "",
        ),
        "flipped left-right": Fault(
            "left and right swapped in the header: a mirrored head is a head", UNSEEN, "", 0, "",
        ),
        "T2w named T1w": Fault("T2w named T1w", ERROR, "correlation with the template", 1, ""),
        "knee": Fault("knee", ERROR, "correlation with the template", 1, ""),
        "CT": Fault("CT in Hounsfield units", ERROR, "The brain mask holds", 1, ""),
        "infant": Fault(
            "infant: small, grey and white matter inverted", ERROR, "volume ratio", 1, "",
        ),
        "tumour": Fault("tumour of 29 mL", FLAG, "Left-right asymmetry", 0, ""),
    },
    "Machine": {
        "worker killed": Fault(
            "worker killed by the kernel, once", WORKS, "", 0,
            _MACHINE + "test_signals_end_a_run_at_once_and_the_next_one_goes_on",
        ),
        "worker killed again": Fault(
            "worker killed by the kernel whenever it runs this scan", ERROR, "was killed", 1,
            "test_engine.py::test_killed_worker_costs_only_its_own_scan",
        ),
        "SIGINT": Fault(
            "Ctrl-C", RESUMES, "Interrupted.", 130,
            _MACHINE + "test_signals_end_a_run_at_once_and_the_next_one_goes_on",
        ),
        "SIGTERM": Fault(
            "SIGTERM, as at the end of a cluster's job", RESUMES, "Interrupted.", 130,
            _MACHINE + "test_signals_end_a_run_at_once_and_the_next_one_goes_on",
        ),
        "scancel": Fault(
            "a task's container cancelled together with its file system", RESUMES, "", 130,
            "test_slurm_recipes.py::"
            "test_a_task_told_to_end_ends_with_130_whatever_kills_its_command",
        ),
        "odd environment": Fault(
            "the user's `PYTHONHOME`, `MPLBACKEND`, `FSLDIR` and the like, in the container",
            WORKS, "", 0,
            "test_container.py::"
            "test_commands_of_the_image_see_nothing_of_the_hosts_environment",
        ),
        "main killed": Fault(
            "SIGKILL of the command alone: its workers end too", RESUMES, "", None,
            _MACHINE + "test_signals_end_a_run_at_once_and_the_next_one_goes_on",
        ),
        "all killed": Fault(
            "SIGKILL of everything at random moments", RESUMES, "", None,
            "test_participant.py::test_a_killed_run_goes_on_and_ends_with_the_same_bytes",
        ),
        "two runs": Fault(
            "two runs on the same scan in one work or output folder", REFUSED,
            "Another run is working on", 2,
            _MACHINE + "test_signals_end_a_run_at_once_and_the_next_one_goes_on",
        ),
        "another version": Fault(
            "work folder of another version", WORKS, "", 0,
            _MACHINE + "test_signals_end_a_run_at_once_and_the_next_one_goes_on",
        ),
        "another output folder": Fault(
            "work folder that served another output folder", WORKS, "", 0,
            _MACHINE + "test_a_full_disk_is_said_wherever_it_strikes_and_the_run_goes_on",
        ),
        "damaged work folder": Fault(
            "half-written intermediate results", RESUMES, "", 0,
            _MACHINE + "test_a_damaged_work_folder_is_computed_again",
        ),
        "output disk full": Fault(
            "output disk full, at every kind of output", RESUMES, "The disk is full", 70,
            _MACHINE + "test_a_full_disk_is_said_wherever_it_strikes_and_the_run_goes_on",
        ),
        "out of inodes": Fault(
            "output disk out of inodes", RESUMES, "The disk is full", 70,
            _MACHINE + "test_a_full_disk_is_said_wherever_it_strikes_and_the_run_goes_on",
        ),
        "work disk full": Fault(
            "work disk full", RESUMES, "The disk is full", 1,
            _MACHINE + "test_a_full_work_disk_fails_the_scan_and_the_run_goes_on",
        ),
        "quota": Fault(
            "disk quota used up (the error alone is tried)", RESUMES, "disk quota is used up", 70,
            _MACHINE + "test_what_a_machine_refuses_has_its_cause_and_remedy",
        ),
        "file size limit": Fault(
            "limit on the size of files (`ulimit -f`)", RESUMES, "may not become so large", 1,
            _MACHINE + "test_a_limit_on_the_size_of_files_is_said",
        ),
        "read-only": Fault(
            "output folder on a read-only disk", REFUSED, "cannot be written", 2,
            _MACHINE + "test_a_read_only_output_folder_is_refused",
        ),
        "no permission": Fault(
            "output or work folder of someone else", REFUSED, "cannot be written", 2,
            "test_parser_places.py::test_places_must_be_writable",
        ),
        "rerun": Fault(
            "interrupted while it does a scan again with other options: what there was stays",
            RESUMES, "Interrupted.", 130,
            "test_rerun.py::test_a_rerun_that_is_interrupted_loses_nothing",
        ),
        "other user": Fault(
            "one participant's output folder of someone else", ERROR, "cannot be written", 1,
            "test_resume.py::"
            "test_a_participants_folder_that_cannot_be_written_costs_that_participant",
        ),
        "other user's work": Fault(
            "one scan's work folder of someone else", ERROR, "work folder cannot be written", 1,
            "test_resume.py::test_a_scans_work_folder_that_cannot_be_written_costs_that_scan",
        ),
        "reader gone": Fault(
            "nobody reads what is printed, or the disk behind it is full", WORKS,
            "", 0, "test_resume.py::test_printing_never_ends_a_run",
        ),
        "other dataset": Fault(
            "output folder of another dataset", REFUSED, "belongs to another dataset", 2,
            "test_resume.py::test_another_dataset_is_refused",
        ),
        "same names": Fault(
            "scan, mask, template or atlas replaced by another of the same name: done again",
            WORKS, "", 0,
            "test_resume.py::test_whatever_could_change_a_result_makes_it_be_computed_again",
        ),
        "environment": Fault(
            "`MPLBACKEND`, `PYTHONWARNINGS` and the like in the user's shell", WORKS, "", 0,
            "test_resume.py::test_what_the_users_shell_sets_is_set_aside",
        ),
        "locale": Fault(
            "locale without UTF-8 (`LC_ALL=C`), `ä` and `中` in the paths", WORKS, "", 0,
            "test_locale_faults.py::test_a_run_in_an_ascii_locale_ends_well",
        ),
        "clock": Fault(
            "clock that is set back again and again", WORKS, "", 0,
            _MACHINE + "test_a_clock_that_is_set_back_changes_nothing",
        ),
        "memory limit": Fault(
            "memory limit (`ulimit -v`) reached in a step", ERROR, "Memory ran out", 1,
            _MACHINE + "test_what_a_machine_refuses_has_its_cause_and_remedy",
        ),
    },
    "FSL": {
        **_rows(
            "test_fsl.py::test_all_that_bet_needs_is_checked", REFUSED, 127,
            {
                "FSLDIR": ("`bet` on the PATH, FSLDIR not set", "needs FSLDIR"),
                "wrong FSLDIR": ("FSLDIR without the programs that `bet` calls", "not there"),
                "dc": ("no `dc`, which `bet -R` calls", "calls the Unix program dc"),
                "space in FSLDIR": ("a space in FSLDIR", "breaks at a space"),
            },
        ),
        "space in the work folder": Fault(
            "a space in the work folder", WORKS, "", 0,
            "test_fsl.py::test_bet_runs_where_the_work_folder_has_spaces_and_may_warn",
        ),
        "bet warns": Fault(
            "a program that does its work and warns", WARNING, "bet said:", 0,
            "test_fsl.py::test_bet_runs_where_the_work_folder_has_spaces_and_may_warn",
        ),
        "bet fails": Fault(
            "a program that fails, or leaves no output that can be read", ERROR,
            "bet ended with code", 1, "test_fsl.py::test_what_a_failing_program_said_is_the_cause",
        ),
        "stripped": Fault(
            "`--skull-strip bet` on a stripped scan", WARNING, "looks stripped already", 0,
            "test_fsl.py::test_bet_on_a_stripped_scan_is_warned_of",
        ),
    },
    "Bundles": _rows(
        _BUNDLE + "test_a_damaged_bundle_is_refused_before_anything_runs", REFUSED, 78,
        {
            "flipped bit": ("flipped bit in the weights", "has been altered"),
            "missing file": ("missing file", "lacks its file"),
            "missing tensor": ("missing tensor, digests right", "do not fit"),
            "pickle beside": ("a pickle beside the weights", "does not know"),
            "pickle as weights": ("a pickle named as weights: never run", "do not fit"),
            "name outside": ("`..` in a file's name", "outside itself"),
            "10 GB file": ("weights of 10 GB", "claims 10.7 GB"),
            "10 GB claimed": ("tensor that claims 10 GB, digests right", "do not fit"),
            "10 GB description": ("`bundle.json` of 10 GB", "claims 10.7 GB"),
            "nested description": ("`bundle.json` nested 100,000 deep", "not valid JSON"),
        },
    ),
    "Calibration": {
        **_rows(
            _CALIBRATE + "test_a_calibration_that_cannot_be_used_is_refused_before_anything_runs",
            REFUSED, 2,
            {
                "empty calibration": ("`--calibration` that is empty or broken", "is broken"),
                "other bundle": (
                    "`--calibration` made with another bundle", "was made with another bundle",
                ),
                "other template": ("`--calibration` for another template", "is for scans in"),
                "no calibration": (
                    "`--calibration` folder without any", "There is no calibration in",
                ),
                "other site": (
                    "`--calibration` of no site of the run", "has no calibration in",
                ),
            },
        ),
        **_rows(
            _CALIBRATE + "test_what_makes_a_calibration_doubtful_is_said", WARNING, 0,
            {
                "site of one": (
                    "a site of one person", "cannot be told apart",
                ),
                "confounded": (
                    "a site with one diagnosis, which others have not",
                    "takes for the scanner's what may be the disease's",
                ),
                "two scanners": (
                    "two scanners under one site label", "fall into two groups",
                ),
            },
        ),
        "no site": Fault(
            "no site information at all", WORKS, "all scans are taken for one site", 0,
            _CALIBRATE + "test_a_dataset_without_sites_is_one",
        ),
        "ages unknown": Fault(
            "a site whose ages are unknown: they are estimated", WORKS, "(estimated)", 0,
            _CALIBRATE + "test_the_second_part_goes_on_from_the_first_and_is_repeated_alone",
        ),
        "nobody meets it": Fault(
            "`--fit-filter` that no scan of a site meets", REFUSED, "meets --fit-filter", 2,
            _CALIBRATE + "test_conditions_choose_whom_a_site_is_calibrated_from",
        ),
        "older scans": Fault(
            "`calibrate`: scans preprocessed by an earlier version", LEFT_OUT, "not used", 0,
            _CALIBRATE + "test_the_level_names_scans_that_it_cannot_use",
        ),
        "killed between": Fault(
            "killed between preprocessing and harmonization", RESUMES, "", None,
            _CALIBRATE + "test_the_second_part_goes_on_from_the_first_and_is_repeated_alone",
        ),
        "fails late": Fault(
            "a scan fails while it is harmonized: its preprocessing stays", ERROR, "", 1,
            _CALIBRATE
            + "test_a_scan_that_cannot_be_harmonized_keeps_its_preprocessing_and_costs_no_other",
        ),
    },
    "Names and tables": {
        **_rows(
            _NAMES + "test_names_that_are_not_bids_are_left_out_and_told", LEFT_OUT, 0,
            {
                "space": ("label with a space", "its name is not BIDS"),
                "quotes": ("label with quotes", "its name is not BIDS"),
                "HTML": ("label with HTML", "its name is not BIDS"),
                "dots": ("label `..`", "its name is not BIDS"),
                "look-alike": ("label of Unicode look-alikes", "its name is not BIDS"),
                "terminal": ("label that commands the terminal", "its name is not BIDS"),
                "long": ("label of 200 characters", "its name is too long"),
            },
        ),
        "asked label": Fault(
            "`--participant-label ../x`", REFUSED, "has no participant", 2,
            _NAMES + "test_labels_that_lead_elsewhere_are_refused",
        ),
        **_rows(
            "test_bids_tables.py::test_tables_as_spreadsheets_save_them", WARNING, 0,
            {
                "commas": ("`participants.tsv` separated by commas", "is separated by ','"),
                "UTF-16": ("`participants.tsv` in UTF-16", "is UTF-16"),
                "Latin-1": ("`participants.tsv` in Latin-1", "read as Latin-1"),
                "duplicates": ("`participants.tsv` with duplicate ids: cells that differ are not "
                               "used", "has several rows for"),
                "ragged": ("`participants.tsv` with rows of too few cells", "too few cells in"),
            },
        ),
        "BOM": Fault(
            "`participants.tsv` with a byte order mark", WORKS, "", 0,
            "test_bids_tables.py::test_tables_as_spreadsheets_save_them",
        ),
        "CRLF": Fault(
            "CRLF, commas, a mark and a duplicate id in one table", WARNING,
            "several rows for", 0, _NAMES + "test_a_table_from_a_spreadsheet_is_read",
        ),
        "HTML cells": Fault(
            "HTML and scripts in cells and sidecars: shown as text in every report", WORKS, "", 0,
            _NAMES + "test_text_of_tables_and_sidecars_runs_nothing_in_any_report",
        ),
        **{
            key: Fault(what, WARNING, says, 0, tried)
            for key, (what, says, tried) in {
                "broken sidecar": (
                    "sidecar that is not JSON: the scanner is unknown, whatever one further up "
                    "says", "its metadata is not used",
                    "test_bids_sidecars.py::test_a_broken_sidecar_hides_what_it_may_replace",
                ),
                "long rows": (
                    "rows with more cells than columns: not used", "more cells than columns",
                    "test_bids_tables.py::test_a_row_whose_cells_cannot_be_told_apart_is_not_used",
                ),
                "other name": (
                    "table under a name or in a place that BIDS does not have: not read",
                    "as BIDS has no such name there",
                    "test_bids_tables.py::test_a_table_under_another_name_is_told",
                ),
                "pointer": (
                    "text that git-annex or Git LFS has not fetched", "git lfs pull",
                    "test_text.py::test_pointers_are_named_with_what_fetches_them",
                ),
                "units": (
                    "units of the age that are not understood: no age", "gives its Units as",
                    "test_bids_columns.py::"
                    "test_units_that_are_not_understood_make_their_column_unusable",
                ),
                "broken dictionary": (
                    "data dictionary that cannot be read: no age", "may give its units",
                    "test_bids_columns.py::"
                    "test_a_dictionary_that_cannot_be_read_makes_ages_unusable",
                ),
                "other session": (
                    "ages in `sessions.tsv`, none of this session: no age",
                    "may be the age at another time",
                    "test_bids_tables.py::test_the_age_at_another_time_is_not_used",
                ),
                "other id": (
                    "ids that differ by leading zeros or a prefix", "did you mean",
                    "test_bids_tables.py::test_a_subject_without_row_is_told",
                ),
                "other column": (
                    "age, site, sex or diagnosis in a column of an unusual name", "looks like it",
                    "test_bids_columns.py::"
                    "test_columns_that_look_like_the_one_wanted_are_named",
                ),
                "some masks": (
                    "`--derivatives` with masks for some scans only", "was found for",
                    "test_bids_masks.py::test_masks_of_derivatives",
                ),
            }.items()
        },
        "many files": Fault(
            "100,000 files: listed in bounded time and memory", WORKS, "", 0,
            _NAMES + "test_a_hundred_thousand_files_are_listed_in_bounded_time_and_memory",
        ),
    },
    "The whole dataset (level group)": {
        **_rows(
            _GROUP + "test_scans_that_were_never_done_are_named", WARNING, 0,
            {
                "never done": (
                    "scans of the dataset without a record",
                    "have no record, and are in no table: sub-01, sub-02 …",
                ),
                "no longer there": (
                    "records of scans that the dataset no longer has",
                    "no longer in the dataset, but still in the tables",
                ),
            },
        ),
        **_rows(
            _GROUP + "test_group_goes_on_without_its_dataset", WARNING, 0,
            {"no dataset": ("dataset gone, or not to be listed", "have no record is not known")},
        ),
        **_rows(
            _GROUP + "test_the_same_image_twice_is_said", WARNING, 0,
            {
                "same image": (
                    "the same image under two participants, or twice under one",
                    "The same image stands under different participants",
                ),
            },
        ),
        **_rows(
            _GROUP + "test_scans_made_in_different_ways_are_counted", WARNING, 0,
            {
                "different ways": (
                    "scans stripped, registered or scaled in different ways or versions",
                    "3 of 10 scans were registered by flirt, 7 by ants",
                ),
            },
        ),
        **_rows(
            _GROUP + "test_predictions_that_should_be_there_are_missed", FLAG, 0,
            {"predictions gone": ("predictions removed or damaged", "cannot be read")},
        ),
    },
    "Training and evaluation": {
        "image twice": Fault(
            "the same image under two participants", REFUSED, "stands under two participants", 2,
            _EVALUATE + "test_an_image_under_two_participants_is_refused",
        ),
        "image again": Fault(
            "the same image twice for one participant", LEFT_OUT, "it is the same image as", 0,
            _PERSONS + "test_a_persons_second_copy_is_left_out_and_said",
        ),
        "site of one scan": Fault(
            "`evaluate`: a site with too few persons for ComBat or for maps in a fold: left out "
            "there and counted", LEFT_OUT, "Left out here", 0,
            _EVALUATE + "test_what_cannot_be_had_in_a_fold_is_left_out_there_and_said",
        ),
        "no raw scan": Fault(
            "`evaluate`: raw image or transform missing: no true baseline", WARNING,
            "lack their raw image or their transform", 0,
            _EVALUATE + "test_what_cannot_be_had_in_a_fold_is_left_out_there_and_said",
        ),
        **_rows(
            _TARGETS, LEFT_OUT, 0,
            {
                "no ages": ("`evaluate`: no ages", "Not evaluated: age"),
                "no diagnosis": ("`evaluate`: no diagnosis", "Not evaluated: diagnosis"),
                "few patients": ("`evaluate`: too few persons of a class", "of a class"),
                "some ages": ("`evaluate`: some scans without age", "without a value"),
            },
        ),
        "late failure": Fault(
            "`evaluate` fails late: tables of the finished folds are there", RESUMES, "", 70,
            _EVALUATE + "test_what_is_done_is_written_before_something_fails",
        ),
    },
    "Anything at all": {
        key: Fault(what, then, says, code, f"test_fuzz.py::{test}")
        for key, (what, then, says, code, test) in {
            "header": ("random bytes in a NIfTI header", ERROR, "", 1,
                       "test_no_header_raises_anything_else_or_takes_memory"),
            "sidecar": ("random JSON in a sidecar", WARNING, "", 0, "test_no_sidecar_stops_a_run"),
            "table": ("random bytes in a table", WARNING, "", 0, "test_no_table_stops_a_run"),
            "dictionary": ("random JSON in a data dictionary", WARNING, "", 0,
                           "test_no_data_dictionary_stops_a_run"),
            "filter": ("random JSON in a filter file", REFUSED, "", 2,
                       "test_filter_files_are_read_or_refused"),
            "bundle": ("random bytes and values in a bundle", REFUSED, "", 78,
                       "test_bundles_are_read_or_refused"),
        }.items()
    },
}  # fmt: skip
FAULTS["Heads"] = {
    key: Fault(
        f.what,
        f.then,
        f.says,
        f.exit_code,
        "test_wrong_heads.py::test_wrong_heads_end_as_the_table_says",
    )
    for key, f in FAULTS["Heads"].items()
}


def rows_of(tried: str) -> list[str]:
    """Keys of the rows that a test tries."""
    return [key for part in FAULTS.values() for key, row in part.items() if row.tried == tried]


def page() -> str:
    """``docs/faults.md``."""
    parts = [INTRO]
    for title, rows in FAULTS.items():
        parts.append(
            f"\n## {title}\n\n| what is wrong | what happens | it says | exit | test |\n"
            "|---|---|---|---|---|\n"
        )
        for row in rows.values():
            says = f"*{row.says}*" if row.says else ""
            code = "" if row.exit_code is None else row.exit_code
            parts.append(
                f"| {row.what} | {row.then} | {says} | {code} | `{row.tried.split('::')[0]}` |\n"
            )
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
