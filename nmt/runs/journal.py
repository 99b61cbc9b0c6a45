"""A run's log: a line or a progress bar for people, JSON lines for plots."""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from nmt.errors import UserError
from nmt.lines import atomic_path
from nmt.runs.module import TranslationModule
from nmt.text.batching import Batch

logger = logging.getLogger(__name__)


class Journal(pl.Callback):
    """Reports loss, tokens a second and dev BLEU.

    Tokens a second are those of the text, source and target apart, end of sentence counted and padding not;
    the share of padding stands beside them. A terminal gets a progress bar, a log file gets lines.

    Args:
        path: JSON lines, one a report. A resumed run drops the lines behind the update it resumes from.
        every: updates from one report to the next.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.reported = 0
        self.lr = 0.0
        self.score = ""
        self._reset()

    def _reset(self) -> None:
        self.began = time.perf_counter()
        self.source_tokens = self.target_tokens = self.cells = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TranslationModule)
        # What a run that is resumed has told before.
        self.reported = trainer.global_step
        if pl_module.world.is_first:
            self._begin(trainer)
        self._reset()

    def _begin(self, trainer: pl.Trainer) -> None:
        drop_after(self.path, trainer.global_step)
        if sys.stderr.isatty():
            self.bar = Progress(
                BarColumn(bar_width=12),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(
                "training", total=trainer.max_steps, completed=trainer.global_step, figures=""
            )
            self.bar.start()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        # When the batch has ended, the schedule has gone on to the next update.
        self.lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        content: Batch = batch[1]
        self.source_tokens += content.source_tokens
        self.target_tokens += content.target_tokens
        self.cells += content.source.numel() + content.target.numel()
        step = trainer.global_step
        assert isinstance(pl_module, TranslationModule)
        if pl_module.ends_update and pl_module.skipping.rows and pl_module.world.is_first:
            self._tell_skipped(pl_module, step)
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=step)
        # With accumulation the count of updates stands still for some batches; the first of them reports.
        if step % self.every or step == self.reported:
            return
        self.reported = step
        seconds = time.perf_counter() - self.began
        figures: dict[str, float] = {
            name.removeprefix("train/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/")
        }
        # Speed is that of all processes; of their figures the mean is told.
        parts = pl_module.world.gather((figures, self.source_tokens, self.target_tokens, self.cells))
        if not pl_module.world.is_first:
            self._reset()
            return
        if len(parts) > 1:
            figures = {name: sum(part[0][name] for part in parts) / len(parts) for name in figures}
            self.source_tokens, self.target_tokens, self.cells = (sum(part[i] for part in parts) for i in (1, 2, 3))
        figures |= {
            "lr": self.lr,
            "source_tokens_per_second": self.source_tokens / seconds,
            "target_tokens_per_second": self.target_tokens / seconds,
            "padding": 1 - (self.source_tokens + self.target_tokens) / self.cells,
        }
        self._write({"step": step, "epoch": content.epoch, **figures})
        if self.bar is not None and self.task is not None:
            thousands = (figures[f"{side}_tokens_per_second"] / 1000 for side in ("source", "target"))
            speed = "+".join(f"{value:.1f}k" for value in thousands)
            self.bar.update(self.task, figures=f"loss {figures['loss']:.3f}  {speed} tok/s{self.score}")
        else:
            logger.info(
                "update %d  epoch %d  loss %.3f  |g| %.2f  lr %.2e  source %s tok/s  target %s tok/s  padding %.0f%%",
                step,
                content.epoch,
                figures["loss"],
                figures.get("gradient_norm", 0),
                figures["lr"],
                f"{figures['source_tokens_per_second']:,.0f}",
                f"{figures['target_tokens_per_second']:,.0f}",
                100 * figures["padding"],
            )
        for backend in trainer.loggers:
            backend.log_metrics({"speed/" + k: v for k, v in figures.items() if "tokens" in k}, step)
        self._reset()

    def _tell_skipped(self, module: TranslationModule, step: int) -> None:
        skipping = module.skipping
        lines = [row + 1 for row in skipping.rows]
        self._write({"step": step, "skipped": skipping.total, "in_a_row": skipping.in_a_row, "lines": lines})
        logger.warning(
            "update %d skipped, its loss or gradient is no number (%d skipped so far): %s",
            step,
            skipping.total,
            module.data.name_lines(skipping.rows),
        )

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validation_began = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        figures = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("dev/")}
        assert isinstance(pl_module, TranslationModule)
        if not figures or not pl_module.world.is_first:
            return
        if pl_module.dev_score is not None:
            figures["dev/bleu"] = pl_module.dev_score.value  # Lightning rounds to float32
        seconds = time.perf_counter() - self.validation_began
        self.began += seconds  # the time of a validation is not training time
        self._write({"step": trainer.global_step, **figures, "dev/seconds": seconds})
        self.score = f"  BLEU {figures['dev/bleu']:.1f}"
        logger.info(
            "update %d  dev BLEU %.2f  dev nll %.3f  (%.0f s)",
            trainer.global_step,
            figures["dev/bleu"],
            figures["dev/nll"],
            seconds,
        )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _write(self, figures: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(figures) + "\n")
        except OSError as error:
            # What is written late has no name of its own.
            raise UserError(f"{self.path} cannot be written: {error.strerror or error}.") from error


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The reports of a run, in order; a line cut off by a crash is left out."""
    reports = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        try:
            reports.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return reports


def drop_after(path: Path, step: int) -> None:
    """Forgets reports behind `step`, so that a resumed run does not tell them twice."""
    if not path.exists():
        return
    kept = "".join(json.dumps(report) + "\n" for report in read_journal(path) if report["step"] <= step)
    # Also when a crash has cut off the last line: the next report must not be written behind the rest of it.
    if kept != path.read_text(encoding="utf-8"):
        with atomic_path(path) as temporary:
            temporary.write_text(kept, encoding="utf-8")
