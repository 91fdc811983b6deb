"""Nipype workflows that preprocess and harmonize one scan."""
