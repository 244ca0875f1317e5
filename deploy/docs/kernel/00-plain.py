"""What a notebook of the site does otherwise than one on a desk: the same output every time, pictures that take the
page's colours. Copied into the profile of IPython that the build runs notebooks with.
"""

import io
import os
import re
import subprocess

from IPython import get_ipython

_CLOCK = (
    (r"(?m)^.* [\d,]+/[\d,]+ +\w+ +\d:\d\d:\d\d\s*$\n?", ""),  # the end of a progress bar
    # An epoch's rows/s, seconds, averaging.
    (r"(?m)^( *\d+(?: +(?:\d\.\d+|-))+) +[\d,]+ +\d+\.\d+(?: +\d+\.\d+)?$", r"\1     […]"),
    (r" \(kernels compiled meanwhile, [\d.]+ s\)", ""),
    (r"\b\d+(?:\.\d+)? (s|ms|seconds|minutes|min)\b", r"[…] \1"),
    (r"\b[\d,.]+ ?[kM]? rows/s\b", "[…] rows/s"),
    (r"\b\d{8}-\d{6}-[0-9a-f]{6}\b", "[…]"),  # the id of a run
)
"""What depends on the clock, and what stands for it in a page."""
_COLOURFUL = ("CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "TERM")
"""Set by the kernel for terminals that it may have."""
_WIDTH = 96


def without_clock(text):
    """The text with `[…]` for what would differ from build to build."""
    for pattern, replacement in _CLOCK:
        text = re.sub(pattern, replacement, text)
    return text


def run(command):
    """Run what follows a `!`: its output without colours, progress bars, clock and the folder that it ran in."""
    environment = {name: value for name, value in os.environ.items() if name not in _COLOURFUL}
    environment |= {"COLUMNS": str(_WIDTH), "NO_COLOR": "1"}
    expanded = get_ipython().var_expand(command, depth=1)
    done = subprocess.run(
        expanded, shell=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(without_clock(done.stdout.replace(f"{os.getcwd()}/", "")), end="")
    get_ipython().user_ns["_exit_code"] = done.returncode


def drawn(figure):
    """A figure of matplotlib as SVG inside the page: lines and letters in the colour of the page's text."""
    target = io.StringIO()
    figure.savefig(target, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :].replace("#010203", "currentColor")
    plt.close(figure)
    return f'<div class="figure">{svg}</div>'


get_ipython().system = run

import matplotlib  # noqa: E402

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
from cycler import cycler  # noqa: E402

_INK = "#010203"
plt.rcParams.update(
    {
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "axes.prop_cycle": cycler(color=["#3d85c6", "#e07b39", "#3f9c6b", "#b565a7", "#8c8c3c", "#c0504d"]),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.figsize": (6.4, 3.4),
        "font.family": "sans-serif",
        "font.size": 10,
        "legend.frameon": False,
        "legend.labelcolor": _INK,
        "svg.fonttype": "none",
        "svg.hashsalt": "dfm",
        "text.color": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
    }
)
get_ipython().display_formatter.formatters["text/html"].for_type(matplotlib.figure.Figure, drawn)
