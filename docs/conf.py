"""How Sphinx builds the site: `make docs` makes it in build/docs, and every warning is an error."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

from corrmask_fast import __version__  # noqa: E402

urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})

project = "corrmask-fast"
author = "The corrmask-fast developers"
copyright = f"2026, {author}"  # noqa: A001
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxarg.ext",
]
exclude_patterns = ["examples", "_ext"]
templates_path = ["_templates"]
nitpicky = True  # a reference that leads nowhere is an error
# Types in signatures may come from other projects, whose inventories would need the network.
nitpick_ignore_regex = [("py:.*", r"(?!corrmask_fast\.[A-Za-z_]+$).*")]

# Tutorials are MyST text notebooks; they run at every build, on made-up cells.
nb_execution_mode = "auto"
nb_execution_timeout = 300
nb_execution_in_temp = True  # they write files
nb_execution_raise_on_error = True
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "myst.domains"]  # sphinx-argparse's domain has no "any" references

autosummary_generate = True
autosummary_imported_members = False
maximum_signature_line_length = 80
autodoc_mock_imports = ["lightning", "pytorch_lightning"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "groupwise"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Source"]
rst_prolog = r".. |rho| replace:: \|rho\|"  # docstrings write |rho| as one reads it
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = f"corrmask-fast {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_toc_level": 2,
}
if "Repository" in urls:
    html_theme_options["icon_links"] = [
        {"name": "Repository", "url": urls["Repository"], "icon": "fa-brands fa-github"}
    ]


HIDDEN = ("extra_repr", "fixed_arguments")  # for torch, and for other files of the package


def _is_foreign(_app: object, _what: str, _name: str, member: object, skip: bool, _options: object) -> bool:
    """Leave out what a class inherits from torch, transformers and the like."""
    function = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
    module = getattr(function, "__module__", None) or ""
    return skip or not module.startswith("corrmask_fast") or _name in HIDDEN


def setup(app: object) -> None:
    """Connect what autodoc asks of each member."""
    app.connect("autodoc-skip-member", _is_foreign)  # type: ignore[attr-defined]
