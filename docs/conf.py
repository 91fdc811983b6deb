"""Sphinx configuration: Markdown pages, built offline by ``make docs``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from bids_harmony import __version__

project = "bids_harmony"
author = "The bids_harmony developers"
project_copyright = "the bids_harmony developers, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "parser_options", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
autodoc_typehints = "none"  # the docstrings have them
napoleon_use_rtype = False
myst_heading_anchors = 3

html_theme = "furo"  # loads no fonts or scripts from other sites
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"bids_harmony {__version__}"
html_copy_source = False
html_show_sphinx = False
