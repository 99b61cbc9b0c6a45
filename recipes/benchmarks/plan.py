"""What the training of a recipe costs on paper: some updates of its model on generated ids, and all at that speed.

python recipes/benchmarks/plan.py recipes/configs/large.yaml: forward and backward pass, clipping and optimiser, CPU
time on the CPU and wall time on a GPU. Sentences have 5 to 55 tokens, 30 on average, on both sides; batches are packed
as in training, but smaller on a CPU (--batch_tokens). Vocabularies have the size of the configuration.
"""

import argparse
import time

import numpy as np
import torch
from machine import describe

from nmt.config_file import parse_run
from nmt.models import make_recurrent
from nmt.objectives import CrossEntropy, ScheduledSampling
from nmt.text.batching import Batch, collate
from nmt.text.planning import plan_batches


class Generated:
    """Ids of a corpus, as many sentences as some batches need."""

    def __init__(self, rows: int, vocabulary: int) -> None:
        generator = np.random.default_rng(1)
        lengths = np.clip(generator.normal(29, 12, rows), 4, 54)
        self.lengths = [np.clip(lengths + generator.normal(0, 3, rows), 4, 54).astype(np.int32) for _ in range(2)]
        self.ids = [[generator.integers(4, vocabulary, n, dtype=np.int32) for n in side] for side in self.lengths]

    def source(self, i: int) -> np.ndarray:
        return self.ids[0][i]

    def target(self, i: int) -> np.ndarray:
        return self.ids[1][i]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="files of a configuration, laid over each other")
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--batch_tokens", type=int, default=4096, help="of the updates that are timed")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    config = parse_run([word for path in chosen.configs for word in ("--config", path)])[1]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clock = time.perf_counter if device == "cuda" else time.process_time
    size = config.data.vocabulary.size
    torch.manual_seed(1)
    model = make_recurrent(config.model, size, size).to(device).train()
    objectives = {
        "cross_entropy": lambda: CrossEntropy(config.cross_entropy),
        "scheduled_sampling": lambda: ScheduledSampling(config.scheduled_sampling),
    }
    objective = objectives[config.objective]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    corpus = Generated(chosen.batch_tokens * (chosen.updates + 2) // 20, size)
    planned = plan_batches(*corpus.lengths, chosen.batch_tokens, seed=1, epoch=1)
    full = [
        rows
        for rows in planned
        if len(rows) * max(side[rows].max() for side in corpus.lengths) > chosen.batch_tokens / 2
    ]
    tokens, seconds = 0, 0.0
    for update, rows in enumerate(full[: chosen.updates + 1]):
        batch: Batch = collate(corpus, rows, 0).to(device)
        began = clock()
        optimizer.zero_grad()
        objective(model, batch, config.trainer.max_steps).value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        if update:  # the first warms up
            tokens, seconds = tokens + batch.target_tokens, seconds + clock() - began
    speed = tokens / seconds
    # What is no padding, of batches of any size about as much.
    share = tokens / (min(chosen.updates, len(full) - 1) * chosen.batch_tokens)
    whole = config.trainer.max_steps * config.data.batch_tokens * share
    print(describe())
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{parameters:.0f} million parameters, {speed:,.0f} target tokens a second")
    print(f"{config.trainer.max_steps:,} updates of {config.data.batch_tokens:,} tokens, {share:.0%} of them in use: "
          f"{whole / 1e9:.2f} billion target tokens, {whole / speed / 86_400:,.0f} days")  # fmt: skip


if __name__ == "__main__":
    main()
