"""Sphinx settings of the documentation; CONTRIBUTING.md has the command that builds it.

The sources are where they are read on their own: docs/, benchmarks/results/, CONTRIBUTING.md and CHANGELOG.md, so the
source folder is the repository's root. Equations are plain text, fonts are the system's, and nothing is loaded from
elsewhere: tests/test_site.py looks.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # site_extension

import maw

project = "maw"
author = "the maw contributors"
copyright = f"{author}, Apache-2.0"
release = maw.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "site_extension"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "benchmarks/results/*.md", "CONTRIBUTING.md", "CHANGELOG.md"]

# Markdown: headings get the anchors that GitHub gives them, so that links work in both.
myst_heading_anchors = 4
myst_links_external_new_tab = False
suppress_warnings = ["myst.header"]  # pages may begin sections at any level

# Docstrings: single backticks are code, sections are Google's; see site_extension for the rest.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_favicon = "pictures/icon.svg"
html_title = f"maw {release}"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_static_path = []
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#a34f00", "color-brand-content": "#a34f00"},
    "dark_css_variables": {"color-brand-primary": "#f0954a", "color-brand-content": "#f0954a"},
}
pygments_style = "friendly"
