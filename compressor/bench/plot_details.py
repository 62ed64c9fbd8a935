"""The small plots of a report: per-query differences, a check against its limit."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from compressor.bench.plot import Scale, linear_ticks
from compressor.bench.schema import Check

_MOST_BARS = 240


def difference_plot(differences: Sequence[float], *, title: str, subtitle: str) -> str:
    """Draw per-query differences (row − teacher), sorted, with counts of better, equal and worse queries.

    With more than 240 queries, evenly spaced ones stand for all; the counts are of all.
    """
    values = np.sort(np.asarray(differences, dtype=np.float64))[::-1]
    better, worse = int((values > 0).sum()), int((values < 0).sum())
    if len(values) > _MOST_BARS:
        values = values[np.linspace(0, len(values) - 1, _MOST_BARS).round().astype(int)]
    width, height, left, right, top, bottom = 340.0, 190.0, 44.0, 8.0, 40.0, 22.0
    reach = max(0.01, float(np.abs(values).max()) * 1.05) if len(values) else 0.01
    y = Scale(low=-reach, high=reach, start=height - bottom, end=top)
    step = (width - left - right) / max(1, len(values))
    parts = [
        f'<text class="plot-title" x="0" y="14">{escape(title)}</text>',
        f'<text class="axis-name" x="0" y="31">{escape(subtitle)}</text>',
    ]
    for tick in linear_ticks(-reach, reach, 4):
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">'
                     f"{_signed(tick)}</text>")  # fmt: skip
    for index, value in enumerate(values):
        if value:
            top_y, bottom_y = sorted((y(0), y(float(value))))
            kind = "better" if value > 0 else "worse"
            size = f'width="{max(step * 0.85, 0.6):.2f}" height="{max(bottom_y - top_y, 0.5):.2f}"'
            parts.append(f'<rect class="bar {kind}" x="{left + index * step:.2f}" y="{top_y:.2f}" {size}/>')
    parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    counts = f"{better} better · {len(differences) - better - worse} equal · {worse} worse"
    parts.append(f'<text class="axis-name" x="{(left + width - right) / 2}" y="{height - 5}" text-anchor="middle">'
                 f"{counts}</text>")  # fmt: skip
    label = escape(f"{title}, {subtitle}: {counts}")
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def check_plot(check: Check) -> str:
    """Draw a check on one line: value as a dot, bound as a whisker, limit as a tick, the allowed side tinted."""
    width, height, middle = 180.0, 26.0, 13.0
    bound = check.value if check.bound is None else check.bound
    low, high = min(check.value, bound, check.limit), max(check.value, bound, check.limit)
    if check.kind in ("loss", "score_rmse"):
        low, high = min(low, 0.0), max(high, 0.0)
    pad = (high - low) * 0.12 or max(abs(check.limit) * 0.1, 1e-6)
    x = Scale(low=low - pad, high=high + pad, start=2, end=width - 2)
    good_is_low = check.kind in ("loss", "score_rmse", "size")
    start, end = (2.0, x(check.limit)) if good_is_low else (x(check.limit), width - 2)
    first, last = sorted((x(check.value), x(bound)))
    return (
        f'<svg class="check {check.verdict}" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" aria-hidden="true">'
        f'<rect class="good" x="{start:.1f}" y="5" width="{max(0.0, end - start):.1f}" height="16"/>'
        f'<line class="whisker" x1="{first:.1f}" x2="{last:.1f}" y1="{middle}" y2="{middle}"/>'
        f'<line class="whisker" x1="{x(bound):.1f}" x2="{x(bound):.1f}" y1="{middle - 4}" y2="{middle + 4}"/>'
        f'<line class="limit" x1="{x(check.limit):.1f}" x2="{x(check.limit):.1f}" y1="2" y2="24"/>'
        f'<circle cx="{x(check.value):.1f}" cy="{middle}" r="4.5"/></svg>'
    )


def _signed(value: float) -> str:
    return "0" if not value else f"{value:+g}".replace("-", "−")
