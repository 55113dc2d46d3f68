"""What all pictures share. Figures are made without pyplot: no window, no global state, Agg when they are saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import InputError, import_extra
from corrmask_fast.files import atomic_file, check_output

if TYPE_CHECKING:
    import os
    from pathlib import Path

# Okabe and Ito's colours, distinct with any colour vision; the control is grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8C8C8C"

PICTURES = (".png", ".pdf", ".svg")

TEXT: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9, "annotation_clip": False}


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
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def edges_bar(axis: Any, shown: Any) -> None:
    """Say what the colours of a picture mean: numbers of edges, on a logarithmic scale, in plain figures."""
    bar = axis.figure.colorbar(shown, ax=axis, shrink=0.7, pad=0.02)
    bar.set_label("edges", fontsize=8)
    bar.ax.yaxis.set_major_formatter("{x:,.0f}")
    bar.ax.yaxis.set_minor_formatter("{x:,.0f}" if shown.norm.vmax < 10 * max(shown.norm.vmin, 1) else "")
    bar.ax.tick_params(which="both", labelsize=7)


def save_figure(figure: Any, path: str | os.PathLike[str] | None) -> Any:
    """Save a figure, where a path is given, and return it."""
    if path is not None:
        kind = check_picture(path).suffix.removeprefix(".").lower()
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format=kind, dpi=160)
    return figure
