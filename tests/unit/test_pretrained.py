"""Encoder-decoders of transformers as our models: small seeded ones, beside what transformers makes of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from nmt.batching import Batch, pad
from nmt.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nmt.errors import UserError
from nmt.imports.hf import Options, load
from nmt.models import Pretrained, RNNsearchConfig
from nmt.objectives import CrossEntropy, CrossEntropyConfig, SoftBeam, SoftBeamConfig
from nmt.search import SearchConfig, beam_search, forced_search
from nmt.search.soft import SoftSearchConfig, soft_beam_search
from nmt.search.trace import trace_search
from nmt.vocabulary import VocabularyConfig
from tests.unit.pretrained import KINDS, SIZE, save

LIMIT = 30
FIRST_WORD = 6


@pytest.fixture(scope="module", params=KINDS)
def imported(request: Any, tmp_path_factory: Any) -> tuple[Any, Checkpoint]:
    """A network, and the model made of its folder, which has been in a model file."""
    folder = tmp_path_factory.mktemp(request.param)
    network = save(request.param, folder)
    path = folder / "model.safetensors"
    save_checkpoint(path, load(str(folder), Options()))
    return network, load_checkpoint(path)


def draw(
    model: Pretrained, rows: int, seed: int = 3, longest: int = 9
) -> tuple[list[list[int]], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, longest, (rows,), generator=generator).tolist()
    sentences = [torch.randint(FIRST_WORD, 51, (size,), generator=generator).tolist() for size in sizes]
    return sentences, *pad(sentences, model.padding, model.eos)


def framed(model: Pretrained, source: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
    """What transformers' own tokenizer would feed, from our ids."""
    config = model.config
    rows = [
        [*config.source_prefix, *row[: length - 1], *config.source_suffix]
        for row, length in zip(source.tolist(), lengths.tolist(), strict=True)
    ]
    width = max(map(len, rows))
    ids = torch.tensor([row + [model.padding] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def test_log_probabilities_are_those_of_transformers(imported: tuple[Any, Checkpoint]) -> None:
    network, checkpoint = imported
    model = checkpoint.model
    assert isinstance(model, Pretrained)
    _, source, lengths = draw(model, 200)
    _, target, target_lengths = draw(model, 200, seed=4)
    found = forced_search(model, source, lengths, target, target_lengths, SearchConfig())
    read = torch.cat([torch.tensor(model.config.start).expand(200, -1), target[:, :-1]], dim=1)
    with torch.no_grad():
        logits = network(**framed(model, source, lengths), decoder_input_ids=read).logits
    wanted = logits[:, len(model.config.start) - 1 :].log_softmax(dim=2).gather(2, target.unsqueeze(2)).squeeze(2)
    for one, row, length in zip(found, wanted, target_lengths.tolist(), strict=True):
        torch.testing.assert_close(torch.tensor(one.token_log_probabilities), row[:length], atol=1e-4, rtol=1e-4)


def test_greedy_search_finds_what_generate_finds(imported: tuple[Any, Checkpoint]) -> None:
    network, checkpoint = imported
    model = checkpoint.model
    assert isinstance(model, Pretrained)
    _, source, lengths = draw(model, 200)
    config = SearchConfig(beam_size=1, max_ratio=0, max_extra=LIMIT)
    ours = [found[0].tokens for found in beam_search(model, source, lengths, config)]
    start = model.config.start
    written = network.generate(
        **framed(model, source, lengths),
        decoder_input_ids=torch.tensor(start).expand(200, -1),
        num_beams=1,
        do_sample=False,
        max_new_tokens=LIMIT,
        forced_bos_token_id=None,
        suppress_tokens=sorted({model.padding, model.bos} - {model.eos}),
    )
    theirs = []
    for row in written[:, len(start) :].tolist():
        theirs.append(row[: row.index(model.eos)] if model.eos in row else row[: LIMIT - 1])
    assert ours == theirs
    assert len({tuple(one) for one in ours}) > 10


def test_the_soft_search_becomes_the_hard_one(imported: tuple[Any, Checkpoint]) -> None:
    model = imported[1].model
    _, source, lengths = draw(model, 20)
    with torch.no_grad():
        memory = model.encode(source, lengths)
        trace = trace_search(model, memory, torch.full((20,), 6), 3, 12)
        config = SoftSearchConfig(beam_size=3, candidates=12, temperature=1e-4)
        soft = next(iter(soft_beam_search(model, memory, 20, 1, config)))
    hard = trace.steps[0].candidates
    assert torch.equal(soft.selection.candidates.tokens[:, :3], hard.tokens[:, :3])
    torch.testing.assert_close(soft.after.scores, hard.scores[:, :3], atol=1e-3, rtol=1e-3)


def test_gradient_through_the_cache(imported: tuple[Any, Checkpoint]) -> None:
    """Of the scores of a soft search, against finite differences in float64, along a direction of all weights."""
    import copy

    model = copy.deepcopy(imported[1].model).double()
    _, source, lengths = draw(model, 3, longest=5)
    config = SoftSearchConfig(beam_size=2, candidates=6, temperature=1.0, damping=1.0)

    def value() -> torch.Tensor:
        memory = model.encode(source, lengths)
        steps = list(soft_beam_search(model, memory, 3, 3, config))
        return steps[-1].after.scores.sum()

    weights = [one for one in model.parameters() if one.requires_grad]
    grads = torch.autograd.grad(value(), weights, allow_unused=True)
    generator = torch.Generator().manual_seed(5)
    ways = [torch.randn(one.shape, generator=generator, dtype=one.dtype) for one in weights]
    for one, way in zip(weights, ways, strict=True):
        # Marian begins with padding, whose embedding has no gradient in torch.
        if len(one) == SIZE:
            way[model.padding] = 0.0
    slope = sum(float((way * grad).sum()) for way, grad in zip(ways, grads, strict=True) if grad is not None)

    def moved(distance: float) -> float:
        with torch.no_grad():
            for one, way in zip(weights, ways, strict=True):
                one.add_(way, alpha=distance)
            found = float(value())
            for one, way in zip(weights, ways, strict=True):
                one.add_(way, alpha=-distance)
        return found

    # T5's norm computes its variance in float32 whatever the weights are.
    step, tolerance = (1e-4, 1e-2) if model.config.network["model_type"] == "t5" else (1e-6, 1e-4)
    assert (moved(step) - moved(-step)) / (2 * step) == pytest.approx(slope, rel=tolerance, abs=1e-6)


@pytest.mark.parametrize(
    "objective",
    [
        CrossEntropy(CrossEntropyConfig()),
        SoftBeam(SoftBeamConfig(search=SoftSearchConfig(beam_size=2, candidates=6))),
        SoftBeam(SoftBeamConfig(loss="token", search=SoftSearchConfig(beam_size=2, candidates=6))),
    ],
    ids=["cross_entropy", "reachable_bleu", "token"],
)
def test_an_update_lowers_the_loss_on_its_batch(imported: tuple[Any, Checkpoint], objective: Any) -> None:
    import copy

    model = copy.deepcopy(imported[1].model).train()
    _, source, lengths = draw(model, 6)
    _, target, target_lengths = draw(model, 6, seed=4)
    batch = Batch(source, lengths, target, target_lengths, list(range(6)))
    before = {name: one.clone() for name, one in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    nll = []
    for update in range(4):
        torch.manual_seed(1)
        loss = objective(model, batch, update)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        nll.append(float(loss.figures["nll"]))
    assert any(not torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert nll[-1] < nll[0]


def test_a_run_keeps_the_tokenizer_and_the_settings(imported: tuple[Any, Checkpoint], tmp_path: Path) -> None:
    import copy

    from nmt.corpus import Pairs
    from nmt.data_module import choose_vocabularies
    from nmt.transfer import shape_of, transfer

    found = imported[1]
    both = found.source_vocabulary, found.target_vocabulary
    with pytest.raises(UserError, match="renew is target, but the loaded model is of transformers and keeps its tok"):
        choose_vocabularies(Pairs(["a"], ["a"], "x"), VocabularyConfig(renew="target"), 1, tmp_path, both)
    with pytest.raises(UserError, match="model.hidden is 3, but the loaded model is of transformers"):
        shape_of(found, RNNsearchConfig(hidden=3))
    done = transfer(found, copy.deepcopy(found), "m")
    assert done.loaded and not (done.reset or done.ignored or done.rows)
    lines = list(done.lines())
    assert lines[0].startswith("loaded all weights and vocabularies of m: ")
    assert lines[1].endswith("ignored: data.vocabulary but for its sampling and section model") and len(lines) == 2


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    import transformers

    with pytest.raises(UserError, match="cannot be opened"):
        load(str(tmp_path / "nothing"), Options())
    alone = tmp_path / "alone"
    transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    ).save_pretrained(alone)
    with pytest.raises(UserError, match="no encoder-decoder"):
        load(str(alone), Options())
    large = tmp_path / "large"
    save("marian", large)
    tokenizer = transformers.AutoTokenizer.from_pretrained(large)
    tokenizer.add_tokens([f"more{i}" for i in range(SIZE)])
    tokenizer.save_pretrained(large)
    with pytest.raises(UserError, match="embeddings for 60 alone"):
        load(str(large), Options())
    fitting = tmp_path / "fitting"
    save("marian", fitting)
    with pytest.raises(UserError, match="source_language"):
        load(str(fitting), Options(source_language="xx"))
