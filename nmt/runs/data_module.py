"""Corpus to batches: reads the pairs, makes or takes the vocabularies, keeps the place in the stream."""

import hashlib
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from nmt.config import DataConfig, TrainerConfig
from nmt.corpus import load_card
from nmt.errors import UserError
from nmt.lines import atomic_path
from nmt.text.batching import Batch, Sampler, TrainingStream, collate, cut_longer, evaluation_batches
from nmt.text.buffering import BufferedStream
from nmt.text.encoding import EncodedCorpus, HeldCorpus, check_unknown, encode_pairs
from nmt.text.pairs import Bitext, Pairs, bitext_from_files, pairs_from_files
from nmt.text.tokenizer import TokenizerVocabulary
from nmt.text.vocabulary import SentencePiece, Vocabulary, VocabularyConfig, train_vocabularies

logger = logging.getLogger(__name__)


NO_BUDGET = 2**31
"""Of the stream until the budget is found (data.batch_tokens 0)."""
LARGEST_DECODED = 2**14
"""Tokens of a batch of a validation: larger ones are no faster, and beams need memory of their own."""
CHECKED = 10_000
"""Pairs of a buffered text of which the share of unknown pieces is looked at."""


class TranslationData(pl.LightningDataModule):
    """Training and dev batches.

    Its state is how many batches have been trained on, by all processes: batch b of the stream is a pure function of
    corpus, budget, seed and b, so a resumed run sees the very batches that an unbroken one sees, whatever the number of
    processes. With a buffer there is the place, too, where the text is read on.

    Args:
        config: section `data`.
        seed: of the vocabulary and of the order of the batches.
        vocabularies: of a checkpoint, source and target; None: trained on the training text. Those that
            config.vocabulary.renew names are trained, too.
        rank, world: which process of how many this is, see `TrainingStream`.
    """

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        vocabularies: tuple[Vocabulary, Vocabulary] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.trained_batches = 0
        self.train_text, self.dev_pairs = read_texts(config)
        cache = Path(config.cache) if config.cache else default_cache()
        # Of a text that does not fit into memory the first pairs stand for all.
        known = self.train_text.head(config.buffer) if config.buffer else self.train_text
        self.source_vocabulary, self.target_vocabulary = both = choose_vocabularies(
            known, config.vocabulary, seed, cache, vocabularies
        )
        self._train_checksum = known.checksum()
        self.dev_corpus = self._encode(self.dev_pairs, cache)
        limits: dict[str, Any] = {"max_length": config.max_length, "sampling": config.vocabulary.sampling}
        limits |= {"sampled": config.vocabulary.sampled, "rank": rank, "world": world}
        budget = config.batch_tokens or NO_BUDGET
        self.stream: TrainingStream | BufferedStream
        if config.buffer:
            checked = HeldCorpus(itertools.islice(known, CHECKED), both)
            check_unknown(checked, known.name, both, config.max_unknown)
            self.stream = BufferedStream(self.train_text, both, config.buffer, budget, seed, **limits)
        else:
            corpus = self._encode(self.train_text, cache)
            self.stream = TrainingStream(corpus, budget, seed, vocabularies=both, **limits)
        self._dev_sampler: Sampler | None = None

    def set_positions(self, source: int | None, target: int | None) -> None:
        """The most pieces, EOS not counted, that the model has positions for. Longer training pairs are left out, dev
        pairs read up to there; both are counted."""
        self.stream.leave_out_longer(source, target)
        self._dev_sampler = cut_longer(self.dev_corpus, source, target, self.dev_pairs.name)

    @property
    def pairs(self) -> int | None:
        """Pairs to train on, those left out counted; None where they are not known beforehand."""
        return None if self.config.buffer else len(self.train_text)

    def set_budget(self, budget: int) -> None:
        """Batches of so many tokens from here on, in place of data.batch_tokens; none may have been trained on."""
        assert self.trained_batches == 0
        self.config = replace(self.config, batch_tokens=budget)
        self.stream.set_budget(budget)

    def _encode(self, pairs: Bitext | Pairs, cache: Path) -> EncodedCorpus:
        return encode_pairs(
            pairs, self.source_vocabulary, self.target_vocabulary, cache, max_unknown=self.config.max_unknown
        )

    def checksums(self) -> dict[str, str]:
        """sha256 of the texts (of a buffered one, its first pairs) and of the vocabularies."""
        return {
            "train": self._train_checksum,
            "dev": self.dev_pairs.checksum(),
            "source_vocabulary": self.source_vocabulary.checksum(),
            "target_vocabulary": self.target_vocabulary.checksum(),
        }

    def name_lines(self, rows: Sequence[int], most: int = 6, shown: int = 2, width: int = 60) -> str:
        """Where pairs stand in the training text, and how the first of them read.

        Args:
            rows: of the training corpus, in the order of the message.
            most: how many are named by number.
            shown: how many are told in full, either side cut off after `width` characters.
        """
        numbers = ", ".join(f"{row + 1:,}" for row in rows[:most])
        rest = f" and {len(rows) - most:,} more" if len(rows) > most else ""
        # A card's filter leaves lines out.
        kind = "pairs" if self.config.buffer or self.train_text.dropped else "lines"
        found = [lines for row in rows[:shown] if (lines := self.stream.lines(row)) is not None]
        texts = ", ".join(" -> ".join(_cut(line, width) for line in lines) for lines in found)
        return f"{kind} {numbers}{rest} of {self.train_text.name}" + f" (first {texts})" * bool(texts)

    def name_longest(self, rows: Sequence[int]) -> str:
        """As `name_lines`, with the longest pairs first."""
        return self.name_lines(sorted(rows, key=lambda row: (-self.stream.length(row), row)), most=4, shown=1)

    def train_dataloader(self) -> "NumberedBatches":
        self.stream.start_batch = self.trained_batches
        return NumberedBatches(self.stream)

    def updates(self, settings: TrainerConfig) -> int:
        """The updates that max_steps and max_epochs allow: whole ones, and one at least.

        The stream itself never ends, so that a run whose max_epochs is raised sees the batches that a run
        with the higher limit would have seen.
        """
        if settings.max_epochs is None:
            return settings.max_steps
        assert isinstance(self.stream, TrainingStream), "the configuration refuses max_epochs beside a buffer"
        batches = epoch = 0
        an_update = settings.accumulate * self.stream.world
        # To plan an epoch takes time: none is planned that max_steps does not reach.
        while epoch < settings.max_epochs and batches < settings.max_steps * an_update:
            batches += self.stream.batches_in_epoch(epoch)
            epoch += 1
        return min(settings.max_steps, max(1, batches // an_update))

    def val_dataloader(self) -> DataLoader:
        lengths = self.dev_corpus.source_lengths
        # Blank sources are not translated: their hypothesis is the empty line.
        rows = [int(row) for row in lengths.argsort() if lengths[row] > 0]
        tokens = min(self.config.batch_tokens, LARGEST_DECODED)
        budget = max(tokens, int(lengths.max()) + 1, int(self.dev_corpus.target_lengths.max()) + 1)
        planned = evaluation_batches([int(lengths[row]) for row in rows], budget)
        both = self.source_vocabulary, self.target_vocabulary
        batches = [
            collate(self.dev_corpus, [rows[place] for place in batch], 0, self._dev_sampler, both) for batch in planned
        ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        place = self.stream.state(self.trained_batches)
        return {"trained_batches": self.trained_batches} | ({"stream": place} if place else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trained_batches = state_dict["trained_batches"]
        # A run of a whole text has none.
        if state_dict.get("stream"):
            self.stream.restore(state_dict["stream"])


class NumberedBatches:
    """Batches with their number in the run, from which the randomness of a step is drawn."""

    def __init__(self, stream: TrainingStream | BufferedStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        first, world = self.stream.start_batch + self.stream.rank, self.stream.world
        return zip(itertools.count(first, world), self.stream, strict=False)


def _cut(line: str, width: int) -> str:
    return repr(line if len(line) <= width else f"{line[:width]}...")


def read_texts(config: DataConfig) -> tuple[Bitext | Pairs, Pairs]:
    """Training and dev text of a card or of files; the former is read pass by pass.

    Raises:
        UserError: nothing is named, a file is missing or unequal, a split is empty.
    """
    train: Bitext | Pairs
    if config.corpus:
        card = load_card(config.corpus, config.corpus_dir)
        direction = config.source_language, config.target_language
        train = card.bitext("train", *direction, streaming=bool(config.buffer))
        dev = card.read("dev", *direction)
    elif config.train_source and config.train_target and config.dev_source and config.dev_target:
        train = bitext_from_files(config.train_source, config.train_target)
        dev = pairs_from_files(config.dev_source, config.dev_target)
    else:
        raise UserError(
            "no training text is named; give data.corpus, or data.train_source, data.train_target, "
            "data.dev_source and data.dev_target"
        )
    if config.dev_lines:
        dev = dev.head(config.dev_lines)
    for pairs in (train, dev):
        if not any(source.strip() for source, _ in pairs):
            raise UserError(f"{pairs.name} has no text on its source side; give at least one sentence pair")
    return train, dev


def default_cache() -> Path:
    """`nmt` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nmt"


def choose_vocabularies(
    pairs: Bitext | Pairs,
    config: VocabularyConfig,
    seed: int,
    cache: Path,
    known: tuple[Vocabulary, Vocabulary] | None,
) -> tuple[Vocabulary, Vocabulary]:
    """The vocabularies of a model, but for those that are to be renewed; without a model those of the text.

    Raises:
        UserError: see `cached_vocabularies`, or a model of transformers would lose its tokenizer.
    """
    if known is None:
        return cached_vocabularies(pairs, config, seed, cache)
    if config.renew == "none":
        return known
    if any(isinstance(vocabulary, TokenizerVocabulary) for vocabulary in known):
        raise UserError(
            f"data.vocabulary.renew is {config.renew}, but the loaded model is of transformers and keeps its "
            "tokenizer; leave it out"
        )
    if config.renew == "both":
        return cached_vocabularies(pairs, config, seed, cache)
    source, target = cached_vocabularies(pairs, replace(config, joint=False), seed, cache)
    return (source, known[1]) if config.renew == "source" else (known[0], target)


def cached_vocabularies(
    pairs: Bitext | Pairs, config: VocabularyConfig, seed: int, cache: Path
) -> tuple[Vocabulary, Vocabulary]:
    """Trains the vocabularies, or takes them from the cache when text, settings and seed are the same."""
    settings = asdict(config)
    # Whether there was a model before does not matter to the pieces.
    del settings["renew"]
    made_of = [pairs.checksum(), sorted(settings.items()), seed]
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:24]
    names = ["joint"] if config.joint else ["source", "target"]
    paths = [cache / f"{key}.{name}.spm" for name in names]
    try:
        found: list[Vocabulary] = [SentencePiece(path.read_bytes()) for path in paths]
    except (OSError, UserError):
        logger.info("training a %s vocabulary of %d pieces", config.kind, config.size)
        both = train_vocabularies(pairs, config, seed)
        found = list(both[: len(names)])
        for path, vocabulary in zip(paths, found, strict=True):
            with atomic_path(path) as temporary:
                temporary.write_bytes(vocabulary.model)
    return found[0], found[-1]
