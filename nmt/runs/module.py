"""The Lightning module: one objective, one optimiser, and dev BLEU by beam search."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from nmt.checkpoint import Checkpoint, describe_architecture
from nmt.config import OptimizerConfig, TrainConfig
from nmt.evaluation import Score, bleu
from nmt.models import Seq2Seq, decoding_form
from nmt.objectives import (
    BSO,
    BSOConfig,
    CrossEntropy,
    MinRisk,
    MinRiskConfig,
    Objective,
    ScheduledSampling,
    SoftBeam,
    SoftBeamConfig,
)
from nmt.objectives.cross_entropy import reference_nll
from nmt.objectives.words import Words
from nmt.runs.data_module import TranslationData
from nmt.runs.gradient import UpdateGradient
from nmt.runs.skipping import Skipping
from nmt.runs.world import World
from nmt.search import beam_search
from nmt.text.batching import Batch
from nmt.text.vocabulary import Vocabulary


def make_objective(config: TrainConfig, vocabulary: Vocabulary) -> Objective:
    """The objective that the configuration names, for targets of a vocabulary."""

    def words(section: MinRiskConfig | BSOConfig | SoftBeamConfig) -> Words | None:
        counted = section.word_share or section.brevity == "words"
        return Words(vocabulary, section.word_share, section.brevity) if counted else None

    makers: dict[str, Callable[[], Objective]] = {
        "cross_entropy": lambda: CrossEntropy(config.cross_entropy),
        "scheduled_sampling": lambda: ScheduledSampling(config.scheduled_sampling),
        "min_risk": lambda: MinRisk(config.min_risk, words(config.min_risk)),
        "bso": lambda: BSO(config.bso, words(config.bso)),
        "soft_beam": lambda: SoftBeam(config.soft_beam, words=words(config.soft_beam)),
    }
    return makers[config.objective]()


def learning_rate_factor(update: int, config: OptimizerConfig, max_steps: int) -> float:
    """What the learning rate is multiplied by at `update`, counted from 0, the plateau's share aside."""
    update += 1
    if update <= config.warmup:
        return update / config.warmup
    if config.schedule == "inverse_sqrt":
        return math.sqrt(max(config.warmup, 1) / update)
    if config.schedule == "linear":
        return max(0.0, (max_steps - update + 1) / max(1, max_steps - config.warmup))
    return 1.0


