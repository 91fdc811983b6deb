"""What the columns of an evaluation's tables are."""

from __future__ import annotations

from bids_harmony.evaluation.prepare import HARMONIZED, WAYS

COLUMNS = {
    "experiment": "sites: trained at the reference, tested at every site; rotations: one or two "
    "training sites in every order; size: calibrated on few "
    "persons of the test site",
    "train_sites": "Sites the predictor was trained at; the first is the reference",
    "n_source": "Persons of the test site that calibrate it, where that was limited",
    "target": "What is predicted",
    "test_site": "Site of the scans that are tested; several joined by + together",
    "way": "How scans were prepared: none (no harmonization: resampled, over the 98th percentile "
    "of the brain), tissue_scaling (tissue normalization only: without bias field, CSF, grey and "
    "white matter at fixed values); and after that histogram_matching, combat, intensity_mapping "
    "(harmonized without the network), harmonized (by the site's calibration, ages estimated) or "
    "harmonized_known_ages (its ages known)",
    "n_scans": "Scans tested",
    "n_persons": "Persons these scans are of",
    "n_folds": "Seeds and folds that these scans were tested in: fewer where a way or target "
    "could not be had in all, or while an evaluation is not finished",
    "n_cases": "Scans of class 1",
    "mae": "Mean absolute error",
    "bias": "Mean of predicted minus true",
    "r": "Correlation of predicted and true",
    "offset": "Site offset: mean of predicted minus the training sites' own line of predicted on "
    "true values (ordinary least squares over their tested scans): what the site adds, with the "
    "regression to the mean taken out",
    "scatter": "Standard deviation of the same: it must not rise where the offset is closed",
    "in_reference_range": "Share of scans whose true value lies within the training sites' range; "
    "beyond it the line is a guess",
    "auc": "Area under the curve",
    "balanced_accuracy": "Mean of sensitivity and specificity",
    "coverage": "How often the predictors' empirical 90 % interval holds the truth, each person "
    "counting once",
    "half_width": "Half-width of the predictor's empirical 90 % interval",
    "reason": "Why this could not be had",
    "seed": "Seed of the repetition",
    "fold": "Part of the persons that was tested",
    "scan": "Number of the scan",
    "participant": "Participant label",
    "person": "Person: the dataset's column person or person_id, else the participant",
    "truth": "True value; 0 or 1 for two classes",
    "predicted": "Predicted value; a logit for two classes",
    "site": "Site",
    "age": "Age in years",
    "tissue_distance": "Wasserstein-1 distance of the site's mean intensity quantiles, whole and "
    "in each tissue, from the reference's at the same ages",
    "distance_left": "tissue_distance over that with tissue normalization only",
    "site_probe": "Cross-validated balanced accuracy of telling the site's scans from the "
    "reference's by tone, contrast, noise and sharpness, no person in two folds; 0.5 is chance",
    "site_probe_p": "Its p by exchanging the sites of whole persons",
    "measure": "What was measured: a tissue's or the ventricles' volume in mL, a target",
    "effect": "age slope (per year), or a column of two classes (Cohen's d)",
    "before": "The effect with tissue normalization only",
    "after": "The effect after preparation in the given way",
    "ratio": "after over before; missing where the effect before may be none",
    "psnr": "Mean peak signal-to-noise ratio in dB, inside both masks",
    "ssim": "Mean structural similarity inside both masks",
    "closer": "Share of persons whose scan is closer to the reference's than as preprocessed",
    "n_sites": "Sites that all these persons were scanned at",
    "icc": "Agreement of the sites over persons, ICC(2,1)",
    **{
        f"gain_over_{way}": f"By how much harmonized scans do better than {text} "
        "(mean absolute error or area under the curve); positive is better"
        for way, text in (
            ("none", "unharmonized ones"),
            ("tissue_scaling", "those with tissue normalization only"),
            ("histogram_matching", "histogram-matched ones"),
            ("combat", "those of ComBat"),
            ("intensity_mapping", "those harmonized without the network"),
            ("harmonized_known_ages", "those calibrated with known ages"),
        )
    },
    **{
        f"p_over_{way}": f"Two-sided p of gain_over_{way}: of areas under the curve by DeLong's "
        "test with persons as clusters, of errors by exchanging the ways within persons"
        for way in WAYS
        if way != HARMONIZED
    },
}
