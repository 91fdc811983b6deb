#!/bin/sh
# Run bet and flirt on a simulated head, as bids_harmony does.
set -eu
dir=$(mktemp -d)
bids_harmony-simulate "$dir/bids" --sites 1 --subjects 1 --resolution 2
head=$(find "$dir/bids" -name '*_T1w.nii.gz' | head -n 1)
bet "$head" "$dir/brain.nii.gz" -R -m
flirt -in "$dir/brain.nii.gz" -ref "$dir/brain.nii.gz" -dof 12 -omat "$dir/affine.mat"
# A brain has a litre or more: at 2 mm 125,000 voxels, 50,000 at the very least.
fslstats "$dir/brain_mask.nii.gz" -V | awk '{ print $1, "voxels of brain" } $1 > 50000 { ok = 1 }
END { exit !ok }'
test -s "$dir/affine.mat"
rm -rf "$dir"
