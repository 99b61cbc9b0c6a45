"""The largest batches that memory holds, found by trying when a run begins (data.batch_tokens 0).

Tried are budgets in steps of a third to a half, on the batches of the longest and of the shortest sentences, forward
and backward, by the run's own objective. What is found becomes part of the run's configuration: a run that is resumed,
wherever, has the same batches.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator

import torch

from nmt.config import TrainConfig
from nmt.runs.headroom import free_memory, peak_memory, reset_peak
from nmt.runs.module import TranslationModule
from nmt.runs.shortage import is_shortage
from nmt.runs.world import World
from nmt.text.batching import Batch

logger = logging.getLogger(__name__)

SHARE = 0.8
"""Of the free memory that batches may take: the rest is for what differs from batch to batch, and for validations."""
MOST = {"cpu": 2**13, "cuda": 2**17}
"""The largest budget that is tried: beyond it an update takes longer, and text is read no faster."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A budget in tokens, and the bytes that its batches took at most; None: more than there were."""

    budget: int
    peak: int | None


def budgets(least: int, most: int) -> Iterator[int]:
    """Powers of 2, and 1.5 times those, from the first that is not below `least` to `most`."""
    power = 2
    while power <= most:
        for budget in (power, power * 3 // 2):
            if least <= budget <= most:
                yield budget
        power *= 2


def find_budget(peak_of: Callable[[int], int], least: int, most: int, limit: int, cautious: bool) -> list[Trial]:
    """Tries growing budgets, up to the first that does not fit.

    Args:
        peak_of: the bytes that a budget takes; it may raise an error of an allocator.
        least, most: see `budgets`.
        limit: bytes that may be taken.
        cautious: whether a budget that would take more than the limit, if memory grew as budgets do, is not even tried:
            lack of memory cannot be caught on a CPU, where the kernel ends the process.

    Returns:
        What was tried; the last one that fits comes last, or before one that does not.
    """
    trials: list[Trial] = []
    for budget in budgets(least, most):
        if cautious and trials and (trials[-1].peak or 0) * budget / trials[-1].budget > limit:
            break
        try:
            peak: int | None = peak_of(budget)
        except (MemoryError, RuntimeError) as error:
            if not is_shortage(error):
                raise
            peak = None
        if peak is not None and peak > limit:
            peak = None
        trials.append(Trial(budget, peak))
        if peak is None:
            break
    return trials


def best_of(trials: list[Trial]) -> int:
    """The largest budget that fits, 0 if none does."""
    return max((trial.budget for trial in trials if trial.peak is not None), default=0)


class Probe:
    """Runs the largest batches of a budget as training does, but for the update; what it has made is gone afterwards.

    Args:
        module: on its device.
        device: that.
    """

    def __init__(self, module: TranslationModule, device: torch.device) -> None:
        self.module = module
        self.device = device
        # Once: what a CPU's heap keeps of one trial, the next one uses.
        self.before = reset_peak(device)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # Of the optimiser two moments; with several processes also a copy of all gradients, which travels.
        copies = 2 if module.world.size == 1 else 3
        self.update = copies * sum(p.numel() * p.element_size() for p in trained)

    def __call__(self, budget: int) -> int:
        """Bytes that forward and backward pass took at most, and those that the optimiser will take.

        Raises:
            RuntimeError, MemoryError: the allocator's.
        """
        peak = 0
        self.module.train()
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            for batch in self.module.data.stream.extreme_batches(budget):
                reset_peak(self.device)
                try:
                    self._run(batch.to(self.device))
                    peak = max(peak, peak_memory(self.device) - self.before)
                finally:
                    self.module.zero_grad(set_to_none=True)
        return peak + self.update

    def _run(self, batch: Batch) -> None:
        settings = self.module.config.trainer
        kind = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}[settings.precision]
        with torch.autocast(self.device.type, kind, enabled=kind is not None):
            # The last update: some objectives need more, the longer training goes on.
            loss = self.module.objective(self.module.model, batch, settings.max_steps)
        loss.value.backward()


def settle_budget(
    config: TrainConfig, module: TranslationModule, device: torch.device, world: World
) -> tuple[TrainConfig, TranslationModule, list[Trial]]:
    """A run whose batches are as large as memory allows: in all processes as large as in the one with the least.

    Args:
        config: with data.batch_tokens 0.
        module: made of it.
        device: of this process.
        world: the processes; all have to come here.

    Returns:
        Configuration and module with the budget that was found, and what was tried in this process.

    Raises:
        UserError: the smallest batches do not fit.
    """
    stream = module.data.stream
    # At most one that holds all of the text; at least one that holds its longest sentence.
    most = min(MOST["cuda" if device.type == "cuda" else "cpu"], 2 * stream.longest * stream.usable)
    most = max(most, 2 * stream.longest)
    module.to(device)
    limit = int(SHARE * free_memory(device))
    if device.type == "cpu":
        limit //= world.local_size
    logger.info("data.batch_tokens 0: trying which batches fit into %s MiB", f"{limit // 2**20:,}")
    trials = find_budget(Probe(module, device), stream.longest, most, limit, cautious=device.type == "cpu")
    module.to("cpu")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    found = min(world.gather(best_of(trials)))
    if not found:
        raise world.error(
            f"memory is full: batches of {trials[0].budget} tokens, the longest sentence alone, do not fit into "
            f"{limit // 2**20:,} MiB (four fifths of what is free); lower data.max_length or the size of the model"
        )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_tokens=found))
    module.data.set_budget(found)
    logger.info("data.batch_tokens is %d: %s", found, ", ".join(_told(trial) for trial in trials[-3:]))
    return config, TranslationModule(config, module.checkpoint, module.data, world), trials


def _told(trial: Trial) -> str:
    took = "does not fit" if trial.peak is None else f"takes {trial.peak // 2**20:,} MiB"
    return f"{trial.budget} {took}"
