"""Sphinx's settings for the site: offline, mathematics as MathML, saved notebooks as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

from gqc_lab.publish.interactive import write_script

project = "gqc"
html_title = "gqc"
html_theme = "furo"
html_copy_source = False
html_css_files = ["site.css"]
html_show_copyright = False
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "py:obj"
suppress_warnings = ["ref.python"]  # two modules have a name that a docstring mentions
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # tables too in what a cell shows
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
autodoc_mock_imports = ["stable_baselines3"]  # which the site has no need of
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_custom_sections = ["Source"]
html_math_renderer = "mathml"
STYLE = """.gallery { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); }
.card { border: 1px solid var(--color-background-border); border-radius: 6px; padding: .6rem;
  color: inherit; text-decoration: none; }
.card img { width: 100%; background: white; }
.card span { display: block; font-size: .85rem; line-height: 1.25; }
.output { overflow-x: auto; }
.js-plotly-plot { min-width: 36rem; }
.content { width: min(54em, 100%); }
article h1 { font-size: 2em; }
.table-wrapper td { vertical-align: top; }
.output img, .article-container img { max-width: 100%; }
"""
# `Returns: x` on one line, which napoleon wants as a heading
_SECTION = re.compile(r"(\s*)(Args|Returns|Raises|Yields|Source|Attributes): +(\S.*)")


def _open_sections(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    opened = []
    for line in lines:
        match = _SECTION.fullmatch(line)
        if match:
            opened += [f"{match[1]}{match[2]}:", f"{match[1]}    {match[3]}"]
        else:
            opened.append(line)
    lines[:] = opened


def _write_static(folder: Path) -> None:
    write_script(folder)
    (folder / "site.css").write_text(STYLE, encoding="utf-8")


def _is_foreign(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Skip members that come from elsewhere, such as a function of torch."""
    module = getattr(obj, "__module__", None) or "gqc"
    return None if str(module).startswith("gqc") else True


def _mathml(display: str) -> Any:
    def visit(writer: Any, node: Any) -> None:
        from docutils.nodes import SkipNode

        writer.body.append(convert(node.astext(), display=display))
        raise SkipNode

    return visit


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _open_sections, priority=400)
    app.connect("autodoc-skip-member", _is_foreign)
    app.connect("builder-inited", lambda app: _write_static(Path(app.outdir) / "_static"))
    inline, block = (_mathml("inline"), None), (_mathml("block"), None)
    app.add_html_math_renderer("mathml", inline_renderers=inline, block_renderers=block)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
