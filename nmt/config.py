"""Everything that can be set in a training run: the sections and keys of a configuration file."""

import math
from dataclasses import dataclass, field
from typing import Literal

from nmt.adapters import LoraConfig
from nmt.errors import UserError
from nmt.models.recurrent import RNNsearchConfig
from nmt.objectives import BSOConfig, CrossEntropyConfig, MinRiskConfig, ScheduledSamplingConfig, SoftBeamConfig
from nmt.search import SearchConfig
from nmt.text.vocabulary import VocabularyConfig


@dataclass
class DataConfig:
    """What is trained on: a corpus card, or files of your own."""

    corpus: str | None = None
    """Name or path of a corpus card (see data/README.md)."""
    corpus_dir: str | None = None
    """Folder of the card's files, when it is not the one beside the card."""
    source_language: str | None = None
    """Which of the card's languages is the source, to swap its direction."""
    target_language: str | None = None
    """Which of the card's languages is the target."""
    train_source: str | None = None
    """Without a card: text file of the training sources, one sentence a line, plain or .gz."""
    train_target: str | None = None
    """Text file of their translations, line by line."""
    dev_source: str | None = None
    """Text file of the sources that early stopping translates."""
    dev_target: str | None = None
    """Text file of their translations."""
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    """The SentencePiece vocabularies, trained on the training text."""
    batch_tokens: int = 4096
    """Most tokens of a batch on either side, padding counted; 0: as many as memory holds (at most 8,192 on a CPU,
    131,072 on a GPU), found when the run begins and kept in its configuration."""
    buffer: int = 0
    """Pairs of the training text that are held at a time, where it does not fit into memory: it is read in order,
    encoded on the way and shuffled among so many, and the first so many train the vocabularies. 0: the whole text,
    encoded in the cache, shuffled as a whole."""
    max_length: int = 100
    """Training pairs with more pieces than this on either side are kept out, and counted."""
    max_unknown: float = 0.01
    """Largest share of unknown pieces in the training or dev text."""
    dev_lines: int = 0
    """How many lines of the dev set are translated at a validation; 0 is all."""
    cache: str | None = None
    """Folder of encoded corpora; by default nmt in the user's cache folder (XDG_CACHE_HOME)."""

    def __post_init__(self) -> None:
        _check_least("data", self, 1, "max_length")
        _check_least("data", self, 0, "batch_tokens", "buffer", "dev_lines")
        _check_most("data", self, 2**40, "buffer")
        if not 0 <= self.max_unknown <= 1:
            raise UserError(f"data.max_unknown is {self.max_unknown}; give a share from 0 to 1")
        files = [self.train_source, self.train_target, self.dev_source, self.dev_target]
        if self.corpus and any(files):
            raise UserError("data.corpus and data.train_source, ... are both given; give a card or files")
        if any(files) and not all(files):
            raise UserError(
                "files of your own are four: data.train_source, data.train_target, data.dev_source and "
                "data.dev_target; give all of them"
            )


