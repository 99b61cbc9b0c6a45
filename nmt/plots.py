"""Pictures: an attention matrix, a soft beam unrolled, the learning curves of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from nmt.errors import UserError
from nmt.glyphs import drawable
from nmt.lines import atomic_path
from nmt.search import SoftSearchConfig, soft_beam_search
from nmt.search.trace import trace_search
from nmt.topk import soft_topk
from nmt.translation import Translation
from nmt.translator import Translator


def draw_attention(translation: Translation) -> Figure:
    """One row a target piece, one column a source piece, dark where the attention is."""
    if translation.attention is None:
        raise UserError("the line gave no attention: it is blank; give a sentence")
    rows, columns = translation.attention.shape
    figure = Figure(figsize=(1.5 + 0.38 * columns, 1.2 + 0.3 * rows), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(translation.attention.float().numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto")
    drawn, options = drawable([*translation.source_pieces, *translation.pieces])
    sides = [[drawn[piece] for piece in pieces] for pieces in (translation.source_pieces, translation.pieces)]
    axes.set_xticks(range(columns), sides[0], rotation=60, ha="left", rotation_mode="anchor", **options)
    axes.xaxis.tick_top()
    axes.set_yticks(range(rows), sides[1], **options)
    axes.tick_params(length=0)
    return figure


@dataclass(frozen=True)
class BeamStep:
    """One step of a soft beam as it is drawn; slots are best first.

    Attributes:
        pieces: for each slot the piece that weighs most in it.
        weights: (slots,), that piece's weight.
        parents: (slots, slots before), R.
        finished: (slots,), probability that the slot has ended.
        scores: (slots,), log-probabilities.
    """

    pieces: list[str]
    weights: Tensor
    parents: Tensor
    finished: Tensor
    scores: Tensor


@torch.no_grad()
def trace_beam(
    translator: Translator, line: str, config: SoftSearchConfig, steps: int = 30, *, hard_states: bool = False
) -> list[BeamStep]:
    """Runs the soft search on one line and keeps what is needed to draw it; ends when all slots have.

    Args:
        translator: the model.
        line: what is translated.
        config: the soft search.
        steps: at most so many.
        hard_states: the search of the loss reachable_bleu: hard states, and weights that tell how much of a slot's
            candidate SOFT top-k keeps.
    """
    ids = translator.source_vocabulary.encode([line])[0]
    if not ids:
        raise UserError("a blank line has no beam; give a sentence")
    model, vocabulary = translator.model, translator.target_vocabulary
    device = next(model.parameters()).device
    source = torch.tensor([[*ids, model.eos]], device=device)
    memory = model.encode(source, torch.tensor([source.shape[1]]))
    if hard_states:
        return _trace_hard(translator, memory, config, steps, device)
    trace: list[BeamStep] = []
    for step in soft_beam_search(model, memory, 1, steps, config):
        candidates, weights, parents = step.selection.candidates, step.selection.moves, step.selection.parents
        tokens, slots = candidates.tokens[0], weights[0].shape[1]
        # A token may come from several slots: its weight in a slot is the sum.
        same = (tokens.unsqueeze(1) == tokens.unsqueeze(0)).to(weights.dtype)
        by_token = same @ weights[0]
        best = by_token.argmax(dim=0)
        pieces = [vocabulary.pieces([int(tokens[best[slot]])])[0] for slot in range(slots)]
        trace.append(
            BeamStep(
                pieces,
                by_token.amax(dim=0).cpu(),
                parents[0].cpu(),
                step.after.finished[0].cpu(),
                step.after.scores[0].cpu(),
            )
        )
        if bool((step.after.finished > 0.99).all()):
            break
    return trace


def _trace_hard(
    translator: Translator, memory: Any, config: SoftSearchConfig, steps: int, device: torch.device
) -> list[BeamStep]:
    limits = torch.tensor([steps], device=device)
    found = trace_search(translator.model, memory, limits, config.beam_size, config.candidates)
    trace: list[BeamStep] = []
    for number, step in enumerate(found.steps):
        size, before = found.selected(number), found.selected(number - 1) if number else 1
        kept = soft_topk(step.candidates.scores, size, config.temperature)[0, :size]
        there = step.candidates.scores[0, :size] > -torch.inf
        slots = step.candidates.slots[0, :size]
        trace.append(
            BeamStep(
                [
                    piece if real else ""
                    for piece, real in zip(
                        translator.target_vocabulary.pieces(step.candidates.tokens[0, :size].tolist()),
                        there.tolist(),
                        strict=True,
                    )
                ],
                kept.cpu(),
                (torch.nn.functional.one_hot(slots, before) * (kept * there).unsqueeze(1)).cpu(),
                step.ended[0, :size].float().cpu(),
                step.candidates.scores[0, :size].cpu(),
            )
        )
    return trace


def draw_beam(trace: Sequence[BeamStep]) -> Figure:
    """Slots over time. A box is as dark as its best piece weighs in it; a line is as dark as a parent weighs."""
    slots = max(len(step.pieces) for step in trace)
    figure = Figure(figsize=(1.0 + 1.05 * len(trace), 0.9 + 0.62 * slots), layout="constrained")
    axes = figure.add_subplot()
    drawn, options = drawable(piece for step in trace for piece in step.pieces)
    for time, step in enumerate(trace):
        for slot, piece in enumerate(step.pieces):
            weight = float(step.weights[slot])
            axes.text(
                time,
                slot,
                drawn[piece],
                ha="center",
                va="center",
                fontsize=8,
                color="white" if weight > 0.6 else "black",
                bbox={"boxstyle": "round", "fc": (0.1, 0.3, 0.6, min(1.0, max(0.04, weight))), "ec": "0.6", "lw": 0.5},
                zorder=3,
                **options,
            )
            if time:
                for parent, share in enumerate(step.parents[slot].tolist()):
                    if share > 0.02:
                        axes.plot(
                            [time - 0.72, time - 0.28], [parent, slot], color="0.2", alpha=min(1.0, share), lw=1.2
                        )
    axes.set_xlim(-0.7, len(trace) - 0.3)
    axes.set_ylim(slots - 0.5, -0.5)
    axes.set_yticks(range(slots), [f"slot {slot + 1}" for slot in range(slots)])
    axes.set_xticks(range(len(trace)), [str(time + 1) for time in range(len(trace))])
    axes.set_xlabel("step")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure


def draw_curves(runs: Mapping[str, Sequence[dict[str, Any]]]) -> Figure:
    """Training loss and dev BLEU against the update, one line a run; see `nmt.runs.journal.read_journal`."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for name, reports in runs.items():
        for axes, key in ((losses, "loss"), (scores, "dev/bleu")):
            points = [(report["step"], report[key]) for report in reports if key in report]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 30 else None, ms=3)
    losses.set_ylabel("training loss (nats a token)")
    scores.set_ylabel("dev BLEU")
    for axes in (losses, scores):
        axes.set_xlabel("update")
        axes.grid(alpha=0.3)
    if runs:
        scores.legend()
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a picture whose format is that of the file's ending (.png, .pdf, .svg).

    Raises:
        UserError: an unknown ending, or the file cannot be written.
    """
    kind = Path(path).suffix.removeprefix(".")
    known = FigureCanvasAgg(figure).get_supported_filetypes()
    if kind not in known:
        raise UserError(f"{path} does not end in a known picture format; give .png, .pdf or .svg")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=150)
