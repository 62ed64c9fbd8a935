"""How far scores move when each linear alone is rounded, and which ones were kept from it, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from compressor.bench.figures import minus
from compressor.bench.plot import Scale, linear_ticks, log_ticks
from compressor.bench.plot_curves import N_COLORS

Row = Mapping[str, Any]

_WIDTH, _HEIGHT = 1040.0, 320.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 16.0, 64.0, 44.0
_LEGEND_LINE, _LINE, _CHARACTER, _SWATCH = 36.0, 17.0, 6.5, 20.0
_FILLED = 0.84  # of a layer's share of the axis; the rest sets layers apart
_LOG_FROM = 10.0  # a logarithmic axis pays once the largest value is so many times the smallest


def placement_figure(notes: Mapping[str, Any], settings: Mapping[str, Any], title: str) -> str:
    """Return the figure of a pass that placed precisions, with what was chosen in words; nothing for other passes.

    Args:
        notes: of the pass; ``sensitivity`` has a row for each group of linears, in the order of the forward pass.
        settings: of the pass; ``keep_within`` has the limits.
        title: plain text.
    """
    rows = notes.get("sensitivity")
    if not rows:
        return ""
    limit = settings["keep_within"].get("max_score_rmse")
    plot = sensitivity_plot(rows, title=f"{title}: score RMSE of each linear rounded alone", limit=limit)
    return f"<figure>{plot}<figcaption>{escape(_words(notes))}</figcaption></figure>"


def sensitivity_plot(rows: Sequence[Row], *, title: str, limit: float | None = None) -> str:
    """Draw a bar for each group of linears, layer by layer: full where it was kept, pale where it was rounded.

    Args:
        rows: ``linears`` (``layers.3.ffn.down``), ``score_rmse`` in logits, ``kendall_tau``, ``ndcg_loss`` and
            ``is_kept``, in the order of the forward pass. A bar of no height is left out.
        title: plain text.
        limit: drawn as a line where there is one: for all that is rounded together.
    """
    parts = list(dict.fromkeys(_place(row)[1] for row in rows))
    found = [row["score_rmse"] for row in rows if row["score_rmse"] > 0] or [1.0]
    shown = [*found, *([limit] if limit else [])]
    is_log = max(shown) >= _LOG_FROM * min(shown)
    low, high = (min(shown) / 1.5, max(shown) * 1.3) if is_log else (0.0, max(shown) * 1.08)
    y = Scale(low=low, high=high, start=_HEIGHT - _BOTTOM, end=_TOP, is_log=is_log)
    drawn = [f'<text class="plot-title" x="0" y="14">{escape(title)}</text>', *_legend(parts), *_axis(y)]
    layers = [(layer, list(own)) for layer, own in groupby(rows, key=lambda row: _place(row)[0])]
    slot = (_WIDTH - _LEFT - _RIGHT) / len(layers)
    for place, (layer, own) in enumerate(layers):
        start = _LEFT + place * slot
        drawn.append(f'<text class="tick" x="{start + slot / 2:.1f}" y="{_HEIGHT - _BOTTOM + 17}" '
                     f'text-anchor="middle">{escape(layer)}</text>')  # fmt: skip
        own_parts = [part for part in parts if part in {_place(row)[1] for row in own}]
        step = slot * _FILLED / max(len(own_parts), 1)
        for row in own:
            part = _place(row)[1]
            left = start + slot * (1 - _FILLED) / 2 + own_parts.index(part) * step
            drawn.append(_bar(row, left, step * 0.88, y, parts.index(part)))
    if limit:
        drawn.append(
            f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(limit):.1f}" y2="{y(limit):.1f}"/>'
        )
        drawn.append(f'<text class="legend" x="{_WIDTH - _RIGHT}" y="{y(limit) - 5:.1f}" text-anchor="end">'
                     f"limit for all together: {limit:g}</text>")  # fmt: skip
    described = f"{title}: {len(rows)} bars by layer, {sum(bool(row['is_kept']) for row in rows)} kept"
    return (
        f'<svg class="sensitivity" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="{escape(described)}">{"".join(drawn)}</svg>'
    )


def _place(row: Row) -> tuple[str, str]:
    """Return the layer of a group, or ``embeddings``, and which part of a layer it is."""
    first, _, rest = str(row["linears"]).partition(".")
    if first != "layers":
        return first, rest
    layer, _, part = rest.partition(".")
    return layer, part


def _bar(row: Row, left: float, width: float, y: Scale, color: int) -> str:
    value = row["score_rmse"]
    if value <= 0:
        return ""
    top = y(value)
    kind = "kept" if row["is_kept"] else "rounded"
    tip = f"{row['linears']}, {kind}: score RMSE {value:.3g}, τ {_tau(row)}, nDCG@10 loss {row['ndcg_loss']:.4f}"
    mark = f'<circle class="dot" cx="{left + width / 2:.1f}" cy="{top - 5:.1f}" r="2"/>' if row["is_kept"] else ""
    return (
        f'<g class="c{(color + 1) % N_COLORS}"><title>{escape(tip)}</title>'
        f'<rect class="bar {kind}" x="{left:.2f}" y="{top:.2f}" width="{width:.2f}" '
        f'height="{max(y.start - top, 0.5):.2f}"/>{mark}</g>'
    )


def _legend(parts: Sequence[str]) -> list[str]:
    drawn, left, line = [], 0.0, _LEGEND_LINE
    entries = [(f"c{(index + 1) % N_COLORS}", "bar kept", _part_name(part)) for index, part in enumerate(parts)]
    entries += [("c0", "bar kept", "full, dotted: kept"), ("c0", "bar rounded", "pale: rounded")]
    for color, kind, text in entries:
        width = _SWATCH + len(text) * _CHARACTER + 18
        if left + width > _WIDTH:
            left, line = 0.0, line + _LINE
        swatch = f'<rect class="{kind}" x="{left:.1f}" y="{line - 10:.1f}" width="13" height="11"/>'
        label = f'<text class="legend" x="{left + _SWATCH:.1f}" y="{line:.1f}">{escape(text)}</text>'
        drawn.append(f'<g class="{color}">{swatch}</g>{label}')
        left += width
    return drawn


def _part_name(part: str) -> str:
    """Return ``attention.query_key_value`` as a reader sees it: query, key, value."""
    block, _, names = part.rpartition(".")
    read = ", ".join(names.split("_"))
    return read if "_" in names else f"{block} {read}".strip()


def _axis(y: Scale) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    ticks = log_ticks(y.low, y.high) if y.is_log else linear_ticks(y.low, y.high)
    drawn, last = [], float("inf")
    for tick in ticks:
        if last - y(tick) < 15:
            continue  # labels would touch
        last = y(tick)
        drawn.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{last:.1f}" y2="{last:.1f}"/>')
        drawn.append(f'<text class="tick" x="{_LEFT - 8}" y="{last + 4:.1f}" text-anchor="end">{tick:g}</text>')
    drawn.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    drawn.append(
        f'<text class="axis-name" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">layer</text>'
    )
    drawn.append(f'<text class="axis-name" x="{right}" y="14" text-anchor="end">logits{" (log)" * y.is_log}</text>')
    return drawn


def _words(notes: Mapping[str, Any]) -> str:
    rows, joint, anew = notes["sensitivity"], notes["joint"], notes["drawn_anew"]
    ((cost, share),) = notes["kept_share"].items()
    kept = sum(bool(row["is_kept"]) for row in rows)
    of = {"macs": "their multiply-adds", "bytes": "the bytes that keeping all of them would add"}[cost]
    return (
        f"Kept in {notes['kept_precision']}: {kept} of {len(rows)}, {100 * share:.1f} % of {of}. Score RMSE in logits, "
        f"each query's mean change taken out: {notes['all_rounded']['score_rmse']:.3g} with all rounded; of what was "
        f"chosen {notes['predicted']['score_rmse']:.3g} predicted, {joint['score_rmse']:.3g} measured, "
        f"{anew['score_rmse']:.3g} on lists drawn anew. Kendall τ {_tau(joint)} "
        f"({_tau(anew)} anew), loss of nDCG@10 whose gains are the exact order {joint['ndcg_loss']:.4f} "
        f"({anew['ndcg_loss']:.4f} anew)."
    )


def _tau(figures: Row) -> str:
    return minus(f"{figures['kendall_tau']:.4f}")
