"""Demands on a hypothesis: against brute force with a large beam, and kept by any beam."""

import itertools
import random

import pytest
import torch

from nmt.errors import UserError
from nmt.search import Constraints, Demand, SearchConfig, beam_search
from tests.conftest import random_batch
from tests.unit.test_search import score_sequence

EOS = 3
# The first four are special; "b" and "c" go on with a word.
PIECES = ["", "", "", "", "▁a", "b", "▁ab", "c"]
SOURCE, LENGTHS = torch.tensor([[4, 5, EOS]]), torch.tensor([3])


def every_sequence(model, longest):
    """(log p / |y|, tokens) of all sequences of at most so many tokens and EOS, best first."""
    with torch.no_grad():
        memory = model.encode(SOURCE, LENGTHS)
        found = [
            (score_sequence(model, memory, tokens) / (length + 1), list(tokens))
            for length in range(longest)
            for tokens in itertools.product([1, 4, 5, 6, 7], repeat=length)
        ]
    return sorted(found, reverse=True)


def search(model, demand, beam_size=300, max_extra=4, **options):
    config = SearchConfig(beam_size, max_ratio=0, max_extra=max_extra, n_best=min(3, beam_size), **options)
    constraints = Constraints([demand], PIECES, eos=EOS, never=(0, 2))
    return beam_search(model, SOURCE, LENGTHS, config, constraints=constraints)[0]


def text_of(tokens):
    return "".join(PIECES[token] for token in tokens)


def times(tokens, phrase):
    """How often the tokens hold a phrase as whole words."""
    size = len(phrase)
    return sum(
        tuple(tokens[i : i + size]) == phrase and not text_of(tokens[i + size : i + size + 1])[:1].isalnum()
        for i in range(len(tokens))
    )


def says(tokens, words):
    """Whether pieces spell these words from the beginning of a word."""
    for end in range(1, len(tokens) + 1):
        text = "▁" + text_of(tokens[:end])
        if text.endswith(words) and not text[len(text) - len(words) - 1].isalnum():
            return True
    return False


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("prefix", [(4,), (5, 5), (6, 4, 7)])
def test_a_prefix_is_kept_and_the_rest_is_the_best(tiny_model, seed, prefix):
    model = tiny_model(vocabulary=8, seed=seed)
    expected = [found for found in every_sequence(model, 4) if tuple(found[1][: len(prefix)]) == prefix]
    for hypothesis, (score, tokens) in zip(search(model, Demand(prefix=prefix)), expected, strict=False):
        assert hypothesis.tokens == tokens
        assert hypothesis.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("phrases", [("ab",), ("c",), ("a", "b"), ("a▁a",), ("bc▁a",)])
def test_excluded_phrases_are_not_there_in_any_pieces(tiny_model, seed, phrases):
    model = tiny_model(vocabulary=8, seed=seed)
    allowed = [
        (score, tokens)
        for score, tokens in every_sequence(model, 4)
        if not any(says(tokens, phrase) for phrase in phrases)
    ]
    assert 0 < len(allowed) < len(every_sequence(model, 4))
    found = search(model, Demand(exclude=phrases))
    assert [hypothesis.tokens for hypothesis in found] == [tokens for _, tokens in allowed[:3]]


