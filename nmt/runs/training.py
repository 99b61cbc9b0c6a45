"""`nmt train`: a configuration becomes a run."""

import dataclasses
import logging
import os
import signal
import socket
import warnings
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment
from pytorch_lightning.loggers import TensorBoardLogger

from nmt.adapters import add_adapters
from nmt.checkpoint import Checkpoint, build_model, describe_architecture, find_model, load_checkpoint
from nmt.compilation import compile_ahead, compiled_regions, prove_compiler
from nmt.config import TrainConfig, TrainerConfig
from nmt.config_file import write_config
from nmt.errors import UserError
from nmt.freezing import count_parameters, freeze, tell_frozen
from nmt.manifest import describe_software, now, read_manifest, update_manifest
from nmt.models import Recurrent, Seq2Seq, make_recurrent
from nmt.runs.beam_picture import BeamPicture
from nmt.runs.budget import Probe, settle_budget
from nmt.runs.data_module import TranslationData
from nmt.runs.journal import Journal
from nmt.runs.module import TranslationModule
from nmt.runs.preemption import Preemption
from nmt.runs.profiling import Profiling
from nmt.runs.run import TENSORBOARD, RunFolder, Saver
from nmt.runs.shortage import shortage_told
from nmt.runs.state import AtomicCheckpointIO
from nmt.runs.stopper import Stopper
from nmt.runs.strategy import WorldStrategy
from nmt.runs.transfer import Transfer, shape_of, transfer
from nmt.runs.world import World, join_world

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    start: str | Path | None = None,
    resume: bool = False,
    given: Collection[str] | None = None,
) -> Checkpoint:
    """Trains a model.

    Args:
        config: the run.
        start: a model file or run folder whose weights and vocabularies a new run begins with.
        resume: whether `config.run` is gone on with; its state is then its own last.ckpt.
        given: keys of section `model` that were given, not only by default; they change the shape of the model that
            the run begins with. None: those whose value is not the default.

    Returns:
        The best model on the dev set, as saved in the run's folder.

    Raises:
        UserError: a mistake in the configuration, the data or the folder.
        PreemptedError: SIGTERM; the state is saved.
        LostError: another process of the run is gone.
    """
    folder = RunFolder(config.run)
    with folder.lock:
        try:
            return _train(config, folder, start, resume, given)
        except UserError:
            # What ends before the first update is done leaves nothing that a further try would have to remove.
            folder.discard()
            raise


def _train(
    config: TrainConfig, folder: RunFolder, start: str | Path | None, resume: bool, given: Collection[str] | None
) -> Checkpoint:
    world = join_world(accelerator(config.trainer))
    device = device_of(config.trainer, world)
    set_threads(config.trainer, world)
    if config.trainer.compile:
        with world.prepare():
            prove_compiler(device)
    if resume:
        with world.prepare():
            if world.is_first:
                folder.mend()
            config = dataclasses.replace(config, trainer=folder.same_updates(config.trainer, world.size))
        # Before the first process writes what the others have just read.
        world.barrier()
    with world.prepare():
        config, module = prepare(config, folder, world, start, resume, given)
    if config.data.batch_tokens == 0:
        config, module, trials = settle_budget(config, module, device, world)
        if world.is_first:
            write_config(folder.config, config)
            tried = [dataclasses.asdict(trial) for trial in trials]
            update_manifest(folder.manifest, config=dataclasses.asdict(config), batch_tokens_tried=tried)
    check_alike(config, module, world)
    data = module.data
    updates = data.updates(config.trainer)
    saver, stopper = Saver(folder, config.trainer.keep), Stopper(config.trainer, updates, world)
    callbacks: list[pl.Callback] = [Journal(folder.metrics, config.trainer.log_every), stopper, saver]
    callbacks.append(Preemption(folder.last, config.trainer.accumulate, world))
    if config.trainer.profile and world.is_first:
        callbacks.append(Profiling(folder.path / "profile", config.trainer.profile))
    if config.objective == "soft_beam":
        callbacks.append(BeamPicture(folder.beam_picture))
    trainer = make_trainer(config, folder, callbacks, updates, WorldStrategy(device, world))
    with warnings.catch_warnings(), compiled_regions(config.trainer.compile):
        _silence_lightning()
        if config.trainer.compile:
            # One process after the other: the later ones of a host find what the first has compiled.
            with world.prepare():
                compile_ahead(partial(rehearse, module, device))
        try:
            with shortage_told(module.describe_work):
                trainer.fit(module, datamodule=data, ckpt_path=folder.last if resume else None)
        except SystemExit:
            # Lightning turns Ctrl-C into this, and is deaf to it from then on.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
        if trainer.interrupted:
            raise KeyboardInterrupt
    if world.is_first:
        update_manifest(folder.manifest, ended=now(), updates=trainer.global_step, reason=stopper.reason)
        logger.info("ended: %s", stopper.reason)
        logger.info("best dev BLEU %.2f at update %d: %s", saver.best, saver.best_step, folder.model)
    return load_checkpoint(folder.model)


