"""What training would make of its text before the first update, made beforehand and counted."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nmt.config import DataConfig
from nmt.pool import Spread
from nmt.runs.data_module import choose_vocabularies, default_cache, read_texts
from nmt.text.encoding import EncodedCorpus, encode_pairs
from nmt.text.vocabulary import Vocabulary


@dataclass(frozen=True)
class EncodedSplit:
    """What is in the cache of a split; two numbers are of source and target.

    Attributes:
        name: the card's and the split's, or those of the files.
        pairs: how many.
        pieces: without the ends of the sentences.
        unknown: pieces that the vocabulary lacks.
        too_long: pairs with more than data.max_length pieces on a side; training leaves them out of train.
        path: the file.
        made: whether it was made now, or found.
    """

    name: str
    pairs: int
    pieces: tuple[int, int]
    unknown: tuple[int, int]
    too_long: int
    path: str
    made: bool


@dataclass(frozen=True)
class Preparation:
    """What training will find.

    Attributes:
        cache: the folder.
        vocabulary_sizes: pieces of source and target vocabulary.
        vocabulary_checksums: their sha256; equal ones are one joint vocabulary.
        splits: train, unless it is buffered, and dev.
    """

    cache: str
    vocabulary_sizes: tuple[int, int]
    vocabulary_checksums: tuple[str, str]
    splits: tuple[EncodedSplit, ...]

    def lines(self) -> Iterator[str]:
        """The report as text."""
        sides = ["source and target"] if len(set(self.vocabulary_checksums)) == 1 else ["source", "target"]
        for side, size, checksum in zip(sides, self.vocabulary_sizes, self.vocabulary_checksums, strict=False):
            yield f"vocabulary of {side}: {size:,} pieces, sha256 {checksum}"
        for split in self.splits:
            pieces, unknown = (f"{a:,} and {b:,}" for a, b in (split.pieces, split.unknown))
            too_long = f", {split.too_long:,} pairs too long to train on" if split is not self.splits[-1] else ""
            yield f"{split.name}: {split.pairs:,} pairs, {pieces} pieces, {unknown} unknown{too_long}"
            yield f"  {'made' if split.made else 'found'}: {split.path}"
        yield f"cache: {self.cache}"


def prepare(
    config: DataConfig,
    seed: int,
    vocabularies: tuple[Vocabulary, Vocabulary] | None = None,
    processes: int = 1,
    spread: Spread | None = None,
) -> Preparation:
    """Trains the vocabularies and encodes train and dev into the cache, as training with this section would.

    What is in the cache already is not made again; the test set is not encoded, for training never reads it.

    Args:
        config: section `data`.
        seed: of the run.
        vocabularies: of the model that training begins with (--from), source and target, those excepted that
            config.vocabulary.renew names; None: trained on the text.
        processes: how many encode; the files have the same bytes with any number.
        spread: computes instead of them, see `encode_pairs`.

    Raises:
        UserError: as in training: the text cannot be read, or not be encoded.
    """
    train, dev = read_texts(config)
    cache = Path(config.cache) if config.cache else default_cache()
    known = train.head(config.buffer) if config.buffer else train
    both = choose_vocabularies(known, config.vocabulary, seed, cache, vocabularies)
    splits = []
    # A buffered text is encoded while it is trained on.
    for part in (dev,) if config.buffer else (train, dev):
        before = _modified(cache)
        corpus = encode_pairs(part, *both, cache, max_unknown=config.max_unknown, processes=processes, spread=spread)
        made = before.get(corpus.path) != corpus.path.stat().st_mtime_ns
        splits.append(_split(part.name, corpus, both, config.max_length, made))
    return Preparation(
        str(cache), (len(both[0]), len(both[1])), (both[0].checksum(), both[1].checksum()), tuple(splits)
    )


def as_row(preparation: Preparation) -> dict[str, object]:
    """The report as what JSON can hold."""
    return dataclasses.asdict(preparation)


def _modified(cache: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cache.glob("encoded-*.arrow")}


def _split(
    name: str, corpus: EncodedCorpus, both: tuple[Vocabulary, Vocabulary], max_length: int, made: bool
) -> EncodedSplit:
    source, target = corpus.source_lengths, corpus.target_lengths
    return EncodedSplit(
        name=name,
        pairs=len(corpus),
        pieces=(int(source.sum(dtype="int64")), int(target.sum(dtype="int64"))),
        unknown=corpus.unknown_counts((both[0].special.unknown, both[1].special.unknown)),
        too_long=int(((source > max_length) | (target > max_length)).sum()),
        path=str(corpus.path),
        made=made,
    )
