"""How Sphinx builds the site: `make docs`."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import made  # noqa: E402 (lies beside this file)

import dfm  # noqa: E402

logger = logging.getLogger(__name__)
BUILD = HERE / "_build"
made.write(BUILD)
shutil.copytree(HERE / "kernel", BUILD / "ipython" / "profile_default" / "startup", dirs_exist_ok=True)
# Notebooks find the command, the settings of their kernel, and no colours and progress bars.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
os.environ["IPYTHONDIR"] = str(BUILD / "ipython")
os.environ["PYTHONHASHSEED"] = "0"
os.environ["DFM_REPOSITORY"] = str(made.ROOT)

project, author, copyright = "dfm", "The dfm authors", "The dfm authors; BSD-3-Clause"
version = release = dfm.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_click", "sphinx_copybutton"]
source_suffix = {".md": "myst-nb"}
exclude_patterns = ["_build"]
nitpicky = True
# Types of other libraries have no page here.
nitpick_ignore_regex = [("py:.*", ".*"), ("std:option", ".*")]
language = "en"

myst_enable_extensions = ["deflist", "dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 400
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
nb_render_markdown_format = "myst"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
pygments_style, pygments_dark_style = "tango", "github-dark"
html_title = f"dfm {release}"
html_theme_options = {"top_of_page_buttons": []}
html_static_path = ["assets"]
html_css_files = ["site.css"]
html_extra_path = ["llms.txt"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"
templates_path: list[str] = []


def as_prose(_app: Any, _kind: str, _name: str, documented: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings of dfm are plain prose with `code` in backticks: nothing else in them is markup.

    Arguments that a sentence begins with, as in "client: of the cluster", are set in bold.
    """
    try:
        arguments = [re.escape(name.replace("_", "\\_")) for name in inspect.signature(documented).parameters]
    except (TypeError, ValueError):
        arguments = []
    one = "|".join(arguments) or "(?!)"
    begins = re.compile(rf"(^|\. )((?:{one})(?:, (?:{one}))*)(?=: )")
    lines[:] = [begins.sub(_in_bold, re.sub(r"`([^`]+)`|([*_|\\])", _as_code, line)) for line in lines]


def _as_code(found: re.Match[str]) -> str:
    return f"``{found[1]}``" if found[1] else f"\\{found[2]}"


def _in_bold(found: re.Match[str]) -> str:
    return found[1] + ", ".join(f"**{name}**" for name in found[2].split(", "))


def without_variables(_app: Any, _context: Any, lines: list[str]) -> None:
    """Variables that stand for options are between dfm's own processes."""
    lines.clear()


def mathml(node: nodes.math | nodes.math_block, is_block: bool) -> str:
    """A formula of TeX as MathML, which browsers draw themselves: no script, no font from elsewhere."""
    try:
        return tex2mathml(node.astext(), as_block=is_block)
    except MathError as error:
        logger.warning("formula %r: %s", node.astext(), error, location=node)
        return ""


def visit_inline_math(translator: Any, node: nodes.math) -> None:
    """Put an inline formula into the page."""
    translator.body.append(mathml(node, False))
    raise nodes.SkipNode


def visit_math_block(translator: Any, node: nodes.math_block) -> None:
    """Put a formula with a line of its own into the page."""
    translator.body.append(f'<div class="formula">{mathml(node, True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Add what Sphinx lacks."""
    app.add_html_math_renderer("mathml", (visit_inline_math, None), (visit_math_block, None))
    app.connect("autodoc-process-docstring", as_prose)
    app.connect("sphinx-click-process-envvars", without_variables)
