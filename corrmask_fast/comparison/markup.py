"""Parts of a page: text escaped, lists, tables, pictures inside it; the page around them."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import import_extra

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; color: #1c1c1c;
  background: #fff; margin: 0 auto; padding: 1rem; max-width: 1250px; overflow-wrap: break-word }
p, ul, dl, figcaption { max-width: 48rem }
h1 { font-size: 1.8rem; line-height: 1.2 } h2 { font-size: 1.35rem; margin-top: 2.6rem; border-bottom: 1px solid #ccc }
h3 { font-size: 1.1rem; margin-top: 1.8rem }
.scroll { overflow-x: auto; margin: .6rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
.caption { font-weight: 600; margin: 1.2rem 0 .3rem }
th, td { padding: .35rem .7rem; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid #e2e2e2 }
thead th { border-bottom: 2px solid #888; vertical-align: bottom }
th[scope=row], td.text, th.text { text-align: left }
.answer th, .answer td { padding: .35rem .3rem } .answer thead th { white-space: normal; max-width: 7.5rem }
.answer th[scope=row] { position: sticky; left: 0; background: #fff; white-space: normal; min-width: 7.5rem }
tbody + tbody { border-top: 2px solid #888 }
.d { color: #595959 } .told { color: #1c1c1c; padding: 0 .25rem; border-radius: .2rem }
.better { background: #d9efe2 } .worse { background: #fbdfd3 } .higher, .lower { background: #e7e7f4 }
.notice { border-left: 4px solid #d55e00; padding: .4rem .8rem; background: #fdf3ec }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 360px), 1fr));
  gap: 1.2rem 1rem; align-items: start }
figure { margin: 0 } img { max-width: 100%; height: auto; display: block }
figcaption { color: #404040 } summary { cursor: pointer; font-weight: 600; padding: .4rem 0 }
li { margin-bottom: .5rem } dt { font-weight: 600 } dd { margin: 0 0 .4rem }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{introduction}
</header>
<main>
{sections}
</main>
</body>
</html>
"""


def esc(value: Any) -> str:
    """Return any value as text that HTML shows unchanged."""
    return html.escape(str(value))


def listing(items: Iterable[str]) -> str:
    """Return a list of items that are HTML already."""
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def enumerated(names: Sequence[str]) -> str:
    """Return "a, b and c"; with semicolons where a name has a comma."""
    comma = "; " if any(", " in name for name in names) else ", "
    last = "; and " if comma == "; " else " and "
    return last.join(filter(None, [comma.join(names[:-1]), *names[-1:]]))


def count(n: int, one: str) -> str:
    """Return "1 seed" or "5 seeds"."""
    return f"{n:,} {one}{'' if n == 1 else 's'}"


def table(caption: str, head: str, body: str, kind: str = "") -> str:
    """Return a table that scrolls sideways in a box of its own, below its caption; all texts are HTML."""
    return (
        f'<p class="caption">{caption}</p><div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
        f'<table class="{kind}">{head and f"<thead><tr>{head}</tr></thead>"}{body}</table></div>'
    )


def picture(figure: Any, alt: str, caption: str) -> str:
    """Return a Matplotlib figure as PNG inside the page, with the text in its place and the sentence below it."""
    file, drawn = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=180, metadata={"Software": None})
    images = import_extra("PIL.Image", "plot")  # comes with Matplotlib; 64 colours make a third of the bytes
    images.open(drawn).convert("RGB").quantize(64).save(file, format="png", optimize=True)
    width, height = (round(100 * inches) for inches in figure.get_size_inches())
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{esc(alt)}">'
        f"<figcaption>{esc(caption)}</figcaption></figure>"
    )
