"""Small pictures as inline SVG. Colours are classes, which a page can suit to dark screens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 420, 200
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 30
#: No logarithm below this; an error of 0 is drawn here.
FLOOR = 1e-12
#: What a logarithmic axis shows beyond its values, as a factor.
LOG_MARGIN = 1.25
MOST_TICKS = 6


@dataclass(frozen=True, kw_only=True)
class Line:
    """name: also the CSS class of its colour."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True)
class _Axis:
    """Maps values to pixels between start (of low) and stop (of high)."""

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    def place(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.is_log:
            low, high, at = (math.log(max(FLOOR, v)) for v in (low, high, value))
        share = (at - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self) -> list[float]:
        return _log_ticks(self.low, self.high) if self.is_log else _ticks(self.low, self.high)


def line_chart(
    lines: Sequence[Line], x: Sequence[float], *, label: str, x_title: str, is_log: bool = False
) -> Markup:
    """Lines over common x values. label: for those who cannot see it."""
    values = [value for line in lines for value in line.values if not is_log or value > FLOOR]
    low, high = 0.0, _top(values)
    if is_log:
        low, high = min(values, default=0.1), max(values, default=1.0)
        low, high = low / LOG_MARGIN, high * LOG_MARGIN
    across = _Axis(min(x), max(x), LEFT, WIDTH - RIGHT)
    up = _Axis(low, high, HEIGHT - BOTTOM, TOP, is_log)
    parts = [_grid(up), *_x_labels(across, _ticks(across.low, across.high, least_step=1))]
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 2, x_title, anchor="end"))
    for line in lines:
        places = zip(x, line.values, strict=True)
        points = " ".join(f"{across.place(at)},{up.place(value)}" for at, value in places)
        shape = f'<polyline class="line {line.name}" points="{points}"/>'
        if len(x) == 1:
            place = f'cx="{across.place(x[0])}" cy="{up.place(line.values[0])}"'
            shape = f'<circle class="dot {line.name}" {place} r="4"/>'
        parts.append(Markup(shape))
    return _svg(parts, label)


def histogram(
    shares: Sequence[float], *, low: float, high: float, label: str, x_title: str
) -> Markup:
    """Bars over −1 … 1, with what lies outside low … high in another colour."""
    across = _Axis(-1, 1, LEFT, WIDTH - RIGHT)
    up = _Axis(0, _top(shares), HEIGHT - BOTTOM, TOP)
    width = (across.stop - across.start) / len(shares)
    parts = [_grid(up, as_percent=True), *_x_labels(across, [-1, -0.5, 0, 0.5, 1])]
    for index, share in enumerate(shares):
        middle = -1 + (2 * index + 1) / len(shares)
        kind = "inside" if low <= middle <= high else "outside"
        y = up.place(share)
        parts.append(
            Markup(
                f'<rect class="{kind}" x="{across.start + index * width:.1f}" y="{y}" '
                f'width="{max(1.0, width - 1):.1f}" height="{HEIGHT - BOTTOM - y:.1f}"/>'
            )
        )
    for end in (low, high):
        at = across.place(end)
        parts.append(
            Markup(f'<line class="end" x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        )
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 2, x_title, anchor="end"))
    return _svg(parts, label)


def _svg(parts: Sequence[Markup], label: str) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        WIDTH, HEIGHT, label
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def _grid(up: _Axis, *, as_percent: bool = False) -> Markup:
    parts = []
    for tick in up.ticks():
        y = up.place(tick)
        parts.append(
            Markup(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        )
        text = f"{100 * tick:.3g} %" if as_percent else _readable(tick)
        parts.append(_text(LEFT - 6, y + 4, text, anchor="end"))
    return Markup("").join(parts)


def _x_labels(across: _Axis, ticks: Sequence[float]) -> list[Markup]:
    return [
        _text(across.place(tick), HEIGHT - BOTTOM + 15, _readable(tick), anchor="middle")
        for tick in ticks
    ]


def _text(x: float, y: float, text: str, *, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _readable(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    return f"{value:.6g}".replace("-", "−")


def _top(values: Sequence[float]) -> float:
    return max([*values, FLOOR]) * 1.05


def _ticks(low: float, high: float, *, least_step: float = 0.0) -> list[float]:
    """A few round values in low … high; blocks and tokens are counted in steps of one or more."""
    if high <= low:
        return [low]
    rough = max((high - low) / 4, least_step)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first = math.ceil(low / step)
    count = math.floor(high / step) - first + 1
    return [round((first + index) * step, 12) for index in range(count)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in low … high, or steps between them where they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        places = [10.0**power * factor for power in range(first, last + 1) for factor in factors]
        ticks = [place for place in places if low <= place <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: -(-len(ticks) // MOST_TICKS)] if ticks else [low]
