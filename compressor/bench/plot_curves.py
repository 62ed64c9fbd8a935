"""Curves over training, such as losses and dev measures over pairs seen, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Literal

import numpy as np

from compressor.bench.figures import minus, shown_count
from compressor.bench.plot import Scale, linear_ticks, log_ticks

Points = Sequence[tuple[float, float]]
N_COLORS = 8  # classes c0 to c7 of the page; behind them the same colors come again, dashed

_WIDTH, _HEIGHT = 520.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 16.0, 30.0, 44.0
_LEGEND_LINE, _CHARACTER, _SWATCH = 17.0, 6.5, 22.0
_MOST_POINTS = 200
_ORDER = {"loss": 0, "dev": 1}
_LEAST, _LOG_MOST = 1e-9, 1e12  # what is nearer to zero is drawn as zero; what is wider apart has no log axis
_LOG_FROM = 10.0  # a logarithmic axis pays once the largest value is so many times the smallest


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A line and its name. Values that are not finite leave a gap."""

    name: str
    points: Points


def training_plots(series: Mapping[str, Points], title: str = "") -> list[str]:
    """Return the plots of one pass: curves named ``PREFIX/PART`` share one with ``PREFIX``; a dev measure has its own.

    Losses stand on a logarithmic axis where they span more than a decade; the best value of a dev measure is marked.
    """
    plots = []
    for group in _grouped(series):
        name = group[0].name.partition("/")[0]
        is_dev, is_loss = name == "dev", name == "loss"
        y_name = group[0].name.removeprefix("dev/") if is_dev else name.replace("_", " ")
        heading = f"{title}: dev {y_name}" if is_dev else f"{title}: {y_name}"
        plot = line_plot(
            [Curve(name="total" if one.name == name and len(group) > 1 else one.name.removeprefix(f"{name}/"),
                   points=one.points if is_dev else thinned(one.points)) for one in group],
            title=heading.removeprefix(": "), y_name=y_name, log_y=is_loss and _spans_a_decade(group),
            best=("low" if "loss" in y_name else "high") if is_dev else None,
        )  # fmt: skip
        plots += [plot] if plot else []
    return plots


def line_plot(
    curves: Sequence[Curve], *, title: str, y_name: str, x_name: str = "pairs seen", log_y: bool = False,
    best: Literal["high", "low"] | None = None,
) -> str:  # fmt: skip
    """Draw curves over one axis.

    Args:
        curves: drawn in this order; with more than one, a legend names each and gives its last value.
        title, x_name, y_name: plain text.
        log_y: logarithmic, where every value is positive and decades are few enough to be told apart.
        best: rings the ``high``-est or ``low``-est value of each curve; of a single curve it is written beside it.

    Returns:
        The SVG, or nothing where no curve has a finite point.
    """
    finite = {curve.name: _finite(curve.points) for curve in curves}
    curves = [curve for curve in curves if finite[curve.name]]
    if not curves:
        return ""
    xs, ys = zip(*(point for points in finite.values() for point in points), strict=True)
    log_y = log_y and min(ys) > 0 and max(ys) < _LOG_MOST * min(ys)
    legend, top = _legend(curves, finite)
    x = Scale(low=0.0 if 0 <= min(xs) < 0.3 * max(xs) else min(xs), high=max(xs), start=_LEFT, end=_WIDTH - _RIGHT)
    low, high = _padded(min(ys), max(ys), log_y, share=0.2 if best else 0.08)
    y = Scale(low=low, high=high, start=_HEIGHT - _BOTTOM, end=top, is_log=log_y)
    parts = [f'<text class="plot-title" x="0" y="14">{escape(title)}</text>', *legend]
    parts += _axes(x, y, x_name, y_name + (" (log)" if log_y else ""))
    parts += [_line(curve, x, y, index) for index, curve in enumerate(curves)]
    if best:
        choose = max if best == "high" else min
        for index, curve in enumerate(curves):
            point = choose(finite[curve.name], key=lambda point: point[1])
            parts.append(_marked(point, x, y, index, with_text=len(curves) == 1))
    label = f"{title}: {', '.join(curve.name for curve in curves)} over {x_name}"
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" aria-label="{escape(label)}">'
        + "".join(parts) + "</svg>"
    )  # fmt: skip