@dataclass
class OptimizerConfig:
    """Adam and its learning rate."""

    name: Literal["adamw", "adam"] = "adamw"
    """adamw: decoupled weight decay (Loshchilov and Hutter, ICLR 2019); adam: Kingma and Ba, ICLR 2015."""
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the averages of the gradient and of its square."""
    weight_decay: float = 0.0
    """Of matrices; biases have none."""
    warmup: int = 500
    """Updates over which the learning rate rises linearly."""
    schedule: Literal["constant", "inverse_sqrt", "linear", "plateau"] = "inverse_sqrt"
    """After the warm-up. inverse_sqrt: lr * sqrt(warmup / update); linear: to 0 at trainer.max_steps;
    plateau: times plateau_factor whenever dev BLEU has not risen for plateau_patience validations."""
    plateau_factor: float = 0.5
    """See schedule."""
    plateau_patience: int = 2
    """See schedule."""

    def __post_init__(self) -> None:
        _check_choice("optimizer", self, name=("adamw", "adam"))
        _check_choice("optimizer", self, schedule=("constant", "inverse_sqrt", "linear", "plateau"))
        if not 0 < self.lr < math.inf:
            raise UserError(f"optimizer.lr is {self.lr}; give a positive number (0.001)")
        _check_least("optimizer", self, 0, "warmup", "weight_decay", "plateau_patience")
        if not 0 < self.plateau_factor < 1:
            raise UserError(f"optimizer.plateau_factor is {self.plateau_factor}; give a number between 0 and 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas are {self.betas}; give two numbers from 0 up to, not including, 1")


@dataclass
class TrainerConfig:
    """How long, how often, on what."""

    max_steps: int = 20_000
    """Updates at most; with max_epochs or max_minutes, whichever comes first."""
    max_epochs: int | None = None
    """Passes over the training text at most."""
    max_minutes: float | None = None
    """Wall time of training at most."""
    validate_every: int = 500
    """Updates from one beam translation of the dev set, and one checkpoint, to the next."""
    patience: int = 10
    """Validations without a better dev BLEU after which training stops; 0: never."""
    accumulate: int = 1
    """Batches an update, in each process; their gradient is that of all their tokens (or sentences) together."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: no clipping."""
    bad_steps: int = 10
    """Updates in a row whose loss or gradient is no number, which end the run. Fewer are skipped and counted."""
    precision: Literal["32", "bf16", "16"] = "32"
    """32: float32; bf16, 16: automatic mixed precision."""
    compile: bool = False
    """Whether what stands between the products of a step is compiled by torch.compile, which needs a C++ compiler and,
    when a run begins, up to a few minutes; what is compiled stays on disk (TORCHINDUCTOR_CACHE_DIR)."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: a GPU when there is one."""
    devices: int = 1
    """Processes on this host, each with a GPU of its own where there are any. torchrun and srun start the processes
    themselves; then leave it out."""
    threads: int = 0
    """Threads of torch on the CPU, in each process; 0: its own choice, shared out among the processes of this host."""
    log_every: int = 50
    """Updates from one line of the log to the next."""
    profile: int = 0
    """Batches that torch's profiler looks at, from the third on; table and trace are in the run's folder. 0: none."""
    keep: int = 0
    """How many of the last validated models the run's folder keeps, as model.UPDATE.safetensors, for nmt average; the
    validation at the end counts only if validate_every divides it. 0: the best one alone."""
    freeze: list[str] = field(default_factory=list)
    """Parameters that stay as they are, by patterns of their names (encoder.*, *embedding*) or the names of modules."""

    def __post_init__(self) -> None:
        _check_least(
            "trainer", self, 1, "max_steps", "validate_every", "accumulate", "bad_steps", "devices", "log_every"
        )
        _check_least("trainer", self, 0, "patience", "clip", "threads", "keep", "profile")
        # What starts more ends without a word from us.
        _check_most("trainer", self, 1024, "threads", "devices")
        _check_choice("trainer", self, precision=("32", "bf16", "16"), device=("auto", "cpu", "gpu"))
        if not all(self.freeze):
            raise UserError(
                "trainer.freeze has an empty pattern; give names of parameters (encoder.*), or leave it out"
            )
        for name in ("max_epochs", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"trainer.{name} is {value}; give a positive number, or leave it out")


@dataclass
class TrainConfig:
    """A training run."""

    run: str = "runs/nmt"
    """Folder of the run; it must not hold another run."""
    seed: int = 1
    """Seed of the weights, the order of the batches, dropout, and everything else."""
    data: DataConfig = field(default_factory=DataConfig)
    model: RNNsearchConfig = field(default_factory=RNNsearchConfig)
    objective: Literal["cross_entropy", "scheduled_sampling", "min_risk", "bso", "soft_beam"] = "cross_entropy"
    """What is minimised; the section of that name holds its settings."""
    cross_entropy: CrossEntropyConfig = field(default_factory=CrossEntropyConfig)
    scheduled_sampling: ScheduledSamplingConfig = field(default_factory=ScheduledSamplingConfig)
    min_risk: MinRiskConfig = field(default_factory=MinRiskConfig)
    bso: BSOConfig = field(default_factory=BSOConfig)
    soft_beam: SoftBeamConfig = field(default_factory=SoftBeamConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    """The beam search of the validations."""

    def __post_init__(self) -> None:
        if self.search.strategy != "beam":
            raise UserError(f"search.strategy is '{self.search.strategy}'; validations need a beam")
        _check_least("", self, 0, "seed")
        _check_most("", self, 2**63 - 1, "seed")
        _check_choice("", self, objective=("cross_entropy", "scheduled_sampling", "min_risk", "bso", "soft_beam"))
        if self.lora.rank and self.trainer.freeze:
            raise UserError(
                f"lora.rank is {self.lora.rank}, which freezes all but the adapters, and trainer.freeze is given, too; "
                "leave that out, and choose layers by lora.targets"
            )
        if self.data.buffer and self.trainer.max_epochs is not None:
            raise UserError(
                f"trainer.max_epochs is {self.trainer.max_epochs}, but data.buffer is {self.data.buffer}: how many "
                "updates an epoch has is not known beforehand; give trainer.max_steps"
            )
        if not self.run:
            raise UserError("run is empty; give the folder of the run")


def _check_least(section: str, config: object, least: int, *names: str) -> None:
    for name in names:
        # Not "value < least": that would let NaN pass.
        if not getattr(config, name) >= least:
            key = f"{section}.{name}".lstrip(".")
            raise UserError(f"{key} is {getattr(config, name)}; give {least} or more")


def _check_most(section: str, config: object, most: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) > most:
            key = f"{section}.{name}".lstrip(".")
            raise UserError(f"{key} is {getattr(config, name)}; give {most} or less")


def _check_choice(section: str, config: object, **choices: tuple[str, ...]) -> None:
    for name, known in choices.items():
        if getattr(config, name) not in known:
            key = f"{section}.{name}".lstrip(".")
            raise UserError(f"{key} is '{getattr(config, name)}'; choose {' or '.join(known)}")
