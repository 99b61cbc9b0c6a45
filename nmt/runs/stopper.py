"""When training ends: enough updates, enough time, or a dev BLEU that no longer rises."""

import logging
import time
from typing import Any

import pytorch_lightning as pl

from nmt.config import TrainerConfig
from nmt.runs.module import TranslationModule
from nmt.runs.world import World

logger = logging.getLogger(__name__)


class Stopper(pl.Callback):
    """Ends training at the end of an update, so that a resumed run begins at one, and with a validation.

    Validations outside of the rhythm (the one at the end) do not count against the patience: an unbroken
    run would not have them.

    Args:
        settings: patience, max_minutes, accumulate.
        updates: the update to end at, whichever limit sets it.
        world: the processes; the time is over for all when it is for one.

    Attributes:
        best, waited: best dev BLEU at a regular validation, and how many have passed since.
        seconds: training time of the run, earlier parts included.
        reason: why training ended, in words.
    """

    def __init__(self, settings: TrainerConfig, updates: int, world: World | None = None) -> None:
        self.settings = settings
        self.world = world or World()
        self.updates = updates
        self.best = -1.0
        self.waited = 0
        self.seconds = 0.0
        self.reason = f"all {updates:,} updates are done; raise trainer.max_steps or max_epochs for more"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.clock = time.monotonic()
        # A run that has ended, resumed with the limits it ended by, makes no further update.
        self._check_time(trainer)
        self._check_patience(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.settings.accumulate:
            return
        if trainer.global_step >= self.updates:
            trainer.should_stop = True
        self._check_time(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TranslationModule) and pl_module.dev_score is not None
        if not pl_module.regular_validation:
            return
        value = pl_module.dev_score.value
        self.waited = 0 if value > self.best else self.waited + 1
        self.best = max(self.best, value)
        self._check_patience(trainer)

    def _check_time(self, trainer: pl.Trainer) -> None:
        now = time.monotonic()
        self.seconds += now - self.clock
        self.clock = now
        limit = self.settings.max_minutes
        if limit is not None and self.world.agree(self.seconds >= 60 * limit)[0]:
            self.reason = f"{limit:g} minutes are over; raise trainer.max_minutes for more"
            trainer.should_stop = True

    def _check_patience(self, trainer: pl.Trainer) -> None:
        if self.settings.patience and self.waited >= self.settings.patience:
            self.reason = (
                f"{self.waited} validations brought no better dev BLEU than {self.best:.2f}; raise trainer.patience "
                "for more"
            )
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]
        self.seconds = state_dict["seconds"]
