"""Sphinx's settings for the site: offline, mathematics as MathML, saved notebooks as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

from gqc_lab.publish.gallery import write_script

project = "gqc"
html_title = "gqc"
html_theme = "furo"
html_copy_source = False
html_static_path = ["site.css"]
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
    app.connect("builder-inited", lambda app: write_script(Path(app.outdir) / "_static"))
    inline, block = (_mathml("inline"), None), (_mathml("block"), None)
    app.add_html_math_renderer("mathml", inline_renderers=inline, block_renderers=block)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
