"""What the plots of reports and comparisons have in common: colours, layout, and how they get onto a page."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

# Okabe and Ito's colours, told apart by people with any kind of colour vision (jfly.uni-koeln.de/color, 2008)
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
GREY, LIGHT, INK = "#8A929B", "#E3E7EB", "#1B1F24"
CLEAR = "rgba(0,0,0,0)"
"""the page's own colour, light or dark; its style sheet sees to texts and grids"""
_CONFIG = {"responsive": True, "displayModeBar": False}
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

_LOADER = """
const waiting = [];
function draw(plot) { window.Plotly ? plot() : waiting.push(plot); }
(async () => {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  waiting.forEach((plot) => plot());
})();
"""


def javascript() -> str:
    """Plotly's own script, to be put into the page once, before the plots: packed, or it would be 4.5 MB."""
    packed = base64.b64encode(gzip.compress(str(get_plotlyjs()).encode(), 9, mtime=0)).decode()
    return f'<script type="text/plain" id="plotly">{packed}</script>\n<script>{_LOADER}</script>'


def div(figure: go.Figure, name: str) -> str:
    """The `<div id=name>` with the figure in it; needs `javascript()` earlier on the page."""
    height = figure.layout.height
    drawn = str(figure.to_json()).replace("</", "<\\/")  # nothing in it may end the script
    return (
        f'<div id="{name}" style="min-height: {height}px"></div>\n<script>draw(() => {{ const figure = {drawn}; '
        f'Plotly.newPlot("{name}", figure.data, figure.layout, {json.dumps(_CONFIG)}); }});</script>'
    )


def layout(height: int) -> dict[str, Any]:
    """What all plots have in common; `height` in pixels."""
    axis = {"gridcolor": LIGHT, "zeroline": False, "linecolor": GREY, "ticks": "outside", "tickcolor": GREY}
    return {
        "height": height,
        "template": "none",
        "font": {"family": _FONT, "size": 13, "color": INK},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        "hoverlabel": {"align": "left", "font": {"family": _FONT, "size": 13}},
        "xaxis": {**axis, "automargin": True, "title": {"standoff": 8}},
        "yaxis": {**axis, "automargin": True, "title": {"standoff": 10}},
    }