def standalone(svg: str) -> str:
    """Return a plot as a file of its own, with the page's light colors and a white ground."""
    colors = "".join(f".c{index} {{ color: {color}; }} " for index, color in enumerate(LIGHT_COLORS))
    style = (
        "text { font: 12.5px system-ui, 'DejaVu Sans', sans-serif; fill: #1d2328; } .tick, .axis-name { fill: #5d6870; "
        "font-size: 11.5px; } .plot-title { font-weight: 640; } .grid { stroke: #ebe8e1; } .axis { stroke: #8a939a; } "
        ".curve { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; } "
        ".dashed { stroke-dasharray: 6 4; } .dot { fill: currentColor; } .best { fill: none; stroke: currentColor; "
        f"stroke-width: 2; }} {colors}{_SCATTER_STYLE}"
    )
    head, _, body = svg.partition(">")
    box = head.split('viewBox="')[1].split('"')[0]
    width, height = map(float, box.split()[2:])
    size = f'width="{1.5 * width:.0f}" height="{1.5 * height:.0f}" '
    head = head.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" {size}').replace(
        box, f"-12 -8 {width + 24:.0f} {height + 16:.0f}"
    )
    ground = '<rect x="-12" y="-8" width="100%" height="100%" fill="#ffffff"/>'
    return f"{head}><style>{style}</style>{ground}{body}\n"


_SCATTER_STYLE = (
    ".front { fill: none; stroke: #0b6e82; stroke-width: 1.5; stroke-dasharray: 5 4; opacity: 0.75; } "
    ".point .whisker { stroke: #8a939a; stroke-width: 1.5; } .point rect { fill: #ffffff; stroke: #8a939a; "
    "stroke-width: 2; } .point circle { fill: #ffffff; stroke: #0b6e82; stroke-width: 2; } "
    ".point.on-front circle { fill: #0b6e82; } .point.on-front rect { fill: #8a939a; } "
    ".point.ranker text { font-weight: 640; } .point text { paint-order: stroke; stroke: #ffffff; stroke-width: 3px; }"
)
LIGHT_COLORS = ("#1d2328", "#0b6e82", "#c2611a", "#7655b0", "#1f7a46", "#b3352b", "#2f62c4", "#8a7a12")


