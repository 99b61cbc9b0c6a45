"""A picture of the soft beam at every validation, in TensorBoard and in the run's folder."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from nmt.runs.module import TranslationModule


class BeamPicture(pl.Callback):
    """Unrolls the soft beam on one sentence of the dev set: slots over time, weights as colour.

    Args:
        path: the picture of the latest validation.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TranslationModule)
        if not pl_module.world.is_first:
            return
        # matplotlib takes most of a second to import: only runs that draw wait for it.
        from nmt.plots import draw_beam, save_figure, trace_beam
        from nmt.translator import Translator

        config = pl_module.config.soft_beam
        line = next((line for line in pl_module.data.dev_pairs.source if 5 <= len(line.split()) <= 12), None)
        if line is None:
            return
        trace = trace_beam(
            Translator(pl_module.checkpoint), line, config.search, hard_states=config.loss == "reachable_bleu"
        )
        figure: Any = draw_beam(trace)
        save_figure(figure, self.path)
        for backend in trainer.loggers:
            if isinstance(backend, TensorBoardLogger):
                backend.experiment.add_figure("dev/soft_beam", figure, trainer.global_step)