def prepare(
    config: TrainConfig,
    folder: RunFolder,
    world: World,
    start: str | Path | None,
    resume: bool,
    given: Collection[str] | None = None,
) -> tuple[TrainConfig, TranslationModule]:
    """All that comes before the first update: the data, the model, and, in process 0, the run's folder.

    Returns:
        The configuration as it is now known, and the module.

    Raises:
        UserError: see `train`.
    """
    if not resume and world.is_first:
        folder.claim()
    if not resume and start is None and config.objective == "soft_beam" and config.soft_beam.divergence:
        raise UserError(
            f"soft_beam.divergence is {config.soft_beam.divergence}, but there is no model to stay near; give it "
            "by --from, or leave it 0"
        )
    if not resume and start is None and config.data.vocabulary.renew != "none":
        raise UserError(
            f"data.vocabulary.renew is {config.data.vocabulary.renew}, but there is no model that has a vocabulary; "
            "give it by --from, or leave it out"
        )
    # Before the folder is made: a mistake in the data must not leave half a run behind.
    found = load_checkpoint(start) if start is not None else None
    vocabularies, architecture, text = None, None, config.data
    if resume:
        vocabularies, architecture = folder.vocabularies(), folder.architecture()
        # What was to be renewed has been.
        text = dataclasses.replace(text, vocabulary=dataclasses.replace(text.vocabulary, renew="none"))
    elif found is not None:
        vocabularies = (found.source_vocabulary, found.target_vocabulary)
        config = dataclasses.replace(config, model=shape_of(found, config.model, given))
        architecture = None if isinstance(found.model, Recurrent) else describe_architecture(found.model)
    data = TranslationData(text, config.seed, vocabularies, world.rank, world.size)
    check_tied(config, data)
    checkpoint = build_checkpoint(config, data, architecture)
    tokens = checkpoint.model.most_tokens
    data.set_positions(checkpoint.model.most_pieces, None if tokens is None else tokens - 1)
    taken = None
    if found is not None and start is not None:
        taken = transfer(found, checkpoint, str(find_model(start)))
    frozen = freeze(checkpoint.model, config.trainer.freeze)
    adapted = add_adapters(checkpoint.model, config.lora, config.seed)
    module = TranslationModule(config, checkpoint, data, world)
    if resume:
        folder.check_data(data.checksums())
        folder.check_model(module)
    if world.is_first:
        record(config, folder, module, start, resume, taken, {"frozen": frozen, "adapted": adapted})
    return config, module


def check_tied(config: TrainConfig, data: TranslationData) -> None:
    """Makes sure that a renewed vocabulary leaves embeddings that are to be shared one vocabulary.

    Raises:
        UserError: they would be those of two.
    """
    if config.data.vocabulary.renew == "none" or config.model.tied_embeddings != "all":
        return
    if data.source_vocabulary.checksum() != data.target_vocabulary.checksum():
        raise UserError(
            f"data.vocabulary.renew is {config.data.vocabulary.renew}, but source and target of the loaded model share "
            "their embeddings; give both, with data.vocabulary.joint, or model.tied_embeddings output"
        )


def record(
    config: TrainConfig,
    folder: RunFolder,
    module: TranslationModule,
    start: Any,
    resume: bool,
    taken: Transfer | None,
    trained: dict[str, list[str]],
) -> None:
    """Makes the folder of a new run, or notes in it that the run is gone on with; tells where the run begins.

    Args:
        taken: of the model that the run begins with.
        trained: the parameters that stay as they are ("frozen"), and the layers with adapters ("adapted").
    """
    data, size = module.data, module.world.size
    if resume:
        # The limits may be new; the next --resume shall know them.
        write_config(folder.config, config)
        before = read_manifest(folder.manifest)
        tell_schedule(before, config)
        resumed = [*before.get("resumed", []), now()]
        update_manifest(folder.manifest, config=dataclasses.asdict(config), resumed=resumed, processes=size)
    else:
        folder.create()
        write_config(folder.config, config)
        update_manifest(
            folder.manifest,
            config=dataclasses.asdict(config),
            started_from=str(start) if start is not None else None,
            transfer=taken.as_row() if taken is not None else None,
            **trained,
            data={
                "train": {"name": data.train_text.name, "pairs": data.pairs},
                "dev": {"name": data.dev_pairs.name, "pairs": len(data.dev_pairs)},
                "sha256": data.checksums(),
            },
            processes=size,
            **describe_software(),
        )
    if taken is not None:
        for line in taken.lines():
            logger.info("%s", line)
        for line in taken.warnings():
            logger.warning("%s", line)
    updated, parameters = count_parameters(module.model)
    logger.info(
        "%s, %s dev pairs, vocabularies of %d and %d pieces, %.1f million parameters",
        f"{data.pairs:,} training pairs" if data.pairs else f"training pairs in buffers of {config.data.buffer:,}",
        f"{len(data.dev_pairs):,}",
        len(data.source_vocabulary),
        len(data.target_vocabulary),
        parameters / 1e6,
    )
    if trained["adapted"]:
        logger.info(
            "%d layers have adapters of rank %d; in the model file they are merged",
            len(trained["adapted"]),
            config.lora.rank,
        )
    if updated < parameters:
        counts = f"{updated:,}", f"{parameters - updated:,}", tell_frozen(module.model)
        logger.info("%s parameters are trained, %s are frozen: %s", *counts)
    if size > 1:
        logger.info("%d processes, %d batches an update", size, size * config.trainer.accumulate)


