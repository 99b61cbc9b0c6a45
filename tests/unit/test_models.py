"""RNNsearch as the search sees it: steps, padding, shapes, and nothing left behind in a module."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from nmt.errors import UserError
from nmt.models import RNNsearch, RNNsearchConfig, make_recurrent
from nmt.models.attention import AdditiveAttention
from nmt.models.recurrence import run_gru
from nmt.models.seq2seq import Seq2Seq
from nmt.objectives.objective import shifted
from nmt.tree import leaves, map_tree
from tests.conftest import random_batch

VARIANTS = [
    {"cell": cell, "encoder_layers": layers, "decoder_layers": layers, "readout": readout, "tied_embeddings": tied}
    for cell, layers, readout, tied in itertools.product(
        ("gru", "lstm"), (1, 2), ("maxout", "tanh"), ("none", "output", "all")
    )
]

MARIAN = [
    {"bridge": "mean", "attention_hidden": 7, "readout": "tanh"},
    {"bridge": "mean", "cell": "lstm", "decoder_layers": 3, "upper": "skip"},
    {"decoder_layers": 3, "upper": "last", "start": "eos"},
    {"layer_normalization": True, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0},
    {"layer_normalization": True, "cell": "lstm", "bridge": "mean", "readout": "tanh"},
]
LUONG = [
    {"decoder": "luong", **variant}
    for variant in (
        {"readout": "tanh"},
        {"cell": "lstm", "attention": "general", "input_feeding": True, "decoder_layers": 2, "bridge": "zero"},
        {"attention": "dot", "encoder_hidden": 5, "encoder_layers": 2, "decoder_layers": 2, "bridge": "layers"},
        {"cell": "lstm", "encoder_hidden": 5, "bridge": "relu", "readout": "linear", "source_end": False},
        {"bidirectional": False, "bridge": "last", "source_embedding": 6, "input_feeding": True},
        {"embedding": 10, "attention": "general", "input_feeding": True, "tied_embeddings": "all"},
        {"cell": "lstm", "encoder_layers": 2, "decoder_layers": 2, "bridge": "linear", "encoder_hidden": 3},
        {"bridge": "mean", "attention_hidden": 4, "output_size": 8, "tied_embeddings": "output", "start": "eos"},
    )
]


@pytest.mark.parametrize("decoder", ["conditional", "luong"])
@pytest.mark.parametrize("tied", ["none", "output", "all"])
def test_fresh_logits_are_about_as_large_whether_tied_or_not(decoder, tied):
    torch.manual_seed(1)
    config = RNNsearchConfig(hidden=64, embedding=64, decoder=decoder, tied_embeddings=tied)
    model = make_recurrent(config, 1000, 1000)
    logits = model.output(torch.randn(64, model.output.in_features))
    assert logits.std().item() == pytest.approx(1, rel=0.1)


def step_by_step(model, tokens, memory):
    state, logits = model.start(memory), []
    for position in range(tokens.shape[1]):
        new, state = model.step(model.embed(tokens[:, position : position + 1]), state, memory)
        logits.append(new)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("variant", VARIANTS + MARIAN + LUONG, ids=lambda v: "-".join(map(str, v.values())))
def test_every_variant_is_forced_as_it_steps_and_ignores_padding(tiny_model, variant):
    model = tiny_model(vocabulary=15, **variant)
    batch = random_batch(4, 15, 7)
    tokens = shifted(model, batch.target)
    with torch.no_grad():
        memory = model.encode(batch.source, batch.source_lengths)
        forced = model.project(model.teacher_force(tokens, memory))
        assert forced.shape == (4, 7, 15)
        torch.testing.assert_close(forced, step_by_step(model, tokens, memory))
        # Other padding, more padding: the same numbers.
        wide = torch.cat([batch.source, torch.zeros(4, 3, dtype=torch.long)], dim=1)
        noise = torch.randint(1, 15, wide.shape)
        padding = torch.arange(10) >= batch.source_lengths.unsqueeze(1)
        noisy = model.encode(torch.where(padding, noise, wide), batch.source_lengths)
        torch.testing.assert_close(model.project(model.teacher_force(tokens, noisy)), forced)
        # A sentence alone: the same numbers.
        for row in range(4):
            length = batch.source_lengths[row : row + 1]
            alone = model.encode(batch.source[row : row + 1, : int(length)], length)
            found = model.project(model.teacher_force(tokens[row : row + 1], alone))
            torch.testing.assert_close(found, forced[row : row + 1])


@pytest.mark.parametrize("variant", VARIANTS + MARIAN + LUONG, ids=lambda v: "-".join(map(str, v.values())))
def test_forced_without_padding_the_features_and_gradients_are_the_same(tiny_model, variant):
    model = tiny_model(vocabulary=15, **variant).double()
    batch = random_batch(5, 15, 7)
    tokens, there = shifted(model, batch.target), batch.target != model.padding
    found = []
    for packed in (False, True):
        model.zero_grad()
        memory = model.encode(batch.source, batch.source_lengths)
        if packed:
            features, places = model.forced_features(tokens, there, memory)
            features = features.new_zeros(there.numel(), features.shape[1]).index_copy(0, places, features)
        else:
            features = model.teacher_force(tokens, memory).flatten(0, 1) * there.flatten().unsqueeze(1)
        features.square().sum().backward()
        found.append([features.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        with torch.no_grad():
            kept = model.forced_features(tokens, there, memory)[0]
        assert kept.shape == (int(batch.target_lengths.sum()), features.shape[1])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_our_gru_is_torchs(layers, bidirectional):
    torch.manual_seed(3)
    gru = nn.GRU(5, 4, num_layers=layers, bidirectional=bidirectional, batch_first=True)
    values = torch.randn(6, 7, 5)
    lengths = torch.tensor([3, 7, 1, 7, 2, 5])
    found = []
    for run in (gru, partial(run_gru, gru)):
        gru.zero_grad()
        inputs = values.clone().requires_grad_()
        outputs, final = run(pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False))
        padded = pad_packed_sequence(outputs, batch_first=True)[0]
        (padded.square().sum() + final.sin().sum()).backward()
        found.append([padded, final, inputs.grad, *[p.grad.clone() for p in gru.parameters()]])
    torch.testing.assert_close(found[1], found[0])


def test_the_model_reads_all_of_the_source_and_of_the_prefix(tiny_model):
    model = tiny_model(vocabulary=15)
    batch = random_batch(1, 15, 6)
    tokens = shifted(model, batch.target)
    with torch.no_grad():
        logits = step_by_step(model, tokens, model.encode(batch.source, batch.source_lengths))
        for position in range(5):
            other = batch.source.clone()
            other[0, position] = 4 + (int(other[0, position]) - 3) % 11
            changed = step_by_step(model, tokens, model.encode(other, batch.source_lengths))
            assert not torch.allclose(changed[0, 0], logits[0, 0])
            prefix = tokens.clone()
            prefix[0, position] = 4 + (int(prefix[0, position]) - 3) % 11
            changed = step_by_step(model, prefix, model.encode(batch.source, batch.source_lengths))
            assert torch.equal(changed[0, :position], logits[0, :position])  # no look ahead
            assert not torch.allclose(changed[0, 5], logits[0, 5])


@pytest.mark.parametrize("variant", [{}, {"cell": "lstm", "decoder_layers": 3}, MARIAN[1], MARIAN[4], *LUONG])
def test_nodes_advance_as_slots_do(tiny_model, variant):
    """One row a node, in the model's own way and in the padded way of the interface, with their gradients."""
    model = tiny_model(**variant).double()
    batch = random_batch(4, 12, 5)
    memory = model.encode(batch.source, batch.source_lengths)
    inside = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0]]).bool()
    tokens = torch.tensor([[5, 6, 7], [4, 4, 4], [8, 4, 4], [9, 5, 4]])
    state = map_tree(lambda leaf: torch.cat([leaf, 0.5 * leaf, -leaf], dim=1), model.start(memory))
    advanced = model.advance(model.embed(tokens), state, memory)
    expected = [leaf[inside].unsqueeze(1) for leaf in leaves(tuple(advanced))]

    def gradient(found):
        value = sum(leaf.square().sum() for leaf in found)
        return torch.autograd.grad(value, next(model.encoder.parameters()), retain_graph=True)[0]

    nodes = map_tree(lambda leaf: leaf[inside].unsqueeze(1), state)
    for way in (type(model).advance_nodes, Seq2Seq.advance_nodes):
        found = way(model, model.embed(tokens[inside].unsqueeze(1)), nodes, memory, inside.nonzero()[:, 0])
        for one, other in zip(leaves(tuple(found)), expected, strict=True):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(gradient(leaves(tuple(found))), gradient(expected))


