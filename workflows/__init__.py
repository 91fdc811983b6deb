"""Nipype workflows: the graphs of one scan, and of a run."""