class TranslationModule(pl.LightningModule):
    """Trains a model by an objective and scores it by beam BLEU.

    The randomness of a step (dropout, restarts) is drawn from the run's seed and the number of the batch, so
    that nothing of it has to be carried through a checkpoint, and that it does not matter which process has the batch.

    Args:
        config: the run.
        checkpoint: the model and its vocabularies.
        data: its batches, those of this process.
        world: the processes that train together.
    """

    def __init__(
        self, config: TrainConfig, checkpoint: Checkpoint, data: TranslationData, world: World | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.checkpoint = checkpoint
        self.model = checkpoint.model
        self.objective = make_objective(config, checkpoint.target_vocabulary)
        if isinstance(self.objective, SoftBeam):
            # Weights of a run that is resumed replace the copy's, too.
            self.objective.stay_near(self.model)
        self.data = data
        self.world = world or World()
        self.gradient = UpdateGradient(self.world, config.trainer.accumulate, config.data.batch_tokens)
        # What is said when memory is full: is it a batch of training, which rows, pieces of source and target.
        self.in_work: tuple[bool, Sequence[int], int, int] | None = None
        self.skipping = Skipping(config.trainer.bad_steps, self.world)
        self.losses_finite: Tensor = torch.tensor(True)
        self.ends_update = True
        # What training by beam search is to gain shows beside greedy search.
        self.dev_searches = {"bleu": config.search}
        if config.objective != "cross_entropy":
            self.dev_searches["bleu_greedy"] = dataclasses.replace(config.search, beam_size=1, n_best=1, groups=1)
        self.dev_hypotheses: dict[str, dict[int, str]] = {}
        # In a list, so that it is no part of the module and of its checkpoints.
        self.dev_decoder: list[Seq2Seq] = []
        self.dev_nll: dict[int, Tensor] = {}
        self.dev_tokens = 0
        self.dev_score: Score | None = None
        self.after_backward: Mapping[str, Tensor] = {}
        self.plateau_scale = 1.0
        self.plateau_best = -1.0
        self.plateau_waited = 0

    def on_fit_start(self) -> None:
        self.model.train()

    @property
    def reports(self) -> bool:
        """Whether the present update is one that the log tells of."""
        return self.trainer.global_step % self.config.trainer.log_every == 0

    def training_step(self, batch: tuple[int, Batch], batch_idx: int) -> dict[str, Any]:
        number, batch_ = batch
        self.in_work = True, batch_.indices, batch_.source.shape[1], batch_.target.shape[1]
        torch.manual_seed((self.config.seed * 1_000_003 + number) % 2**63)
        found = self.objective(self.model, batch_, self.trainer.global_step)
        value, figures, self.after_backward, normaliser = found
        self.log("train/loss", value, on_step=True, on_epoch=False)
        for name, figure in figures.items():
            self.log(f"train/{name}", figure, on_step=True, on_epoch=False)
        place = batch_idx % self.config.trainer.accumulate
        self.ends_update = place + 1 == self.config.trainer.accumulate
        loss = self.gradient.weigh(value, normaliser, first=place == 0)
        self.skipping.note(value, batch_.indices, first=place == 0)
        return {"loss": loss, "figures": figures, "batch": batch_}

    def on_after_backward(self) -> None:
        for name, squares in self.after_backward.items():
            self.log(f"train/{name}", squares.sqrt(), on_step=True, on_epoch=False)
        self.after_backward = {}
        # Here, not before the optimiser's step: a scaler of float16 has to see the sums of all processes.
        if self.ends_update:
            self.losses_finite = self.gradient.finish(list(self.parameters()))

    def on_train_batch_end(self, *_: Any) -> None:
        self.data.trained_batches += self.world.size
        # Here, when the log has been told.
        if self.skipping.rows and self.skipping.is_over:
            raise self.world.error(
                self._diverged(
                    f"loss or gradient of {self.skipping.in_a_row} updates in a row (trainer.bad_steps) is no number, "
                    f"the last time in {self.data.name_lines(self.skipping.rows)}"
                )
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if batch_idx % self.world.size != self.world.rank:
            return
        self.in_work = False, batch.indices, batch.source.shape[1], batch.target.shape[1]
        for name, search in self.dev_searches.items():
            found = beam_search(self.dev_decoder[0], batch.source, batch.source_lengths, search)
            for row, hypotheses in zip(batch.indices, found, strict=True):
                tokens = hypotheses[0].tokens if hypotheses else []
                self.dev_hypotheses[name][row] = self.checkpoint.target_vocabulary.decode(tokens)
        memory = self.model.encode(batch.source, batch.source_lengths)
        nll = reference_nll(self.model, memory, batch.target, 0.0)[1]
        self.dev_nll[batch_idx] = nll.double()
        self.dev_tokens += int(batch.target_lengths.sum())

    def on_validation_epoch_start(self) -> None:
        self.dev_hypotheses = {name: {} for name in self.dev_searches}
        self.dev_decoder = [decoding_form(self.model)]
        self.dev_nll = {}
        self.dev_tokens = 0

    def on_validation_epoch_end(self) -> None:
        self.dev_decoder = []
        references = self.data.dev_pairs.target
        # Everyone has all of it, and decides by it what everyone decides. Summed up in the order of the batches.
        parts = self.world.gather(
            ({number: float(nll) for number, nll in self.dev_nll.items()}, self.dev_tokens, self.dev_hypotheses)
        )
        nlls = {number: nll for part, _, _ in parts for number, nll in part.items()}
        tokens = sum(count for _, count, _ in parts)
        nll = torch.tensor(sum(nlls[number] for number in sorted(nlls)) / tokens)
        if not torch.isfinite(nll):
            # Before anything is saved: the last good checkpoint stays.
            raise self.world.error(self._diverged(f"dev nll is {nll.item()}"))
        scores = {}
        for name in self.dev_searches:
            found = {row: line for _, _, some in parts for row, line in some[name].items()}
            scores[name] = bleu([found.get(row, "") for row in range(len(references))], references)
        self.dev_score = scores["bleu"]
        if self.regular_validation:
            self._reduce_on_plateau(self.dev_score.value)
        for name, score in scores.items():
            self.log(f"dev/{name}", score.value)
        self.log("dev/nll", nll)

    @property
    def regular_validation(self) -> bool:
        """Whether the present validation is one that an unbroken, longer run would have, too."""
        return self.trainer.global_step % self.config.trainer.validate_every == 0

    def describe_work(self) -> str:
        """The batch that is computed, as it is told when memory is full, and the remedy."""
        if self.in_work is None:
            return "no batch was begun; the model is too large, lower model.hidden or data.vocabulary.size"
        training, rows, source, target = self.in_work
        what = f"a batch of {len(rows)} sentences, {source} source by {target} target pieces at most"
        if training:
            what += f" at update {self.trainer.global_step + 1}, the longest in {self.data.name_longest(rows)}"
        else:
            what += f" of the validation at update {self.trainer.global_step}"
        tokens = self.config.data.batch_tokens
        settings = getattr(self.config, self.config.objective)
        kept = not getattr(settings, "recompute", True) and getattr(settings, "loss", "") != "reachable_bleu"
        if training and kept:
            how = "go on by --resume with" if self.trainer.global_step else "give"
            what += f"; {how} --{self.config.objective}.recompute true, or"
        else:
            what += ";"
        return (
            f"{what} lower data.batch_tokens ({tokens}; with trainer.accumulate 2, {tokens // 2} makes updates of as "
            "many tokens; 0 finds what fits) or data.max_length, and begin a new run, --from this one's model where "
            "there is one"
        )

    def _diverged(self, what: str) -> str:
        damping = ", soft_beam.search.damping" if self.config.objective == "soft_beam" else ""
        return (
            f"update {self.trainer.global_step}: {what}: training diverged; lower optimizer.lr, "
            f"trainer.clip{damping}, or raise optimizer.warmup. {self.config.run} keeps the best model so far"
        )

    def _reduce_on_plateau(self, value: float) -> None:
        if self.config.optimizer.schedule != "plateau":
            return
        if value > self.plateau_best:
            self.plateau_best, self.plateau_waited = value, 0
            return
        self.plateau_waited += 1
        if self.plateau_waited > self.config.optimizer.plateau_patience:
            self.plateau_scale *= self.config.optimizer.plateau_factor
            self.plateau_waited = 0

    def configure_optimizers(self) -> Any:
        config = self.config.optimizer
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        # What an objective learns (a temperature) is a few numbers, and no weight to decay.
        if isinstance(self.objective, nn.Module) and (
            own := [p for p in self.objective.parameters() if p.requires_grad]
        ):
            groups.append({"params": own, "weight_decay": 0.0})
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.name]
        optimizer = kind(groups, lr=config.lr, betas=config.betas, fused=True)

        def factor(update: int) -> float:
            return self.plateau_scale * learning_rate_factor(update, config, self.config.trainer.max_steps)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, *_: Any, **__: Any) -> None:
        clip = self.config.trainer.clip
        norm: Tensor = torch.nn.utils.clip_grad_norm_(self.parameters(), clip if clip else math.inf)
        self.log("train/gradient_norm", norm, on_step=True, on_epoch=False)
        # A gradient of float16 that overflows is the scaler's to skip, as it does now and then.
        scaled = self.config.trainer.precision == "16"
        if self.skipping.decide(self.losses_finite if scaled else self.losses_finite & torch.isfinite(norm)):
            for parameter in self.parameters():
                # The optimiser passes over what has none.
                parameter.grad = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = {
            "plateau": [self.plateau_scale, self.plateau_best, self.plateau_waited],
            "skipping": self.skipping.state_dict(),
            # Of all processes, an update.
            "batches": self.config.trainer.accumulate * self.world.size,
        }
        # A run that began from an imported model has an architecture that the configuration does not tell.
        checkpoint["architecture"] = json.dumps(describe_architecture(self.model))
        # A run that began from another model has that model's vocabularies, which the text cannot give back.
        checkpoint["vocabularies"] = [
            torch.frombuffer(bytearray(vocabulary.model), dtype=torch.uint8)
            for vocabulary in (self.data.source_vocabulary, self.data.target_vocabulary)
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.plateau_scale, self.plateau_best, self.plateau_waited = checkpoint["run"]["plateau"]
        # A run of an earlier version has none.
        if "skipping" in checkpoint["run"]:
            self.skipping.load_state_dict(checkpoint["run"]["skipping"])
        # Lightning counts the batches of a process, by which it knows when an update is full and a validation due.
        # What is saved is always a whole update, but the processes may have been more or fewer.
        updates, loop = checkpoint["global_step"], checkpoint["loops"]["fit_loop"]
        for counts in ("total", "current"):
            progress = loop["epoch_loop.batch_progress"][counts]
            progress.update(dict.fromkeys(progress, updates * self.config.trainer.accumulate))
        # It counts the update once more where it passes a validation over that the checkpoint has behind it.
        validated = updates % self.config.trainer.validate_every == 0
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] = updates - validated