@pytest.mark.parametrize("phrase", [".", ",▁a", "a.", "!"])
def test_excluded_punctuation_is_not_there_wherever_it_stands(tiny_model, phrase):
    """A comma follows its word without a space; and a piece may hold more than what is excluded."""
    pieces = ["", "", "", "", "▁a", ".", "▁,", "a.", "▁!?", ","]
    model = tiny_model(vocabulary=10, seed=2)
    with torch.no_grad():
        memory = model.encode(SOURCE, LENGTHS)
        every = [
            (score_sequence(model, memory, tokens) / (length + 1), list(tokens))
            for length in range(4)
            for tokens in itertools.product([1, *range(4, 10)], repeat=length)
        ]

    def spelt(tokens):
        return "".join(pieces[token] for token in tokens)

    def there(tokens):
        # "a." is not there where the word is a longer one.
        text = "▁" + spelt(tokens)
        places = [at for at in range(len(text)) if text.startswith(phrase, at)]
        return any(not (text[at - 1].isalnum() and phrase[0].isalnum()) for at in places)

    allowed = [tokens for _, tokens in sorted(every, reverse=True) if not there(tokens)]
    config = SearchConfig(400, max_ratio=0, max_extra=4, n_best=50)
    constraints = Constraints([Demand(exclude=(phrase,))], pieces, eos=EOS, never=(0, 2))
    found = [one.tokens for one in beam_search(model, SOURCE, LENGTHS, config, constraints=constraints)[0]]
    # A phrase that ends in a letter may be the beginning of a longer word, and then the search may pass it over.
    assert not any(map(there, found))
    assert set(map(tuple, found[:20])) <= set(map(tuple, allowed))
    if not phrase[-1].isalnum():
        assert found == allowed[: len(found)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("phrases", [((4,),), ((4, 5),), ((6,), (4,)), ((6,), (6,)), ((4,), (4, 5))])
def test_a_large_beam_finds_the_best_that_holds_the_phrases(tiny_model, seed, phrases):
    model = tiny_model(vocabulary=8, seed=seed)

    def met(tokens):
        return all(times(tokens, phrase) >= phrases.count(phrase) for phrase in phrases)

    expected = [found for found in every_sequence(model, 4) if met(found[1])]
    # The limit leaves room for the phrases: 4 tokens and EOS among them.
    found = search(model, Demand(include=phrases), max_extra=4 - sum(map(len, phrases)))
    assert [hypothesis.tokens for hypothesis in found] == [tokens for _, tokens in expected[: len(found)]]
    assert found[0].score == pytest.approx(expected[0][0], abs=1e-4)


@pytest.mark.parametrize("beam_size", [1, 2, 3, 5, 8])
def test_demands_are_met_by_any_beam_and_in_any_batch(tiny_model, beam_size):
    model = tiny_model(vocabulary=8, seed=5)
    batch = random_batch(30, 8, 9, seed=1)
    generator = random.Random(beam_size)

    def some(low, high):
        return tuple(generator.choices([4, 5, 6, 7], k=generator.randint(low, high)))

    demands = []
    for row in range(30):
        # A phrase begins a word.
        include = tuple((generator.choice([4, 6]), *some(0, 2)) for _ in range(row % 4))
        demands.append(Demand(prefix=some(0, 2), include=include, exclude=() if row % 5 else ("c▁a",)))
    config = SearchConfig(beam_size, n_best=beam_size)
    constraints = Constraints(demands, PIECES, eos=EOS, never=(0, 2))
    together = beam_search(model, batch.source, batch.source_lengths, config, constraints=constraints)
    held = 0
    for row, (demand, found) in enumerate(zip(demands, together, strict=True)):
        assert found
        for hypothesis in found:
            assert tuple(hypothesis.tokens[: len(demand.prefix)]) == demand.prefix
            for phrase in demand.include:
                assert times(hypothesis.tokens, phrase) >= demand.include.count(phrase)
                held += 1
            assert not any(says(hypothesis.tokens, text) for text in demand.exclude)
        length = batch.source_lengths[row : row + 1]
        alone = beam_search(
            model,
            batch.source[row : row + 1, : int(length)],
            length,
            config,
            constraints=Constraints([demand], PIECES, eos=EOS, never=(0, 2)),
        )[0]
        assert [hypothesis.tokens for hypothesis in alone] == [hypothesis.tokens for hypothesis in found]
    assert held > 30


@pytest.mark.parametrize("beam_size", [1, 2, 5])
def test_a_model_that_would_always_go_on_with_the_word_meets_the_phrase(tiny_model, beam_size):
    model = tiny_model(vocabulary=8)
    with torch.no_grad():
        model.output.bias[7] = 30.0  # "c", which makes another word of any
    for most in range(2, 7):  # or the last token may happen to end the phrase
        for hypothesis in search(model, Demand(include=((4, 6),)), beam_size, max_extra=most):
            assert times(hypothesis.tokens, (4, 6)) == 1, text_of(hypothesis.tokens)


def test_no_demand_changes_nothing(tiny_model):
    model = tiny_model(vocabulary=8, seed=5)
    batch = random_batch(10, 8, 9, seed=1)
    constraints = Constraints([Demand()] * 10, PIECES, eos=EOS, never=(0, 2))
    config = SearchConfig(4, n_best=3)
    plain = beam_search(model, batch.source, batch.source_lengths, config)
    assert beam_search(model, batch.source, batch.source_lengths, config, constraints=constraints) == plain


@pytest.mark.parametrize("options", [{"groups": 5}, {"strategy": "sample"}])
def test_phrases_want_a_plain_beam(tiny_model, options):
    model = tiny_model(vocabulary=8)
    with pytest.raises(UserError, match="include"):
        search(model, Demand(include=((4,),)), beam_size=5, **options)
