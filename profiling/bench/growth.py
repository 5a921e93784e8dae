"""How near-duplicate search grows with the rows: seconds and memory, over features that stay in their file.

    python -m danqing.profiling.bench.growth --rows 10000,30000,100000,300000,1000000 --plot growth.svg

The data are those of `profiling.bench.duplicates`: isotropic noise of 768 numbers, 30 % of the rows in groups. Memory
is what a process of its own allocates beyond what it had before (features are mapped, not read in).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from danqing.engine.core.device import open_device
from danqing.engine.decide.dedup.features import Features
from danqing.engine.decide.dedup.sets import chains, likely_chains
from danqing.profiling.bench.duplicates import RECALL, WITHIN, console, planted, resident

SEARCHES = {"exact": 1.0, f"recall {RECALL}": RECALL}
WIDTH, HEIGHT, MARGIN = 640, 400, 60
COLOURS = ("#1b6ca8", "#c8553d")


class Peak:
    """The most that is allocated while it is open, beyond what was before; looked at every 5 ms."""

    def __enter__(self) -> Peak:
        self.before, self.bytes, self._stop = resident("RssAnon"), 0, threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, resident("RssAnon") - self.before)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watch.join()


def run_one(path: Path, recall: float) -> None:
    """In the process of its own."""
    features = np.load(path, mmap_mode="r")
    with open_device() as device:
        search(Features(device, [features[:9000]]), recall)
        with Peak() as peak:
            started = time.perf_counter()
            measured = search(Features(device, [features]), recall)
            seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "bytes": peak.bytes, "recall": measured}))


def search(features: Features, recall: float) -> str:
    if recall == 1:
        chains(features, WITHIN)
        return "all"
    return str(likely_chains(features, WITHIN, recall)[1])


def measure(rows: int, searches: list[str], folder: Path) -> list[dict[str, Any]]:
    path = folder / "features.npy"
    out = np.lib.format.open_memmap(path, "w+", np.float16, (rows, 768))
    planted(rows, rows, None, out)
    out.flush()
    results = []
    for name in searches:
        command = [sys.executable, "-m", "danqing.profiling.bench.growth", "--one", str(path), str(SEARCHES[name])]
        done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        results.append({"rows": rows, "search": name, **done})
    return results


def show(results: list[dict[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("rows", "search", "seconds", "rows/s", "MB", "recall measured"):
        table.add_column(heading, justify="left" if heading == "search" else "right")
    for r in results:
        figures = (f"{r['seconds']:.2f}", f"{r['rows'] / r['seconds']:,.0f}", f"{r['bytes'] / 1e6:.0f}", r["recall"])
        table.add_row(f"{r['rows']:,}", r["search"], *figures)
    console.print(table)
    for name in SEARCHES:
        rows, room = (np.array([r[key] for r in results if r["search"] == name], float) for key in ("rows", "bytes"))
        if len(rows) > 1:
            slope = (room[-1] - room[-2]) / (rows[-1] - rows[-2])
            console.print(f"{name}: {slope:.1f} bytes more with each row from {rows[-2]:,.0f} to {rows[-1]:,.0f}")


def plot(results: list[dict[str, Any]]) -> str:
    """Both axes in powers of ten, as SVG."""
    rows = [r["rows"] for r in results]
    x0, x1 = np.floor(np.log10(min(rows))), np.ceil(np.log10(max(rows)))
    seconds = [r["seconds"] for r in results]
    y0, y1 = np.floor(np.log10(min(seconds))), np.ceil(np.log10(max(seconds)))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (np.log10(x) - x0) / max(x1 - x0, 1) * (WIDTH - 2 * MARGIN)
        up = (np.log10(y) - y0) / max(y1 - y0, 1) * (HEIGHT - 2 * MARGIN)
        return MARGIN + float(across), HEIGHT - MARGIN - float(up)

    parts = []
    for power in range(int(x0), int(x1) + 1):
        x, _ = place(10**power, 10**y0)
        parts.append(f'<path d="M{x:.0f} {MARGIN}V{HEIGHT - MARGIN}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.0f}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{10**power:,}</text>')
    for power in range(int(y0), int(y1) + 1):
        _, y = place(10**x0, 10.0**power)
        parts.append(f'<path d="M{MARGIN} {y:.0f}H{WIDTH - MARGIN}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 6}" y="{y + 4:.0f}" text-anchor="end">{10.0**power:g}</text>')
    for colour, name in zip(COLOURS, SEARCHES, strict=True):
        points = [place(r["rows"], r["seconds"]) for r in results if r["search"] == name]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        x, y = points[-1]
        parts.append(f'<text x="{x - 8:.0f}" y="{y - 8:.0f}" text-anchor="end" fill="{colour}">{name}</text>')
    parts.append(f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT - 14}" text-anchor="middle">rows</text>')
    parts.append(f'<text x="{MARGIN}" y="{MARGIN - 20}">seconds</text>')
    frame = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    style = 'font-family="sans-serif" font-size="13"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>'
    return f"{head}\n{frame}\n" + "\n".join(parts) + "\n</svg>\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,30000,100000", metavar="N,…", help="(default: 10000,30000,100000)")
    parser.add_argument("--exact-up-to", type=int, default=300_000, metavar="N", help="rows (default: 300000)")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="a picture of the seconds")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="results, beside the table")
    parser.add_argument("--one", nargs=2, metavar=("FILE", "RECALL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(Path(options.one[0]), float(options.one[1]))
        return
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in map(int, options.rows.split(",")):
            within = [name for name, recall in SEARCHES.items() if recall < 1 or rows <= options.exact_up_to]
            results += measure(rows, within, Path(folder))
    show(results)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        options.plot.write_text(plot(results), encoding="utf-8")


if __name__ == "__main__":
    main()
