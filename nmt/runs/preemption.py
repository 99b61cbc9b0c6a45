"""What a run does when it is asked to make room."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from nmt.errors import PreemptedError
from nmt.runs.world import World


class Preemption(pl.Callback):
    """After SIGTERM the run ends with its present update, or the validation that follows it, and saves its state.

    Any process may be asked; all end at the same update. Saved is where the next update begins: resumed, the run is
    the one that was not interrupted.

    Args:
        last: the checkpoint that the run goes on from.
        accumulate: batches an update in each process.
        world: the processes.
    """

    def __init__(self, last: Path, accumulate: int, world: World) -> None:
        self.last = last
        self.accumulate = accumulate
        self.world = world
        self.asked = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning's handler is in place by now, and takes ours away in the end. It may have heard already.
        self.asked = trainer.received_sigterm
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % self.accumulate:
            return
        # A launcher that was killed can no longer end the others when one is lost.
        if self.world.agree(self.asked or self.world.orphaned)[0]:
            trainer.save_checkpoint(self.last)
            where = self.last.parent
            message = f"preempted at update {trainer.global_step}; go on by nmt train --resume {where}"
            raise PreemptedError(message if self.world.is_first else "")

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
