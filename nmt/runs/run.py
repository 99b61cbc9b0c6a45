"""The folder of a run: what lies in it, and how it is written so that nothing is lost.

config.yaml         the configuration, complete
manifest.json       versions, checksums, machine, scores
model.safetensors   the best model on the dev set so far
model.*.safetensors the last validated models, by their update, where trainer.keep asks for them
last.ckpt           the state that --resume goes on from
previous.ckpt       the one before it, in case that one gets damaged
metrics.jsonl       loss, speed, dev BLEU
tensorboard/        the same for TensorBoard
.lock               while a process trains here: which
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint as CheckpointCallback

from nmt.checkpoint import NAME, RECURRENT, kept_models, kept_name, load_checkpoint, save_checkpoint
from nmt.config import TrainerConfig
from nmt.errors import UserError
from nmt.lock import FolderLock
from nmt.manifest import read_manifest, update_manifest
from nmt.runs.module import TranslationModule
from nmt.runs.state import PREVIOUS, mend_state, read_state
from nmt.text.vocabulary import Vocabulary, open_vocabulary

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"


class RunFolder:
    """Paths of a run.

    Attributes:
        lock: held by the process that writes here.
        unused: whether a new run has made the folder and has not trained on a batch yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.manifest = self.path / "manifest.json"
        self.model = self.path / NAME
        self.last = self.path / "last.ckpt"
        self.previous = self.path / PREVIOUS
        self.metrics = self.path / "metrics.jsonl"
        self.beam_picture = self.path / "beam.png"
        self.lock = FolderLock(self.path)
        self.unused = False

    def claim(self) -> None:
        """Takes the lock, where the folder is there already, and makes sure that a new run may begin here.

        Raises:
            UserError: as `check_free`, or another process trains here.
        """
        if self.path.is_dir():
            self.lock.acquire()
        self.check_free()

    def check_free(self) -> None:
        """Makes sure that a new run may begin here. One that has saved nothing yet may begin again.

        Raises:
            UserError: there is a run, or a model, already.
        """
        if self.last.exists() or self.previous.exists():
            raise UserError(
                f"{self.path} holds a run already; go on with it by --resume {self.path}, or give another --run"
            )
        if self.model.exists():
            raise UserError(f"{self.path} holds a {NAME}, which training would replace; give another --run")

    def create(self) -> None:
        """Makes the folder for a new run, and takes its lock.

        Raises:
            UserError: it holds a run already, another process trains here, or it cannot be made.
        """
        self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
            # Until the lock was ours another process may have begun, and even ended.
            self.check_free()
            self._sweep()
            for left in (self.manifest, self.metrics, *kept_models(self.path).values()):
                left.unlink(missing_ok=True)
            self.unused = True
        except OSError as error:
            raise UserError(f"{self.path} cannot be made ({error.strerror}); give another --run") from None
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise UserError(f"{self.path} cannot be written to; give another --run")

    def discard(self) -> None:
        """Removes what an unused run has written; the folder, too, unless somebody else's files are in it."""
        if not self.unused:
            return
        for path in (self.config, self.manifest, self.metrics, self.last):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path / TENSORBOARD, ignore_errors=True)
        self.lock.release()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def check_begun(self) -> None:
        """Makes sure that there is something to resume.

        Raises:
            UserError: there is no run, or it was stopped before its first checkpoint.
        """
        if not self.config.exists():
            raise UserError(f"{self.path} holds no run (no config.yaml); give the folder of a run")
        if not self.last.exists() and not self.previous.exists():
            raise UserError(
                f"{self.path} stopped before its first checkpoint (no last.ckpt), so there is nothing to go "
                "on from; train anew without --resume"
            )

    def mend(self) -> None:
        """Takes the lock and makes whole what an interruption has left, before a run is gone on with.

        Raises:
            UserError: as `check_begun`, no checkpoint is whole, or another process trains here.
        """
        self.check_begun()
        self.lock.acquire()
        mend_state(self.last)
        self._sweep()

    def _sweep(self) -> None:
        # What was being written when a process was killed.
        for left in self.path.glob(".*.tmp"):
            left.unlink(missing_ok=True)

    def vocabularies(self) -> tuple[Vocabulary, Vocabulary]:
        """Those of the run to resume, source and target.

        Raises:
            UserError: as `check_begun`, or the checkpoint is damaged.
        """
        self.check_begun()
        source, target = (tensor.numpy().tobytes() for tensor in read_state(self.last, mmap=True)["vocabularies"])
        first = open_vocabulary(source)
        return first, first if source == target else open_vocabulary(target)

    def architecture(self) -> dict[str, Any] | None:
        """That of the run to resume, where the configuration does not tell it; see `describe_architecture`.

        Raises:
            UserError: as `check_begun`, or the checkpoint is damaged.
        """
        self.check_begun()
        # A run of an earlier version has none.
        described = json.loads(read_state(self.last, mmap=True).get("architecture", "null"))
        return described if described and described["architecture"] not in RECURRENT else None

    def check_model(self, module: TranslationModule) -> None:
        """Makes sure that the weights of last.ckpt fit the model.

        Raises:
            UserError: the configuration has changed by hand.
        """
        saved, wanted = read_state(self.last, mmap=True)["state_dict"], module.state_dict()
        for name, tensor in wanted.items():
            if name not in saved or saved[name].shape != tensor.shape:
                raise UserError(
                    f"{self.last} does not fit the model of {self.config} ({name} differs); was config.yaml "
                    "changed since? Restore it, or begin a new run with --from"
                )

    def check_data(self, checksums: dict[str, str]) -> None:
        """Makes sure that a resumed run sees the data that it began with.

        Raises:
            UserError: a text has changed.
        """
        before = read_manifest(self.manifest).get("data", {}).get("sha256", {})
        changed = [name for name, checksum in checksums.items() if before.get(name) != checksum]
        if changed:
            raise UserError(
                f"{' and '.join(changed)} of {self.path} changed since the run began; restore the data, or begin "
                f"a new run with --from {self.path}"
            )

    def same_updates(self, settings: TrainerConfig, processes: int) -> TrainerConfig:
        """The settings with which a resumed run makes updates of as many batches as before.

        Args:
            settings: as asked for.
            processes: how many train now.

        Raises:
            UserError: as `check_begun`, the checkpoint or the manifest is damaged, or other updates are asked for.
        """
        self.check_begun()
        before = read_manifest(self.manifest).get("config", {}).get("trainer", {}).get("accumulate", 1)
        batches = read_state(self.last, mmap=True)["run"].get("batches", before)
        now_ = settings.accumulate * processes
        if now_ == batches:
            return settings
        if settings.accumulate != before:
            raise UserError(
                f"--resume goes on with the same run, but trainer.accumulate is {settings.accumulate} in {processes} "
                f"process(es): an update would have {now_} batches instead of {batches}; leave it out, or begin a new "
                "run with --from"
            )
        if batches % processes == 0:
            accumulate = batches // processes
            logger.info("trainer.accumulate is now %d: an update keeps its %d batches", accumulate, batches)
            return dataclasses.replace(settings, accumulate=accumulate)
        logger.warning(
            "%d processes cannot share an update of %d batches; from here on it has %d, as in no unbroken run",
            processes,
            batches,
            now_,
        )
        return settings


