"""Anatomical preprocessing as plain functions: check, brain mask, affine, intensity."""
