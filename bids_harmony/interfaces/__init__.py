"""Nipype interfaces: thin shells around the plain functions of the other packages."""
