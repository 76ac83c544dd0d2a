#!/usr/bin/env python3
"""Folds the output of `perf script --fields comm,ip,sym` and draws it as a flame graph.

    perf script … | flamegraph.py STACKS.folded FLAME.svg

Threads of one kind (`shard-0`, `shard-1`) are one root. Prints the kinds and the functions with the most samples.
"""

import collections
import html
import re
import sys

WIDTH, ROW, LETTER = 1400, 17, 6.6
NARROWEST = 0.4  # pixels; narrower frames are left out of the drawing, not of the sums
HASH = re.compile(r"::h[0-9a-f]{16}$")
SCRIPT = """
const svg = document.documentElement, frames = [...document.querySelectorAll('g.f')], W = %d;
function zoom(x, w) {
  for (const g of frames) {
    const fx = +g.dataset.x, fw = +g.dataset.w, left = Math.max(fx, x), right = Math.min(fx + fw, x + w);
    g.style.display = right - left > 1e-9 ? '' : 'none';
    const px = (left - x) / w * W, pw = (right - left) / w * W, [rect, text] = [g.children[1], g.children[2]];
    rect.setAttribute('x', px); rect.setAttribute('width', pw); text.setAttribute('x', px + 3);
    const letters = Math.floor((pw - 6) / %f), name = g.dataset.n;
    text.textContent = letters < 3 ? '' : name.length <= letters ? name : name.slice(0, letters - 1) + '\\u2026';
  }
}
for (const g of frames) g.onclick = () => zoom(+g.dataset.x, +g.dataset.w);
zoom(0, 1);
"""


def folded(lines):
    """Counts of stacks, root first; the root is the kind of thread."""
    stacks = collections.Counter()
    kind, frames = None, []
    for line in [*lines, ""]:
        if not line.strip():
            if kind is not None:
                stacks[(kind, *reversed(frames))] += 1
            kind, frames = None, []
        elif kind is None:
            kind = re.sub(r"-?\d+$", "", line.strip()) or "?"
        else:
            _address, _, symbol = line.strip().partition(" ")
            frames.append(HASH.sub("", symbol.strip()) or "[unknown]")
    return stacks


def tree(stacks):
    root = {"count": 0, "children": {}}
    for stack, count in stacks.items():
        node = root
        node["count"] += count
        for frame in stack:
            node = node["children"].setdefault(frame, {"count": 0, "children": {}})
            node["count"] += count
    return root


def draw(root):
    """The flame graph as SVG text: the root at the bottom, children above, wider first."""
    total, depth_max, out = root["count"], 0, []
    todo = [("all", root, 0, 0)]
    while todo:
        name, node, begin, depth = todo.pop()
        if node["count"] / total * WIDTH < NARROWEST:
            continue
        depth_max = max(depth_max, depth)
        out.append((name, begin / total, node["count"] / total, node["count"], depth))
        for child_name, child in sorted(node["children"].items(), key=lambda item: -item[1]["count"]):
            todo.append((child_name, child, begin, depth + 1))
            begin += child["count"]
    height = (depth_max + 1) * ROW + 8
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="11">']
    for name, x, width, count, depth in out:
        y, text = height - (depth + 1) * ROW - 4, html.escape(name, quote=True)
        hue = sum(map(ord, name)) % 50
        lines.append(
            f'<g class="f" data-x="{x:.7f}" data-w="{width:.7f}" data-n="{text}">'
            f"<title>{text}: {count} samples, {width:.2%}</title>"
            f'<rect x="{x * WIDTH:.2f}" y="{y}" width="{width * WIDTH:.2f}" height="{ROW - 1}" fill="hsl({hue},80%,65%)"/>'
            f'<text x="{x * WIDTH + 3:.2f}" y="{y + 12}"></text></g>'
        )
    return "\n".join([*lines, f"<script><![CDATA[{SCRIPT % (WIDTH, LETTER)}]]></script></svg>", ""])


def top(title, counts, total, n):
    print(f"\n{title}")
    for name, count in counts.most_common(n):
        print(f"  {count / total:7.2%}  {name[:110]}")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    stacks = folded(sys.stdin)
    total = sum(stacks.values())
    if total == 0:
        sys.exit("flamegraph: no samples; was the process idle?")
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        out.writelines(f"{';'.join(stack)} {count}\n" for stack, count in sorted(stacks.items()))
    with open(sys.argv[2], "w", encoding="utf-8") as out:
        out.write(draw(tree(stacks)))
    kinds, leaves = collections.Counter(), collections.Counter()
    for stack, count in stacks.items():
        kinds[stack[0]] += count
        leaves[stack[-1]] += count
    print(f"{total} samples")
    top("by kind of thread", kinds, total, 12)
    top("by function, its own time", leaves, total, 25)


if __name__ == "__main__":
    main()
