"""What all pictures share: sizes, texts, and how each strategy is drawn.

Figures are made without pyplot: no window, no global state, Agg when they are saved.
"""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

from corrmask_fast.errors import InputError, import_extra
from corrmask_fast.files import atomic_file, check_output

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence
    from pathlib import Path

# Okabe and Ito's colours, distinct with any colour vision; the control is grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BLUE, RED, GREEN, PURPLE, ORANGE, SKY = COLORS
GREY, DARK = "#8C8C8C", "#404040"

# A page's width in most journals, and a column's, in inches: pictures are drawn as large as they are printed.
PAGE, COLUMN = 7.2, 3.6

PICTURES = (".png", ".pdf", ".svg")

TEXT: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "annotation_clip": False}


class Look(NamedTuple):
    """How a strategy is drawn: its colour and dash in lines, its marker, filled or hollow as bars and markers are."""

    color: str
    marker: str
    dash: str = "-"
    filled: bool = True

    def style(self) -> dict[str, Any]:
        """Keywords of ``Axes.plot``: a marker without a line."""
        return {
            "color": self.color, "marker": self.marker, "linestyle": "", "markersize": 6, "markeredgewidth": 1.3,
            "markerfacecolor": self.color if self.filled else "white",
        }  # fmt: skip

    def bar(self) -> dict[str, Any]:
        """Keywords of ``Axes.barh``: a hollow look is hatched."""
        if self.filled:
            return {"color": self.color, "edgecolor": self.color, "linewidth": 0.8}
        hatch = "/////" if self.dash == "--" else "....."
        return {"color": "white", "edgecolor": self.color, "linewidth": 0.8, "hatch": hatch}


