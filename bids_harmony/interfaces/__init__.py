"""Nipype interfaces, thin wrappers around the functions of the other packages."""
