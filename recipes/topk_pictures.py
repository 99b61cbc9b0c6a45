"""The pictures of the page of the top-k operators: nmt/topk/README.md.

What the temperature does to the weights and to their derivatives, how far the soft selection is from the hard one, and
the time that the operators take, from the lines that recipes/benchmarks/topk.py --output wrote.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from nmt.topk import hard_topk, soft_topk, sorted_soft_topk

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))
from topk_report import draw_speed  # noqa: E402 - the benchmarks are scripts beside each other, no package

PLAIN, SORTED = "tab:blue", "tab:orange"
K = 3
SCORES = torch.tensor([2.0, 1.6, 1.1, 0.8, 0.1, -0.3, -1.0, -1.8], dtype=torch.float64)


def make_figure(width: float, height: float, rows: int = 1, columns: int = 1, **shared) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **shared).flat)


def shades(count: int) -> list:
    """Colours of temperatures, from cold to warm."""
    return [colormaps["viridis"](0.1 + 0.8 * place / max(1, count - 1)) for place in range(count)]


def draw_temperature(temperatures: tuple[float, ...] = (0.05, 0.25, 1.0, 4.0)) -> Figure:
    """The weights of both operators on the same scores, a column for each temperature."""
    figure, axes = make_figure(9, 4.6, 2, len(temperatures), sharex=True, sharey=True)
    places = range(len(SCORES))
    ranks = [colormaps["Oranges"](0.85 - 0.25 * m) for m in range(K)]
    for column, T in enumerate(temperatures):
        plain, ranked = axes[column], axes[column + len(temperatures)]
        plain.bar(places, soft_topk(SCORES, K, T).tolist(), color=PLAIN)
        plain.set_title(f"T = {T:g}")
        below = torch.zeros_like(SCORES)
        for m, part in enumerate(sorted_soft_topk(SCORES, K, T).unbind(-1)):
            ranked.bar(places, part.tolist(), bottom=below.tolist(), color=ranks[m], label=f"rank {m + 1}")
            below += part
        ranked.set_xticks(places, [f"{score:g}" for score in SCORES.tolist()], rotation=60)
        ranked.set_xlabel("score of the candidate")
    for axis in axes:
        axis.set_ylim(0, 1.05)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("weight,\nsoft_topk")
    axes[len(temperatures)].set_ylabel("weight,\nsorted_soft_topk")
    axes[-1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"k = {K} of {len(SCORES)}; T in the units of the scores", fontsize=10)
    return figure


def draw_gradients(temperatures: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 4.0)) -> Figure:
    """Row K of the Jacobian: how the weight of the K-th best moves with each score; sorted, its weight in slot K."""
    figure, axes = make_figure(9, 3.4, 1, 2, sharey=True)
    titles = (
        f"soft_topk: weight of the {K}rd best candidate",
        f"sorted_soft_topk: its weight in the {K}rd slot",
    )
    weights = (lambda x, T: soft_topk(x, K, T)[K - 1], lambda x, T: sorted_soft_topk(x, K, T)[K - 1, K - 1])
    for axis, title, weight in zip(axes, titles, weights, strict=True):
        for T, colour in zip(temperatures, shades(len(temperatures)), strict=True):
            x = SCORES.clone().requires_grad_()
            (row,) = torch.autograd.grad(weight(x, T), x)
            axis.plot(range(len(SCORES)), row.tolist(), color=colour, marker="o", markersize=4, label=f"T = {T:g}")
        axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        axis.set_xticks(range(len(SCORES)), [f"{score:g}" for score in SCORES.tolist()])
        axis.set(xlabel="score of the candidate that moves", title=title)
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("derivative of the weight\nby the score (1 / unit of score)")
    axes[1].legend(frameon=False, fontsize=8)
    return figure


def random_case(n: int, k: int, generator: torch.Generator) -> tuple[Tensor, float]:
    """Scores (n,) and their gap: two levels, blurred from not at all to beyond the gap, or normal."""

    def uniform() -> float:
        return float(torch.rand((), generator=generator))

    x = torch.randn(n, generator=generator, dtype=torch.float64)
    if uniform() < 0.7:
        x *= 10 ** (3 * uniform() - 2.5) if uniform() < 0.8 else 0
        x[:k] = x[:k].abs() + 1
        x[k:] = -x[k:].abs()
    best = x.topk(k + 1).values
    return x, float(best[k - 1] - best[k])


def draw_bound(cases: int = 300) -> Figure:
    """Distance of the soft selection from the hard one on random scores, below its bounds."""
    figure, axes = make_figure(9, 3.9, 1, 2, sharey=True)
    generator = torch.Generator().manual_seed(0)
    n, far = 1000, 30.0
    for axis, k in zip(axes, (5, 500), strict=True):
        found = []
        for _ in range(cases):
            x, gap = random_case(n, k, generator)
            ratio = 0.3 + (far - 0.3) * float(torch.rand((), generator=generator)) ** 2
            error = soft_topk(x, k, gap / ratio) - hard_topk(x, k).sum(-1)
            found.append((ratio, float(error.abs().sum()), math.sqrt(2) * float(error.norm())))
        ratios, absolute, frobenius = zip(*found, strict=True)
        line = torch.linspace(0.3, far, 200)
        axis.scatter(ratios, absolute, s=7, color=PLAIN, label=r"$\|A - A^*\|_1$")
        tight = 2 * math.sqrt(k * (n - k)) * (-line / 2).exp()
        axis.plot(line, tight, color=PLAIN, label=r"$2\sqrt{k(n-k)}\,e^{-\mathrm{gap}/2T}$")
        axis.scatter(
            ratios, frobenius, s=7, marker="x", linewidth=0.7, color="tab:red", label=r"$n\|\Gamma - \Gamma^*\|_F$"
        )
        axis.plot(line, 2 * math.log(2 * n) / line, color="tab:red", label=r"$2T\,\ln(2n)/\mathrm{gap}$")
        above = sum(value > 2 * math.log(2 * n) / ratio for ratio, _, value in found)
        axis.set_title(f"n = {n:,}, k = {k}: {above} of {cases} crosses above their curve", fontsize=9)
        axis.set(yscale="log", ylim=(1e-6, 3e3), xlabel="gap / T")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("distance from the hard selection\n(candidates)")
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "pictures", help="folder of the pictures")
    speed = HERE / "benchmarks" / "topk.jsonl"
    parser.add_argument("--speed", type=Path, default=speed, help="lines of the benchmark")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    chosen.output.mkdir(parents=True, exist_ok=True)
    for name, draw in {"temperature": draw_temperature, "gradients": draw_gradients, "bound": draw_bound}.items():
        path = chosen.output / f"topk_{name}.png"
        draw().savefig(path, dpi=100)
        print(path)
    if not chosen.speed.is_file():
        print(f"no topk_speed.png: {chosen.speed} is missing; recipes/benchmarks/topk.py --output makes it")
        return
    _, *lines = map(json.loads, chosen.speed.read_text(encoding="utf-8").splitlines())
    path = chosen.output / "topk_speed.png"
    draw_speed(lines, path)
    print(path)


if __name__ == "__main__":
    main()