@pytest.mark.parametrize("variant", [{}, {"cell": "lstm", "decoder_layers": 3}])
def test_states_lead_with_batch_and_slots_and_memory_has_no_slots(tiny_model, variant):
    model = tiny_model(**variant)
    batch = random_batch(3, 12, 5)
    memory = model.encode(batch.source, batch.source_lengths)
    assert all(leaf.shape[0] == 3 for leaf in leaves(memory))
    assert memory.keys.shape == (3, 5, 10) and memory.values.shape == (3, 5, 20)
    state = model.start(memory)
    assert all(leaf.shape[:2] == (3, 1) for leaf in leaves(state))
    wide = tuple(tuple(part.expand(-1, 4, -1) for part in layer) for layer in state)
    advanced = model.advance(model.embed(torch.full((3, 4), 5)), wide, memory)
    assert all(leaf.shape[:2] == (3, 4) for leaf in leaves(advanced.state))
    assert [leaf.shape for leaf in leaves(advanced.state)] == [leaf.shape for leaf in leaves(wide)]
    assert advanced.attention.shape == (3, 4, 5)
    torch.testing.assert_close(advanced.attention.sum(2), torch.ones(3, 4))
    padding = torch.arange(5) >= batch.source_lengths.unsqueeze(1)
    assert (advanced.attention.masked_select(padding.unsqueeze(1)) == 0).all()