def tell_schedule(before: dict[str, Any], config: TrainConfig) -> None:
    """Warns where a resumed run will not be the one that had its limit from the start.

    Args:
        before: the manifest so far.
        config: of the run from here on.
    """
    most = before.get("config", {}).get("trainer", {}).get("max_steps", config.trainer.max_steps)
    if config.optimizer.schedule == "linear" and most != config.trainer.max_steps:
        logger.warning(
            "trainer.max_steps is now %d instead of %d, where optimizer.schedule linear ends: from here on learning "
            "rates are others, as in no unbroken run",
            *(config.trainer.max_steps, most),
        )


def check_alike(config: TrainConfig, module: TranslationModule, world: World) -> None:
    """Makes sure that all processes do the same.

    Raises:
        UserError: hosts have other texts, or the processes other settings.
    """
    told = world.gather((socket.gethostname(), dataclasses.asdict(config) | module.data.checksums()))
    for rank, (host, here) in enumerate(told):
        differ = [name for name, value in told[0][1].items() if here[name] != value]
        if differ:
            raise world.error(
                f"process {rank}, on {host}, differs from process 0, on {told[0][0]}, in {' and '.join(differ)}; give "
                "all the same command, and texts on a file system that all hosts share"
            )


def build_checkpoint(
    config: TrainConfig, data: TranslationData, architecture: dict[str, Any] | None = None
) -> Checkpoint:
    """A fresh model of the configuration's shape, or of a described architecture, its weights drawn from the seed."""
    torch.manual_seed(config.seed)
    with shortage_told(lambda: "the model is too large; lower model.hidden, model.embedding or data.vocabulary.size"):
        if architecture is None:
            model: Seq2Seq = make_recurrent(config.model, len(data.source_vocabulary), len(data.target_vocabulary))
        else:
            model = build_model(architecture, data.source_vocabulary, data.target_vocabulary)
    info = {
        "languages": {"source": data.train_text.source_language, "target": data.train_text.target_language},
        "train": data.train_text.name,
        "objective": config.objective,
        "seed": config.seed,
    }
    return Checkpoint(model, data.source_vocabulary, data.target_vocabulary, info)


def rehearse(module: TranslationModule, device: torch.device) -> None:
    """The passes of updates on small batches, which leave the module, on the CPU, as it was."""
    module.to(device)
    Probe(module, device)(max(2 * module.data.stream.longest, min(512, module.config.data.batch_tokens)))
    module.to("cpu")


def make_trainer(
    config: TrainConfig, folder: RunFolder, callbacks: Sequence[pl.Callback], updates: int, strategy: WorldStrategy
) -> pl.Trainer:
    """Lightning's trainer: one endless epoch over the stream, validations by updates."""
    settings = config.trainer
    precision: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
    with warnings.catch_warnings():
        _silence_lightning()
        return pl.Trainer(
            accelerator=accelerator(settings),
            devices=1,
            strategy=strategy,
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
            logger=TensorBoardLogger(folder.path, name="", version=TENSORBOARD),
            callbacks=list(callbacks),
            # The environment keeps Lightning from reading that of a launcher, which `nmt.runs.world` does.
            plugins=[AtomicCheckpointIO(), LightningEnvironment()],
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


def device_of(settings: TrainerConfig, world: World) -> torch.device:
    """What this process computes on: GPU i is that of process i of a host.

    Raises:
        UserError: other processes were started than asked for, or there are fewer GPUs.
    """
    if settings.devices not in (1, world.local_size):
        how = f"{world.local_size} of {world.size} processes run here" if world.size > 1 else "this is one process"
        raise UserError(
            f"trainer.devices is {settings.devices}, but {how}; start by nmt train, or start as many by torchrun or "
            "srun and give --trainer.devices 1"
        )
    if accelerator(settings) == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    # srun can show each process its own GPU alone.
    if count == 1 and "SLURM_STEP_GPUS" in os.environ:
        return torch.device("cuda", 0)
    if world.local_size > count:
        raise UserError(
            f"{world.local_size} processes of this host want a GPU each, but it has {count}; start fewer, or give "
            "--trainer.device cpu"
        )
    return torch.device("cuda", world.local_rank)


def set_threads(settings: TrainerConfig, world: World) -> None:
    """Threads of torch: those asked for, or this process's share of the cores."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    elif world.local_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // world.local_size))


def _silence_lightning() -> None:
    """Keeps advice about data loader workers and the like from users who cannot act on it."""
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", module="lightning_fabric")
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