def thinned(points: Points, most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most ``most`` points: means over equal numbers of neighbors, so that noise does not hide the course."""
    finite = _finite(points)
    if len(finite) <= most:
        return list(points)
    spans = np.array_split(np.asarray(finite), most)
    return [(float(span[:, 0].mean()), float(span[:, 1].mean())) for span in spans]


def _grouped(series: Mapping[str, Points]) -> list[list[Curve]]:
    """Return losses, then dev measures, then the rest; in a group the total first, else in their own order."""
    groups: dict[str, list[Curve]] = {}
    for name, points in series.items():
        prefix = name.partition("/")[0]
        group = groups.setdefault(name if prefix == "dev" else prefix, [])
        group.insert(0 if name == prefix else len(group), Curve(name=name, points=points))
    return sorted(groups.values(), key=lambda group: _ORDER.get(group[0].name.partition("/")[0], 2))


def _spans_a_decade(group: Sequence[Curve]) -> bool:
    values = [y for curve in group for _, y in thinned(curve.points) if math.isfinite(y)]
    return bool(values) and min(values) > 0 and max(values) >= _LOG_FROM * min(values)


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(_not_tiny(x), _not_tiny(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _not_tiny(value: float) -> float:
    return value if abs(value) >= _LEAST else 0.0


def _padded(low: float, high: float, log: bool, share: float) -> tuple[float, float]:
    if log:
        factor = (high / low) ** share if high > low else 1.2
        return low / factor, high * factor
    pad = (high - low) * share or abs(high) * 0.05 or 1.0
    return low - pad, high + pad


def _legend(curves: Sequence[Curve], finite: Mapping[str, Points]) -> tuple[list[str], float]:
    """Return the legend and the top of the axes under it."""
    if len(curves) < 2:
        return [], _TOP + 6
    parts, left, line = [], 0.0, _TOP + 4
    for index, curve in enumerate(curves):
        last = _short(finite[curve.name][-1][1])
        width = _SWATCH + (len(curve.name) + len(last) + 1) * _CHARACTER + 14
        if left and left + width > _WIDTH:
            left, line = 0.0, line + _LEGEND_LINE
        parts.append(
            f'<g class="c{index % N_COLORS}"><line class="{_stroke(index)}" x1="{left:.1f}" x2="{left + 16:.1f}" '
            f'y1="{line - 4:.1f}" y2="{line - 4:.1f}"/></g>'
            f'<text class="legend" x="{left + _SWATCH:.1f}" y="{line:.1f}">{escape(curve.name)}'
            f'<tspan class="tick" dx="6">{last}</tspan></text>'
        )
        left += width
    return parts, line + 14


def _axes(x: Scale, y: Scale, x_name: str, y_name: str) -> list[str]:
    bottom, top, right = _HEIGHT - _BOTTOM, y.end, _WIDTH - _RIGHT
    ticks = log_ticks(y.low, y.high) if y.is_log else []
    ticks = _spread(ticks, y) if len(ticks) > 1 else linear_ticks(y.low, y.high, 5)
    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
        )
    for tick in linear_ticks(x.low, x.high, 5) if x.high > x.low else [x.low]:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 17}" text-anchor="middle">'
                     f"{_count(tick)}</text>")  # fmt: skip
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="axis-name" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">'
                 f"{escape(x_name)}</text>")  # fmt: skip
    parts.append(f'<text class="axis-name" x="{right}" y="14" text-anchor="end">{escape(y_name)}</text>')
    return parts


def _spread(ticks: Sequence[float], y: Scale) -> list[float]:
    """Leave out ticks whose labels would touch."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or abs(y(tick) - y(kept[-1])) >= 15:
            kept.append(tick)
    return kept


def _line(curve: Curve, x: Scale, y: Scale, index: int) -> str:
    """Return one piece for each run of finite points; a point alone becomes a dot."""
    parts = []
    for is_finite, run in groupby(curve.points, key=lambda p: math.isfinite(p[0]) and math.isfinite(p[1])):
        points = list(run)
        if not is_finite:
            continue
        if len(points) == 1:
            ((a, b),) = points
            parts.append(f'<circle class="dot" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3"/>')
        else:
            line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
            parts.append(f'<polyline class="{_stroke(index)}" points="{line}"/>')
    return f'<g class="c{index % N_COLORS}">{"".join(parts)}</g>'


def _marked(point: tuple[float, float], x: Scale, y: Scale, index: int, *, with_text: bool) -> str:
    px, py = x(point[0]), y(point[1])
    text = f"{point[1]:.4f} at {_count(point[0])}" if with_text else ""
    half = len(text) * _CHARACTER / 2
    middle = min(max(px, _LEFT + half), _WIDTH - _RIGHT - half)
    above = py - 11 if py - 22 > y.end else py + 21
    return (
        f'<g class="c{index % N_COLORS}"><circle class="best" cx="{px:.1f}" cy="{py:.1f}" r="5"/></g>'
        f'<text class="legend" x="{middle:.1f}" y="{above:.1f}" text-anchor="middle">{escape(text)}</text>'
    )


def _stroke(index: int) -> str:
    return "curve dashed" if index >= N_COLORS else "curve"


def _count(value: float) -> str:
    return shown_count(value) if abs(value) >= 1000 else f"{value:g}"


def _short(value: float) -> str:
    text = f"{value:.3g}" if not value or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"
    digits, _, power = text.partition("e")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return minus(digits + (f"e{int(power)}" if power else ""))