def test_keys_are_computed_once_a_batch(tiny_model, monkeypatch):
    calls = []
    original = AdditiveAttention.keys
    monkeypatch.setattr(AdditiveAttention, "keys", lambda self, values: calls.append(1) or original(self, values))
    model = tiny_model()
    used = []
    model.attention.key.register_forward_hook(lambda *_: used.append(1))
    batch = random_batch(3, 12, 6)
    memory = model.encode(batch.source, batch.source_lengths)
    step_by_step(model, shifted(model, batch.target), memory)
    assert len(calls) == len(used) == 1


@pytest.mark.parametrize("variant", [{}, {"cell": "lstm", "encoder_layers": 2, "decoder_layers": 2}])
def test_no_module_keeps_a_tensor_of_a_batch(tiny_model, variant):
    model = tiny_model(**variant)

    def snapshot():
        held = {}
        for path, module in model.named_modules():
            for name, value in vars(module).items():
                if name not in ("_parameters", "_modules"):
                    held[f"{path}.{name}"] = repr(value) if not isinstance(value, torch.Tensor) else id(value)
        return held

    before = snapshot()
    batch = random_batch(3, 12, 6)
    model.train()
    memory = model.encode(batch.source, batch.source_lengths)
    model.project(model.teacher_force(shifted(model, batch.target), memory)).sum().backward()
    model.eval()
    assert snapshot() == before
    assert list(model.buffers()) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(tiny_model, dtype):
    batch = random_batch(3, 12, 6)
    exact = tiny_model()
    model = tiny_model().to(dtype)
    tokens = shifted(model, batch.target)
    with torch.no_grad():
        expected = step_by_step(exact, tokens, exact.encode(batch.source, batch.source_lengths))
        found = step_by_step(model, tokens, model.encode(batch.source, batch.source_lengths))
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 0.2
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=tolerance)


