"""The latency-against-quality plot, as SVG that follows the page's colors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from compressor.bench.figures import main_quality, main_quality_name, shown_ms
from compressor.bench.pareto import pareto_front
from compressor.bench.schema import Report

_WIDTH, _HEIGHT = 520.0, 380.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 16.0, 34.0, 46.0
_CLEARLY_NEARER = 1.5  # times as near as any other dot
_MISTAKEN = 150.0  # what a label costs that may be another dot's: as much as one six steps away
_LABEL_HEIGHT = 15.0
_CHARACTER = 6.6
_MOST_NAMED = 9  # points that have their names beside them; more have numbers, and a key below
_KEY_LINE, _KEY_COLUMNS = 16.0, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One row in the plot."""

    name: str
    x: float
    x_far: float
    y: float
    is_baseline: bool
    is_teacher: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Maps a span of values to a span of pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(v) if self.is_log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


def pareto_plots(report: Report) -> list[str]:
    """Return one plot per thread count: median latency (log) against the main quality, Pareto front marked."""
    plots = []
    for place, latency in enumerate(report.rows[0].latency):
        points = []
        for row in report.rows:
            quality = main_quality(report, row)
            if quality is not None:
                times = row.latency[place]
                point = Point(
                    name=row.name, x=times.p50_ms, x_far=times.p95_ms, y=quality,
                    is_baseline=row.kind == "baseline", is_teacher=row.name == report.teacher,
                )  # fmt: skip
                points.append(point)
        if points:
            title = f"{latency.threads} thread{'s' * (latency.threads != 1)}"
            plots.append(scatter(points, title=title, y_name=main_quality_name(report)))
    return plots


def scatter(points: Sequence[Point], *, title: str, y_name: str) -> str:
    """Draw points: a dot at the median, a whisker to the 95th percentile, the front as steps."""
    x = Scale(
        low=min(p.x for p in points) / 1.35, high=max(p.x_far for p in points) * 1.25,
        start=_LEFT, end=_WIDTH - _RIGHT, is_log=True,
    )  # fmt: skip
    low, high = min(p.y for p in points), max(p.y for p in points)
    pad = max((high - low) * 0.25, 0.004)
    y = Scale(low=low - pad, high=high + pad, start=_HEIGHT - _BOTTOM, end=_TOP)
    front = pareto_front([(p.x, p.y) for p in points])
    parts = [f'<text class="plot-title" x="{_LEFT}" y="18">{escape(title)}</text>']
    parts += _axes(x, y, y_name)
    parts.append(_front_line([points[i] for i in front], x, y))
    by_time = sorted(points, key=lambda point: point.x)
    names = {point.name: point.name + (" (teacher)" if point.is_teacher else "") for point in by_time}
    key: list[str] = []
    height = _HEIGHT
    if len(points) > _MOST_NAMED:
        key, height = _key(list(names.values()))
        names = {name: str(number) for number, name in enumerate(names, 1)}
    for point, label in _labels(points, names, x, y):
        parts.append(_mark(point, x, y, label, names[point.name], on_front=points.index(point) in front))
    parts += key
    described = f"{y_name} against latency, {title}"
    return (
        f'<svg viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(described)}">'
        + "".join(parts) + "</svg>"
    )  # fmt: skip


def _key(names: Sequence[str]) -> tuple[list[str], float]:
    """Return what the numbers of points stand for, in columns below the plot, and how high all is."""
    n_lines = math.ceil(len(names) / _KEY_COLUMNS)
    lines = [
        f'<text class="tick" x="{_LEFT + place // n_lines * (_WIDTH - _LEFT) / _KEY_COLUMNS:.1f}" '
        f'y="{_HEIGHT + (place % n_lines + 1) * _KEY_LINE:.1f}">{place + 1}  {escape(name)}</text>'
        for place, name in enumerate(names)
    ]
    return lines, _HEIGHT + (n_lines + 1) * _KEY_LINE


def log_ticks(low: float, high: float) -> list[float]:
    """Return round values between two positive ends, about 1-2-5 per decade, at least two where possible."""
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            break
    return inside


