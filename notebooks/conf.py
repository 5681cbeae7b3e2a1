"""The book: `sphinx-build -W -b html notebooks build/book`, with the extra `docs`."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for reference.py

project = "pwgf_jax"
author = "the authors of pwgf_jax"
release = importlib.metadata.version("pwgf_jax")
extensions = [
    "myst_nb",
    "reference",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["build", "runs"]

html_theme = "sphinx_book_theme"
html_title = "pwgf_jax"
html_static_path = ["book.css"]
html_css_files = ["book.css"]
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True, "navbar_persistent": []}

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # a notebook is run again only once its code has changed
nb_merge_streams = True
nb_execution_timeout = 900
nb_execution_raise_on_error = True

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "alpha"

autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "none"  # the docstrings say shapes and units
autodoc_type_aliases = {"Array": "Array"}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
intersphinx_mapping: dict[str, tuple[str, None]] = {}  # the build asks no other machine
