"""Settings of Sphinx: `make docs` builds the pages of this folder and the reference of the API."""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import reference_pages  # noqa: E402

from thinkers.version import __version__  # noqa: E402

project = "thinkers"
release = version = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = "thinkers"
myst_heading_anchors = 4
myst_links_external_new_tab = True

default_role = "code"  # docstrings write `x`, as in Markdown
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
autodoc_mock_imports = ["fastapi", "qdrant_client", "transformers", "uvicorn"]
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False

OUTSIDE = {
    "../README.md": "index.md",
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples/pipeline/README.md": "pipeline.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../examples/pipeline/README.md": "pipeline.md",
    "../examples/research/program.md": "program.md",
}
"""Pages of the repository that the site includes under other names."""


def setup(app):
    app.connect("builder-inited", lambda _: reference_pages.write(DOCS / "reference"))
    app.connect("source-read", lambda _, name, source: rewrite_links(source))
    app.connect("include-read", lambda _, path, name, source: rewrite_links(source))
    # Before napoleon, which reads the sections that are left.
    app.connect("autodoc-process-docstring", reference_pages.as_rest, priority=400)


def rewrite_links(source):
    """Let links between files of the repository lead to pages of the site."""
    text = source[0]
    for path, page in OUTSIDE.items():
        text = text.replace(f"]({path}", f"]({page}")
    # Files that are no pages are named, not linked.
    text = re.sub(r"\[([^\]]+)\]\(\.\./(examples/(?:scale|notebooks)/[^)]+)\)", r"\1 (`\2`)", text)
    source[0] = text.replace("](docs/", "](")