def linear_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round values between two ends."""
    raw = (high - low) / wanted
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    first = math.ceil(low / step)
    return [round(index * step, 10) for index in range(first, math.floor(high / step) + 1)]


def _axes(x: Scale, y: Scale, y_name: str) -> list[str]:
    bottom, middle = _HEIGHT - _BOTTOM, (_LEFT + _WIDTH - _RIGHT) / 2
    parts = []
    decimals = 3
    for tick in linear_ticks(y.low, y.high):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">'
                     f"{tick:.{decimals}f}</text>")  # fmt: skip
    for tick in log_ticks(x.low, x.high):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:,g}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="axis-name" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">'
                 "ms per query (log), left is faster</text>")  # fmt: skip
    parts.append(f'<text class="axis-name" x="{_WIDTH - _RIGHT}" y="18" text-anchor="end">{escape(y_name)}</text>')
    return parts


def _front_line(front: Sequence[Point], x: Scale, y: Scale) -> str:
    if not front:
        return ""
    steps = [f"M{x(front[0].x):.1f},{_HEIGHT - _BOTTOM:.1f}V{y(front[0].y):.1f}"]
    steps += [f"H{x(point.x):.1f}V{y(point.y):.1f}" for point in front[1:]]
    return f'<path class="front" d="{"".join(steps)}H{_WIDTH - _RIGHT:.1f}"/>'


@dataclass(frozen=True, kw_only=True, slots=True)
class _Box:
    left: float
    right: float
    top: float
    bottom: float

    def overlap(self, other: _Box) -> float:
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)

    def distance(self, x: float, y: float) -> float:
        return math.hypot(max(self.left - x, 0.0, x - self.right), max(self.top - y, 0.0, y - self.bottom))


def _labels(points: Sequence[Point], names: Mapping[str, str], x: Scale, y: Scale) -> list[tuple[Point, _Box]]:
    """Give every label the nearest place where it covers no other label, dot or whisker, or covers least.

    A place that is nearly as close to another dot is shunned: that one's label it would seem to be.
    """
    frame = _Box(left=_LEFT, right=_WIDTH - _RIGHT, top=_TOP - 8, bottom=_HEIGHT - _BOTTOM)
    taken = [_Box(left=x(p.x) - 8, right=x(p.x) + 8, top=y(p.y) - 8, bottom=y(p.y) + 8) for p in points]
    taken += [_Box(left=x(p.x), right=x(p.x_far), top=y(p.y) - 1, bottom=y(p.y) + 1) for p in points]
    result = []
    for point in sorted(points, key=lambda p: (y(p.y), x(p.x))):
        width, px, py = max(2, len(names[point.name])) * _CHARACTER, x(point.x), y(point.y)
        choices: list[tuple[float, int, _Box]] = []
        for away in range(6):
            for top in (py - 10 - (away + 1) * _LABEL_HEIGHT, py + 10 + away * _LABEL_HEIGHT):
                for left in (px - 4, px + 4 - width, px - width / 2):
                    box = _Box(left=left, right=left + width, top=top, bottom=top + _LABEL_HEIGHT)
                    outside = width * _LABEL_HEIGHT - box.overlap(frame)
                    covered = sum(box.overlap(other) for other in taken) + 2 * outside
                    near = _CLEARLY_NEARER * box.distance(px, py)
                    mistaken = sum(box.distance(x(p.x), y(p.y)) < near for p in points if p is not point)
                    choices.append((covered + 25 * away + _MISTAKEN * mistaken, len(choices), box))
        box = min(choices)[2]
        taken.append(box)
        result.append((point, box))
    return result


def _mark(point: Point, x: Scale, y: Scale, label: _Box, name: str, *, on_front: bool) -> str:
    px, py = x(point.x), y(point.y)
    kind = ("baseline" if point.is_baseline else "ranker") + (" on-front" if on_front else "")
    shape = (
        f'<rect x="{px - 5:.1f}" y="{py - 5:.1f}" width="10" height="10"/>'
        if point.is_baseline else f'<circle cx="{px:.1f}" cy="{py:.1f}" r="6"/>'
    )  # fmt: skip
    tip = f"{point.name}: {shown_ms(point.x)} ms (p95 {shown_ms(point.x_far)} ms), {point.y:.4f}"
    return (
        f'<g class="point {kind}"><title>{escape(tip)}</title>'
        f'<line class="whisker" x1="{px:.1f}" x2="{x(point.x_far):.1f}" y1="{py:.1f}" y2="{py:.1f}"/>{shape}'
        f'<text x="{label.left:.1f}" y="{label.bottom - 3:.1f}">{escape(name)}</text></g>'
    )
