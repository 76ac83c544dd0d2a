"""Plots of a run as SVG: bars with a label each, and lines over linear or logarithmic axes.

Used by the commands beside it; stdlib only. A plot has its own background and colours for light and for dark, chosen
by the reader's `prefers-color-scheme`, so it can be read wherever it is shown. Series are told apart by colour and by
the shape of their marks. Nothing is drawn that is not in the run's raw data.
"""

import html
import math

WIDTH = 860
FONT = "ui-sans-serif,system-ui,'Segoe UI',Helvetica,Arial,sans-serif"
# Colours that a colour-blind reader can tell apart: (light, dark).
COLOURS = [
    ("#0b62a8", "#6cb6ff"),
    ("#c2410c", "#ffa657"),
    ("#15803d", "#5fd38d"),
    ("#8b2fb0", "#d2a8ff"),
    ("#8a6d00", "#e3c341"),
    ("#57606a", "#9ea7b3"),
]
SERIES_MAX = len(COLOURS)
BAR_HEIGHT, BAR_GAP, LABEL_WIDTH = 22, 10, 230
PLOT_HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 380, 78, 24, 56, 56


def style():
    def rules(which, paper, ink, faint):
        series = "".join(f".s{n}{{fill:{pair[which]};stroke:{pair[which]}}}" for n, pair in enumerate(COLOURS))
        return f".paper{{fill:{paper}}}text{{fill:{ink}}}.faint{{stroke:{faint}}}.axis{{stroke:{ink}}}{series}"

    fixed = f"text{{font:13px {FONT};stroke:none}}.title{{font-weight:600;font-size:15px}}.note{{font-size:12px}}.line{{fill:none;stroke-width:2}}"
    dark = rules(1, "#0d1117", "#e6edf3", "#30363d")
    return f"<style>{fixed}{rules(0, '#ffffff', '#1f2328', '#d8dee4')}@media (prefers-color-scheme: dark){{{dark}}}</style>"


def svg(height, title, body):
    name = html.escape(title)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}">'
    paper = f'<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>'
    return "\n".join([head, style(), paper, text(20, 28, title, "title"), *body, "</svg>"]) + "\n"


def text(x, y, words, kind="", anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{html.escape(str(words))}</text>'


def short(value):
    """A number as one would say it: three significant digits, thousands as k."""
    if value >= 999.5:
        return f"{value / 1000:.3g}k" if value < 999_500 else f"{value / 1e6:.3g}M"
    return f"{value:.3g}"


# ---- bars -----------------------------------------------------------------------------------------------------


def bars(title, rows, note=""):
    """`rows`: (label, value, what to write beside the bar, number of its colour), longest bar first or as given."""
    top = 48
    room = WIDTH - LABEL_WIDTH - 190
    most = max((value for _, value, _, _ in rows), default=1) or 1
    body = []
    for index, (label, value, words, colour) in enumerate(rows):
        y = top + index * (BAR_HEIGHT + BAR_GAP)
        width = max(1.0, room * value / most)
        body.append(text(LABEL_WIDTH - 10, y + 15, label, anchor="end"))
        body.append(f'<rect class="s{colour % SERIES_MAX}" x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" rx="2"/>')
        body.append(text(LABEL_WIDTH + width + 8, y + 15, words))
    height = top + len(rows) * (BAR_HEIGHT + BAR_GAP) + (28 if note else 10)
    if note:
        body.append(text(20, height - 12, note, "note"))
    return svg(height, title, body)


# ---- lines ----------------------------------------------------------------------------------------------------


class Axis:
    """From values to pixels, and where its ticks are."""

    def __init__(self, values, is_log, begin, end):
        values = [v for v in values if not is_log or v > 0] or [1]
        self.is_log, self.begin, self.end = is_log, begin, end
        if is_log:
            self.low, self.high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05
        else:
            self.low, self.high = min(0, *values), max(values) * 1.05 or 1

    def at(self, value):
        place = math.log10(value) if self.is_log else value
        return self.begin + (self.end - self.begin) * (place - self.low) / max(1e-12, self.high - self.low)

    def ticks(self):
        if self.is_log:
            steps = (1, 2, 5) if self.high - self.low < 3.2 else (1,)
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            candidates = [step * 10.0**decade for decade in decades for step in steps]
            return [tick for tick in candidates if self.low <= math.log10(tick) <= self.high]
        step = 10 ** math.floor(math.log10(self.high / 5))
        step *= next(factor for factor in (1, 2, 5, 10) if self.high / (step * factor) <= 6)
        return [step * n for n in range(int(self.high / step) + 1)]


def lines(title, series, x_label, y_label, log_x=False, log_y=False, ideal=False):
    """`series`: {name: [(x, y), …]}; `ideal` draws y = x, where what comes out is what went in."""
    assert len(series) <= SERIES_MAX, "a plot of more series cannot be read"
    points = [point for line in series.values() for point in line]
    legend_rows = math.ceil(len(series) / 3)
    top = TOP + 20 * legend_rows
    bottom = top + PLOT_HEIGHT
    x = Axis([p[0] for p in points], log_x, LEFT, WIDTH - RIGHT)
    y = Axis([p[1] for p in points], log_y, bottom, top)
    body = []
    for tick in x.ticks():
        body.append(f'<path class="faint" d="M{x.at(tick):.1f} {top}V{bottom}"/>')
        body.append(text(x.at(tick), bottom + 18, short(tick), anchor="middle"))
    for tick in y.ticks():
        body.append(f'<path class="faint" d="M{LEFT} {y.at(tick):.1f}H{WIDTH - RIGHT}"/>')
        body.append(text(LEFT - 8, y.at(tick) + 4, short(tick), anchor="end"))
    body.append(f'<path class="axis" fill="none" d="M{LEFT} {top}V{bottom}H{WIDTH - RIGHT}"/>')
    body.append(text((LEFT + WIDTH - RIGHT) / 2, bottom + 42, x_label, anchor="middle"))
    body.append(f'<g transform="translate(20 {(top + bottom) / 2:.0f}) rotate(-90)">{text(0, 0, y_label, anchor="middle")}</g>')
    if ideal:
        ends = (max(min(p[0] for p in points), min(p[1] for p in points)), min(max(p[0] for p in points), max(p[1] for p in points)))
        body.append(f'<path class="axis" stroke-dasharray="3 5" d="M{x.at(ends[0]):.1f} {y.at(ends[0]):.1f}L{x.at(ends[1]):.1f} {y.at(ends[1]):.1f}"/>')
    for number, (name, line) in enumerate(series.items()):
        drawn = [(x.at(a), y.at(b)) for a, b in sorted(line) if (a > 0 or not log_x) and (b > 0 or not log_y)]
        if drawn:
            body.append(f'<path class="s{number} line" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in drawn)}" style="fill:none"/>')
        body += [mark(number, a, b) for a, b in drawn]
        column, row = number % 3, number // 3
        body.append(mark(number, LEFT + 8 + column * 250, TOP - 4 + row * 20))
        body.append(text(LEFT + 20 + column * 250, TOP + row * 20, name))
    return svg(bottom + BOTTOM, title, body)


def mark(number, x, y):
    """A shape of the series' own, for those who do not see its colour."""
    shapes = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"',
        f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"',
        f'<path d="M{x:.1f} {y - 5:.1f}l5 8.5h-10z"',
        f'<path d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"',
        f'<path d="M{x:.1f} {y + 5:.1f}l5 -8.5h-10z"',
        f'<rect x="{x - 5:.1f}" y="{y - 2:.1f}" width="10" height="4"',
    ]
    return f'{shapes[number]} class="s{number}"/>'
