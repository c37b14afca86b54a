"""The time of a block of four linears over the number of tokens, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_blocks(target: Path, rows: Sequence[dict[str, Any]]) -> None:
    """rows: the benchmark's blocks. Needs matplotlib, which awqkit itself does not."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "awqkit", "font.size": 9}
    from matplotlib import pyplot

    tokens = [row["tokens"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(6.5, 4), constrained_layout=True)
    axes.loglog(tokens, [row["cublas_us"] for row in rows], "s-", label="cuBLAS, BF16 weights")
    axes.loglog(tokens, [row["us"] for row in rows], "o-", label="awqkit, 4-bit weights")
    axes.loglog(tokens, [row["floor_us"] for row in rows], "k--", label="floor of 4-bit weights")
    axes.set_xticks(tokens, [str(count) for count in tokens])
    axes.minorticks_off()
    axes.set_xlabel("tokens")
    axes.set_ylabel("µs for the four linears of a 7B layer")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, metadata={"Date": None})
    print(f"Plotted to {target}")
