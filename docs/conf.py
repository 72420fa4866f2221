"""Sphinx's configuration; `nox -s docs` builds with it, warnings fatal, without the network."""

from __future__ import annotations

from trackhub._version import VERSION

project = "trackhub"
author = "The trackhub maintainers"
project_copyright = "The trackhub maintainers"
version = release = VERSION

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"trackhub {VERSION}"
html_copy_source = False

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
# A name in single backticks in a docstring is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
