"""`nmt train`: a configuration becomes a run."""

import dataclasses
import logging
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from nmt.beam_picture import BeamPicture
from nmt.checkpoint import Checkpoint, find_model, load_checkpoint
from nmt.config import TrainConfig, TrainerConfig
from nmt.config_file import write_config
from nmt.data_module import TranslationData
from nmt.errors import UserError
from nmt.journal import Journal
from nmt.manifest import describe_software, now, read_manifest, update_manifest
from nmt.models import RNNsearch, RNNsearchConfig
from nmt.module import TranslationModule
from nmt.run import AtomicCheckpointIO, RunFolder, Saver
from nmt.stopper import Stopper

logger = logging.getLogger(__name__)


def train(config: TrainConfig, start: str | Path | None = None, resume: bool = False) -> Checkpoint:
    """Trains a model.

    Args:
        config: the run.
        start: a model file or run folder whose weights and vocabularies a new run begins with.
        resume: whether `config.run` is gone on with; its state is then its own last.ckpt.

    Returns:
        The best model on the dev set, as saved in the run's folder.

    Raises:
        UserError: a mistake in the configuration, the data or the folder.
    """
    folder = RunFolder(config.run)
    accelerator(config.trainer)
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    if not resume:
        folder.check_free()
        if start is None and config.objective == "soft_beam" and config.soft_beam.divergence:
            raise UserError(
                f"soft_beam.divergence is {config.soft_beam.divergence}, but there is no model to stay near; give it "
                "by --from, or leave it 0"
            )
    # Before the folder is made: a mistake in the data must not leave half a run behind.
    found = load_checkpoint(start) if start is not None else None
    vocabularies = None
    if resume:
        vocabularies = folder.vocabularies()
    elif found is not None:
        vocabularies = (found.source_vocabulary, found.target_vocabulary)
        config = dataclasses.replace(config, model=shape_of(found, config.model))
    data = TranslationData(config.data, config.seed, vocabularies)
    checkpoint = build_checkpoint(config, data)
    if found is not None and start is not None:
        checkpoint.model.load_state_dict(found.model.state_dict())
        logger.info("loaded all weights and vocabularies of %s", find_model(start))
        logger.info("reset: optimiser, schedule, best dev BLEU; ignored: data.vocabulary but for its sampling")
    updates = data.updates(config.trainer)
    module = TranslationModule(config, checkpoint, data)
    if resume:
        folder.check_data(data.checksums())
        folder.check_model(module)
        # The limits may be new; the next --resume shall know them.
        write_config(folder.config, config)
        resumed = [*read_manifest(folder.manifest).get("resumed", []), now()]
        update_manifest(folder.manifest, config=dataclasses.asdict(config), resumed=resumed)
    else:
        folder.create()
        write_config(folder.config, config)
        update_manifest(
            folder.manifest,
            config=dataclasses.asdict(config),
            started_from=str(start) if start is not None else None,
            data={
                "train": {"name": data.train_pairs.name, "pairs": len(data.train_pairs)},
                "dev": {"name": data.dev_pairs.name, "pairs": len(data.dev_pairs)},
                "sha256": data.checksums(),
            },
            **describe_software(),
        )
    parameters = sum(p.numel() for p in checkpoint.model.parameters())
    logger.info(
        "%s training pairs, %s dev pairs, vocabularies of %d and %d pieces, %.1f million parameters",
        f"{len(data.train_pairs):,}",
        f"{len(data.dev_pairs):,}",
        len(data.source_vocabulary),
        len(data.target_vocabulary),
        parameters / 1e6,
    )
    saver, stopper = Saver(folder, config.trainer.keep), Stopper(config.trainer, updates)
    callbacks: list[pl.Callback] = [Journal(folder.metrics, config.trainer.log_every), stopper, saver]
    if config.objective == "soft_beam":
        callbacks.append(BeamPicture(folder.beam_picture))
    trainer = make_trainer(config, folder, callbacks, updates)
    with warnings.catch_warnings():
        _silence_lightning()
        try:
            trainer.fit(module, datamodule=data, ckpt_path=folder.last if resume else None)
        except SystemExit:
            # Lightning turns Ctrl-C into this, and is deaf to it from then on.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        if trainer.interrupted:
            raise KeyboardInterrupt
    update_manifest(folder.manifest, ended=now(), updates=trainer.global_step, reason=stopper.reason)
    logger.info("ended: %s", stopper.reason)
    logger.info("best dev BLEU %.2f at update %d: %s", saver.best, saver.best_step, folder.model)
    return load_checkpoint(folder.model)


def build_checkpoint(config: TrainConfig, data: TranslationData) -> Checkpoint:
    """A fresh model of the configuration's shape, its weights drawn from the seed."""
    torch.manual_seed(config.seed)
    model = RNNsearch(config.model, len(data.source_vocabulary), len(data.target_vocabulary))
    info = {
        "languages": {"source": data.train_pairs.source_language, "target": data.train_pairs.target_language},
        "train": data.train_pairs.name,
        "objective": config.objective,
        "seed": config.seed,
    }
    return Checkpoint(model, data.source_vocabulary, data.target_vocabulary, info)


def shape_of(found: Checkpoint, asked: RNNsearchConfig) -> RNNsearchConfig:
    """The shape of a loaded model, with the dropout asked for.

    Raises:
        UserError: the configuration asks for another shape.
    """
    have: RNNsearchConfig = found.model.config  # type: ignore[assignment]
    default = RNNsearchConfig()
    for field in dataclasses.fields(asked):
        wish, is_ = getattr(asked, field.name), getattr(have, field.name)
        if field.name not in ("dropout", "locked") and wish not in (is_, getattr(default, field.name)):
            raise UserError(
                f"model.{field.name} is {wish}, but the loaded model has {is_}; leave it out, it comes with the model"
            )
    return dataclasses.replace(have, dropout=asked.dropout, locked=asked.locked)


def make_trainer(config: TrainConfig, folder: RunFolder, callbacks: Sequence[pl.Callback], updates: int) -> pl.Trainer:
    """Lightning's trainer: one endless epoch over the stream, validations by updates."""
    settings = config.trainer
    precision: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    with warnings.catch_warnings():
        _silence_lightning()
        return pl.Trainer(
            accelerator=accelerator(settings),
            devices=1,
            precision=precision[settings.precision],
            max_steps=updates,
            max_epochs=-1,
            val_check_interval=settings.validate_every * settings.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            accumulate_grad_batches=settings.accumulate,
            # Clipping is the module's, which reports the norm too; Lightning must know that it is wanted.
            gradient_clip_val=settings.clip or None,
            log_every_n_steps=settings.log_every,
            logger=TensorBoardLogger(folder.path, name="", version="tensorboard"),
            callbacks=list(callbacks),
            plugins=[AtomicCheckpointIO()],
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )


def accelerator(settings: TrainerConfig) -> str:
    """Lightning's name of what is computed on: "cuda" or "cpu".

    Raises:
        UserError: a GPU is asked for, or needed for the precision, and there is none.
    """
    found = torch.cuda.is_available()
    if settings.device == "gpu" and not found:
        raise UserError(
            "trainer.device is gpu, but torch finds none; give auto or cpu, or install a CUDA build of torch"
        )
    if found and settings.device != "cpu":
        return "cuda"
    if settings.precision == "16":
        raise UserError("trainer.precision is 16, which needs a GPU; give 32 or bf16")
    return "cpu"


def _silence_lightning() -> None:
    """Keeps advice about data loader workers and the like from users who cannot act on it."""
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", module="lightning_fabric")
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