# By the names of masking/strategies/__init__.py. A variant of a strategy has its colour and is hollow; so are controls.
LOOKS = {
    "random": Look(GREY, "o"),
    "weighted": Look("#000000", "p"),
    "span": Look(ORANGE, "^"),
    "pmi": Look(PURPLE, "D"),
    "pmi-rand": Look(PURPLE, "d", "--", filled=False),
    "corrmask": Look(BLUE, "s"),
    "corrmask-rewired": Look("#5B7A8C", "s", ":", filled=False),
    "random-matched": Look("#9C8468", "o", ":", filled=False),
    "corrmask-100": Look(BLUE, "v", "--", filled=False),
    "corrmask-weighted": Look(BLUE, "<", "-."),  # the label of corrmask with weights
    "corrmask-balanced": Look(GREEN, "h"),
    "gene-sets": Look(SKY, ">"),
    "mam": Look(RED, "*"),
    "corrmask-mam": Look(RED, "H", "--", filled=False),
}
# Of strategies that are not among these: first the colours that fewest of these have; from the eighth on hollow.
_OWN = [
    Look(color, marker, filled=i < 7)
    for i, (color, marker) in enumerate(zip((RED, "#000000", *COLORS[2:], BLUE) * 2, "XpDsov^P<>*hd8", strict=True))
]
# Of one strategy with several settings.
_VARIANTS = [("osD^v<>pPX"[i % 10], ("--", "-.", ":", "-")[(i + i // 10) % 4]) for i in range(40)]


def strategy_looks(names: Iterable[str]) -> dict[str, Look]:
    """Return how each strategy of a picture is drawn: the same in every picture, and no two alike in one.

    Parameters
    ----------
    names
        Names or labels, also with settings behind them (``corrmask@0.4``), and paths with such a name in them.

    Examples
    --------
    >>> looks = strategy_looks(["random", "CorrMask", "CorrMask, rate 0.4", "runs/span/model"])
    >>> [(look.color, look.marker) for look in looks.values()]
    [('#8C8C8C', 'o'), ('#0072B2', 's'), ('#0072B2', 'o'), ('#E69F00', '^')]
    """
    known = {name: _known(name) for name in names}
    found: dict[str, Look] = {}
    for name in sorted(known, key=lambda name: known[name] is None):  # a user's own strategies take what is left
        used = found.values()
        if strategy := known[name]:
            look = LOOKS[strategy]
            variants = (look._replace(marker=marker, dash=dash) for marker, dash in _VARIANTS)
            free = [one for one in (look, *variants) if one not in used]
            taken = {(one.color, one.marker) for one in used}
            found[name] = next((one for one in free if (one.color, one.marker) not in taken), (*free, look)[0])
        else:
            colors = {(one.color, one.filled) for one in used}
            free = [one for one in _OWN if (one.color, one.filled) not in colors]
            found[name] = free[0] if free else _OWN[len(used) % len(_OWN)]
    return {name: found[name] for name in known}


def _known(name: str) -> str | None:
    """Return the strategy that a name, a label or a part of a path means; None if it is one of the user's own."""
    for part in reversed(re.split(r"[/\\]", name)):
        words = re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-")
        words = re.sub("^control-(lambda-0|random)$", "random", words)  # of an audit
        words = re.sub("^((runs?|models?)-)+", "", words)
        for known in sorted(LOOKS, key=len, reverse=True):
            if re.fullmatch(rf"{known}(-(graph|lambda|rate|seed|run|[kp])?\d*)*", words):
                return known
    return None


def short_names(names: Sequence[str]) -> list[str]:
    """Return names as pictures have them: of paths, the part in which they differ.

    >>> short_names(["runs/random/model", "runs/corrmask/model"])
    ['random', 'corrmask']
    >>> short_names(["lung/graph.safetensors"])
    ['graph']
    """
    paths = [re.split(r"[/\\]+", re.sub(r"(\.safetensors|[/\\]+)$", "", name)) for name in names]
    for end, rest in ((0, slice(1, None)), (-1, slice(None, -1))):
        while min(map(len, paths)) > 1 and len({path[end] for path in paths}) == 1:
            paths = [path[rest] for path in paths]
    return ["/".join(path) for path in paths]


def plain(text: str) -> str:
    """Return text as Matplotlib shows it unchanged: it reads mathematics between two dollar signs."""
    return "".join(character if character.isprintable() else " " for character in text).replace("$", r"\$")


def check_picture(path: str | os.PathLike[str]) -> Path:
    """Return where to save a picture, or raise InputError: to be asked before the work whose picture it is."""
    path = check_output(path)
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"a picture must end in {', '.join(PICTURES[:-1])} or {PICTURES[-1]}; got {path}")
    return path


def new_figure(size: tuple[float, float]) -> Any:
    """Return an empty figure of (width, height) in inches."""
    return import_extra("matplotlib.figure", "plot").Figure(figsize=size, layout="constrained")


def style_axis(axis: Any, *, title: str, x: str, y: str = "") -> None:
    """Title, axis labels, and no more frame than needed."""
    axis.set_title(title, loc="left", fontsize=9)
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def head_figure(figure: Any, title: str) -> None:
    """Put a title above all panels, at the left, in lines that the figure has room for."""
    figure.suptitle(textwrap.fill(title, int(13.5 * figure.get_figwidth())), x=0.01, ha="left", fontsize=9.5)


def edges_bar(axis: Any, shown: Any) -> None:
    """Say what the colours of a picture mean: numbers of edges, on a logarithmic scale, in plain figures."""
    bar = axis.figure.colorbar(shown, ax=axis, shrink=0.7, pad=0.02)
    bar.set_label("edges", fontsize=7)
    bar.ax.yaxis.set_major_formatter("{x:,.0f}")
    bar.ax.yaxis.set_minor_formatter("{x:,.0f}" if shown.norm.vmax < 10 * max(shown.norm.vmin, 1) else "")
    bar.ax.tick_params(which="both", labelsize=6)


def save_figure(figure: Any, path: str | os.PathLike[str] | None) -> Any:
    """Save a figure, where a path is given, and return it."""
    if path is not None:
        kind = check_picture(path).suffix.removeprefix(".").lower()
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=300)
    return figure