class Saver(CheckpointCallback):
    """Saves the state of the run at each validation, and the model when its dev BLEU is the best so far.

    Lightning calls callbacks of this base class last, so the saved state holds what the others decided.
    What the best score is, the model file itself tells: no interruption can make the two disagree.

    Args:
        folder: of the run.
        keep: how many of the last validated models stay beside the best one. Validations outside of the rhythm do not
            count: an unbroken run would not have them.
    """

    def __init__(self, folder: RunFolder, keep: int = 0) -> None:
        self.folder = folder
        self.keep = keep
        self.best = -1.0
        self.best_step = 0
        if folder.model.exists():
            try:
                dev = load_checkpoint(folder.model).info.get("dev", {})
                self.best, self.best_step = dev.get("bleu", -1.0), dev.get("step", 0)
            except UserError as error:
                logger.warning("%s The next validated model replaces it.", error)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A state before the first model: a run that breaks off between the two could neither go on nor begin anew.
        if trainer.global_step == 0:
            trainer.save_checkpoint(self.folder.last)

    def on_train_batch_end(self, *_: Any) -> None:
        self.folder.unused = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TranslationModule)
        writes = pl_module.world.is_first
        if writes:
            self._keep_if_best(pl_module, trainer.global_step)
        keeps = writes and self.keep > 0 and pl_module.regular_validation
        if keeps:
            self._keep(pl_module, trainer.global_step)
        # In all processes: Lightning lets one of them write, and the others wait.
        trainer.save_checkpoint(self.folder.last)
        if keeps:
            # After the state: what is gone on from after an interruption needs the models before it.
            kept = kept_models(self.folder.path)
            last = [step for step in kept if step <= trainer.global_step][-self.keep :]
            for step, path in kept.items():
                if step not in last:
                    path.unlink(missing_ok=True)

    def _keep(self, module: TranslationModule, step: int) -> None:
        score = module.dev_score
        assert score is not None
        dev = {"bleu": score.value, "signature": score.signature, "step": step}
        checkpoint = dataclasses.replace(module.checkpoint, info={**module.checkpoint.info, "dev": dev})
        save_checkpoint(self.folder.path / kept_name(step), checkpoint)

    def _keep_if_best(self, module: TranslationModule, step: int) -> None:
        score = module.dev_score
        if score is None or score.value <= self.best:
            return
        checkpoint = module.checkpoint
        checkpoint.info["dev"] = {"bleu": score.value, "signature": score.signature, "step": step}
        save_checkpoint(self.folder.model, checkpoint)
        self.best, self.best_step = score.value, step
        update_manifest(self.folder.manifest, best=checkpoint.info["dev"])