def test_tied_embeddings_share_memory():
    def pointers(tied):
        model = RNNsearch(RNNsearchConfig(8, 10, tied_embeddings=tied), 12, 12)
        tables = model.source_embedding, model.target_embedding, model.output
        return [table.weight.data_ptr() for table in tables]

    assert [len(set(pointers(tied))) for tied in ("none", "output", "all")] == [3, 2, 1]
    with pytest.raises(UserError, match=r"12 and 13 pieces; use a joint vocabulary"):
        RNNsearch(RNNsearchConfig(8, 10, tied_embeddings="all"), 12, 13)


def test_dropout_acts_in_training_alone(tiny_model):
    model = tiny_model(dropout=0.5)
    batch = random_batch(3, 12, 6)
    tokens = shifted(model, batch.target)

    def run():
        return step_by_step(model, tokens, model.encode(batch.source, batch.source_lengths))

    assert torch.equal(run(), run())
    model.train()
    assert not torch.equal(run(), run())


@pytest.mark.parametrize("variant", [{}, {"cell": "lstm", "decoder_layers": 2, "encoder_layers": 2}, LUONG[1]])
def test_locked_dropout_is_drawn_once_a_sentence(tiny_model, variant):
    model = tiny_model(dropout=0.5, locked=True, **variant)
    batch = random_batch(3, 12, 6)
    tokens = shifted(model, batch.target)
    assert not model.steps_draw and tiny_model(dropout=0.5).steps_draw and not tiny_model(dropout=0.0).steps_draw

    def encode():
        return model.encode(batch.source, batch.source_lengths)

    plain = step_by_step(model, tokens, encode())
    assert encode().locks == ()
    model.train()
    memory = encode()
    logits = step_by_step(model, tokens, memory)
    assert torch.equal(step_by_step(model, tokens, memory), logits)  # all of it stands in the memory
    assert not torch.equal(step_by_step(model, tokens, encode()), logits)
    assert not torch.allclose(logits, plain)
    for lock in memory.locks:
        assert set(lock.unique().tolist()) == {0.0, 2.0}
        assert not torch.equal(lock[0], lock[1])
    # The same units of a sentence at all its source positions.
    dead = memory.values == 0
    for row, length in enumerate(batch.source_lengths.tolist()):
        assert dead[row, :length].all(dim=0).equal(dead[row, 0]) and 0 < dead[row, 0].sum() < dead.shape[2]
    # A row of a node takes its sentence's locks.
    sentences = torch.tensor([0, 0, 2])
    state = map_tree(lambda leaf: leaf[sentences], model.start(memory))
    embedding = model.embed(torch.tensor([[5], [6], [7]]))
    for way in (type(model).advance_nodes, Seq2Seq.advance_nodes):
        found = way(model, embedding, state, memory, sentences)
        for node, row in enumerate(sentences.tolist()):
            alone = map_tree(lambda leaf, row=row: leaf[row : row + 1], memory)
            mine = map_tree(lambda leaf, node=node: leaf[node : node + 1], state)
            expected = model.advance(embedding[node : node + 1], mine, alone)
            torch.testing.assert_close(found.features[node], expected.features[0])


def test_locked_dropout_keeps_the_expectation(tiny_model):
    """The mean of many draws of a lock comes close to 1."""
    model = tiny_model(dropout=0.3, locked=True).train()
    batch = random_batch(2, 12, 6)
    with torch.no_grad():
        locks = [model.encode(batch.source, batch.source_lengths).locks for _ in range(2000)]
    for place in range(2):
        mean = torch.stack([lock[place] for lock in locks]).mean(dim=0)
        torch.testing.assert_close(mean, torch.ones_like(mean), atol=0.06, rtol=0)
