"""Bias and variance of the objectives' gradients against finite differences of the true expected BLEU.

The truth is J, the mean sentence BLEU (on pieces) of the first hypothesis of beam search. J is a step function of the
weights, but over a thousand sentences its central difference along a direction is a usable number. For each objective,
on the same batches of the training text, without dropout:

    |g|     norm of the mean gradient g, and of a batch's (median, largest)
    noise   trace of the covariance of a batch's gradient over |E g|^2: how many batches make the signal as large as
            the noise ("-": not to be told apart from infinity with this many)
    train   d J / d step along u = -g / |g| on the sentences of these batches: how far the direction is right
    dev     the same on the dev set: how far it is right for other text
    +-      standard error of that slope, from the scatter of the sentences' slopes
    claim   -<g, u> = |g|: what the objective says that 1 - J (or its own loss) changes along u
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import yaml
from machine import describe
from torch import Tensor

from nmt.checkpoint import load_checkpoint
from nmt.config_file import read_config
from nmt.models import Seq2Seq
from nmt.objectives.soft_bleu import count_reference, soft_bleu
from nmt.runs.data_module import TranslationData
from nmt.runs.module import make_objective
from nmt.search import SearchConfig, beam_search
from nmt.text.batching import collate, evaluation_batches
from nmt.text.encoding import EncodedCorpus


def true_bleu(model: Seq2Seq, corpus: EncodedCorpus, rows: list[int], beam_size: int, device: str) -> Tensor:
    """(rows,): the sentence BLEU of some rows of a corpus; J is their mean."""
    lengths = corpus.source_lengths
    bleu = torch.zeros(len(rows), dtype=torch.float64)
    for planned in evaluation_batches([int(lengths[row]) for row in rows], 4096):
        batch = collate(corpus, [rows[place] for place in planned], 0).to(device)
        found = beam_search(model, batch.source, batch.source_lengths, SearchConfig(beam_size=beam_size))
        tokens = [hypotheses[0].tokens if hypotheses else [] for hypotheses in found]
        longest = max(1, *map(len, tokens))
        padded = torch.full((len(tokens), 1, longest), -2, device=device)
        for row, ids in enumerate(tokens):
            padded[row, 0, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        ends = batch.target_lengths - 1
        inside = torch.arange(batch.target.shape[1], device=device) < ends.unsqueeze(1)
        match = (padded.unsqueeze(3) == batch.target.masked_fill(~inside, -1)[:, None, None]).float()
        count = torch.tensor([[float(len(ids))] for ids in tokens], device=device)
        bleu[planned] = soft_bleu(match, count, count_reference(batch.target, ends)).flatten().double().cpu()
    return bleu


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run: its model and its data are used")
    parser.add_argument("--estimators", default=str(Path(__file__).with_suffix(".yaml")))
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--step", type=float, default=0.3, help="of the central difference, along a unit vector")
    parser.add_argument("--dev-lines", type=int, default=0, help="0: all")
    parser.add_argument("--beam-size", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", help="JSON lines are appended here")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    saved = str(Path(chosen.run) / "config.yaml")
    same = {"data.batch_tokens": chosen.batch_tokens, "data.dev_lines": chosen.dev_lines}
    config = read_config(saved, same)
    checkpoint = load_checkpoint(chosen.run, device)
    model = checkpoint.model
    data = TranslationData(config.data, config.seed, (checkpoint.source_vocabulary, checkpoint.target_vocabulary))
    batches = [batch.to(device) for batch, _ in zip(data.stream, range(chosen.batches), strict=False)]
    train_rows = [row for batch in batches for row in batch.indices]
    dev_rows = [row for row in range(len(data.dev_corpus)) if data.dev_corpus.source_lengths[row]]
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = [p.detach().clone() for p in parameters]

    def truth() -> tuple[Tensor, Tensor]:
        return (
            true_bleu(model, data.train_corpus, train_rows, chosen.beam_size, device),
            true_bleu(model, data.dev_corpus, dev_rows, chosen.beam_size, device),
        )

    def move(direction: Tensor, step: float) -> None:
        place = 0
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                part = direction[place : place + weight.numel()].view_as(weight)
                parameter.copy_(weight + step * part)
                place += weight.numel()

    print(describe())
    on_train, on_dev = (float(bleu.mean()) for bleu in truth())
    print(f"J {on_train:.4f} train ({len(train_rows)} lines), {on_dev:.4f} dev ({len(dev_rows)} lines)\n")
    head = f"{'objective':<24}{'|g|':>8}{'median':>8}{'largest':>9}{'noise':>7}"
    head += f"{'train':>8}{'+-':>7}{'dev':>8}{'+-':>7}{'seconds':>9}"
    print(head, flush=True)
    for name, changes in yaml.safe_load(Path(chosen.estimators).read_text()).items():
        objective = make_objective(read_config(saved, {**same, **changes}), checkpoint.target_vocabulary)
        gradients, clock = [], time.process_time()
        for number, batch in enumerate(batches):
            torch.manual_seed(number)
            model.zero_grad()
            objective(model, batch).value.backward()
            gradients.append(flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]))
        seconds = (time.process_time() - clock) / len(batches)
        every = torch.stack(gradients)
        mean = every.mean(dim=0)
        covariance = (every - mean).square().sum() / (len(batches) - 1)
        signal = mean.square().sum() - covariance / len(batches)
        norms = every.norm(dim=1).tolist()
        direction = -mean / mean.norm()
        move(direction, chosen.step)
        above = truth()
        move(direction, -chosen.step)
        below = truth()
        move(direction, 0.0)
        slopes = [(a - b) / (2 * chosen.step) for a, b in zip(above, below, strict=True)]
        train, dev = (float(slope.mean()) for slope in slopes)
        errors = [float(slope.std() / len(slope) ** 0.5) for slope in slopes]
        record = {
            "objective": name,
            "norm": mean.norm().item(),
            "median": statistics.median(norms),
            "largest": max(norms),
            # The signal's own error: below it nothing can be said.
            "noise": (covariance / signal).item() if signal > covariance / len(batches) / 4 else None,
            "train": train,
            "dev": dev,
            "train_error": errors[0],
            "dev_error": errors[1],
            "seconds_a_batch": seconds,
            "step": chosen.step,
            "batches": len(batches),
            "command": " ".join(sys.argv),
        }
        noise = f"{record['noise']:.0f}" if record["noise"] else "-"
        print(
            f"{name:<24}{record['norm']:>8.3f}{record['median']:>8.3f}{record['largest']:>9.3f}{noise:>7}"
            f"{train:>8.3f}{errors[0]:>7.3f}{dev:>8.3f}{errors[1]:>7.3f}{seconds:>9.2f}",
            flush=True,
        )
        if chosen.output:
            with open(chosen.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
