"""A generated task that needs no download: the target is the source's words in reverse order."""

import random
from dataclasses import dataclass

from nmt.errors import UserError
from nmt.fetch.split import Pair

# fmt: off
_LEXICON = [
    "the", "a", "my", "your", "one", "two", "red", "blue", "green", "old", "new", "small", "big", "good",
    "cat", "dog", "bird", "fish", "horse", "tree", "house", "door", "river", "road", "field", "book",
    "song", "bread", "apple", "water", "sees", "finds", "takes", "gives", "likes", "wants", "reads",
    "sings", "today", "now", "here", "there", "and", "or", "with", "under", "over", "never", "always",
    "home",
]
# fmt: on


@dataclass
class Reverse:
    """Options of `fetch: {kind: reverse}`.

    Attributes:
        train: pairs in train.
        dev: pairs in dev.
        test: pairs in test.
        min_words: words of the shortest line.
        max_words: words of the longest line.
        lexicon: number of different words, at most 50.
        seed: of the random generator.
    """

    train: int = 10_000
    dev: int = 200
    test: int = 200
    min_words: int = 2
    max_words: int = 8
    lexicon: int = 50
    seed: int = 1

    def __post_init__(self) -> None:
        if min(self.train, self.dev, self.test) < 1:
            raise UserError(f"fetch: train, dev and test are {self.train}, {self.dev}, {self.test}; at least 1 each.")
        if not 1 <= self.min_words <= self.max_words:
            raise UserError(f"fetch: min_words is {self.min_words} and max_words {self.max_words}; "
                            "needed is 1 <= min_words <= max_words.")  # fmt: skip
        if not 2 <= self.lexicon <= len(_LEXICON):
            raise UserError(f"fetch: lexicon is {self.lexicon}; choose from 2 to {len(_LEXICON)} words.")
        possible = sum(self.lexicon**n for n in range(self.min_words, self.max_words + 1))
        # Near the limit a new line is hard to find by chance.
        if 2 * (self.train + self.dev + self.test) > possible:
            raise UserError(
                f"fetch: {self.train + self.dev + self.test:,} different lines wanted, but only {possible:,} "
                "exist with these lengths and words; allow longer lines or fewer pairs."
            )


def generate_reverse(options: Reverse) -> dict[str, list[Pair]]:
    """Generates the splits; all sources are different, so no test line is in training."""
    generator = random.Random(options.seed)
    words = _LEXICON[: options.lexicon]
    lines: dict[str, None] = {}
    total = options.train + options.dev + options.test
    while len(lines) < total:
        length = generator.randint(options.min_words, options.max_words)
        lines[" ".join(generator.choices(words, k=length))] = None
    pairs = [(line, " ".join(reversed(line.split()))) for line in lines]
    held_out = options.dev + options.test
    return {"test": pairs[: options.test], "dev": pairs[options.test : held_out], "train": pairs[held_out:]}
