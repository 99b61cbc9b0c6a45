"""Compiled regions against the same functions as they are, and what happens where nothing can be compiled."""

import logging
import shutil
import sys
from typing import Any

import pytest
import torch

from nmt import cli, compilation
from nmt.compilation import Region, compile_ahead, compiled_regions, prove_compiler
from nmt.errors import UserError
from nmt.models import RNNsearchConfig, make_recurrent
from nmt.models.attention import AdditiveAttention
from nmt.models.dropout import dropout
from nmt.objectives.likelihood import token_log_likelihood
from nmt.runs.journal import read_journal
from tests.unit.runs import make_config, train_quietly, write_corpus

compiles = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


def count():
    return compilation._Compiler.variants


def attend(slots, sources):
    """Contexts, attention and all gradients of additive attention."""
    torch.manual_seed(0)
    layer = AdditiveAttention(4, 6, 5).double()
    query = torch.randn(3, slots, 4, dtype=torch.float64, requires_grad=True)
    values = torch.randn(3, sources, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(sources) < torch.tensor([[sources], [2], [3]])
    keys, steps = layer.keys(values), layer.for_steps()
    found = [
        *layer(query, keys, values, mask),
        *steps(query, keys, values, mask),
        *steps(query[:2], keys, values, mask),
    ]
    loss = sum((part * torch.randn_like(part)).sum() for part in found)
    return *found, *torch.autograd.grad(loss, [query, values, *layer.parameters()])


@compiles
def test_attention_compiled_is_attention():
    expected = {(slots, sources): attend(slots, sources) for slots in (1, 2, 3) for sources in (4, 7)}
    with compiled_regions():
        attend(1, 5), attend(4, 5)
        before = count()
        for (slots, sources), parts in expected.items():
            torch.testing.assert_close(attend(slots, sources), parts)
    assert before and count() == before  # one program for all sizes, and one for a single slot


@compiles
def test_dropout_compiled_draws_and_drops_the_same():
    def drop(rows, p):
        torch.manual_seed(0)
        inputs = torch.randn(rows, 7, requires_grad=True)
        found = dropout(inputs, p, True)
        return found, *torch.autograd.grad((found * torch.randn(rows, 7)).sum(), inputs)

    cases = [(5, 0.3), (9, 0.3), (5, 0.6), (1, 0.3)]
    expected = [drop(*case) for case in cases]
    with compiled_regions():
        for case, parts in zip(cases, expected, strict=True):
            torch.testing.assert_close(drop(*case), parts, rtol=0, atol=0)


@compiles
@pytest.mark.parametrize("few", [25, 10**6])
def test_likelihood_compiled_in_bfloat16_is_near_that_of_float32(monkeypatch, few):
    monkeypatch.setitem(sys.modules["nmt.objectives.likelihood"]._LOGITS, "cpu", (few, few))
    torch.manual_seed(0)
    model = make_recurrent(RNNsearchConfig(embedding=6, hidden=8, dropout=0.0), 11, 11)
    features = torch.randn(7, 2 * 8 + 6 + 8, requires_grad=True)
    rows, tokens, weights = torch.tensor([0, 1, 1, 3, 6]), torch.randint(11, (5,)), torch.rand(5)
    wanted = [features, model.output.weight, model.output.bias]

    def measure(precise):
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            value, each = token_log_likelihood(model, features, rows, tokens, weights)
        return value, each, *torch.autograd.grad(value, wanted)

    exact = measure(True)
    with compiled_regions():
        found = measure(False)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.02)


def test_few_rows_and_no_compiler_run_as_they_are(traced):
    seen = []

    def double(x):
        seen.append(torch.compiler.is_compiling())
        return 2 * x

    part = Region(double)
    assert part(torch.ones(3)).sum() == 6 and seen == [False] and not part.compiles
    with compiled_regions():
        assert part(torch.ones(1)).sum() == 2 and seen == [False, False]
        with torch.inference_mode():
            assert part(torch.ones(3)).sum() == 6 and seen == [False] * 3
    assert part._compiled is None


def test_what_does_not_compile_ends_a_run_only_before_it_has_begun(traced, caplog):
    def branch(x):
        return x + 1 if x.sum() > 0 else x

    x = torch.ones(3)
    with compiled_regions():
        with pytest.raises(UserError, match=r"trainer.compile is true, but .*; install .*g\+\+.* or give"):
            Region(branch)(x)
        compile_ahead(lambda: None)
        part = Region(branch)
        assert part(x).sum() == 6 and part(x).sum() == 6
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1 and told[0].startswith("branch does not compile (") and "runs as it is" in told[0]


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    import torch._inductor.config

    config: Any = torch._inductor.config
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    with config.patch({"cpp.cxx": (str(tmp_path / "none" / "g++"),)}):
        yield


def test_no_compiler_is_told_before_anything_is_written(no_compiler, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "texts")
    files = [
        word
        for split in ("train", "dev")
        for side in ("source", "target")
        for word in (f"--data.{split}_{side}", f"texts/{split}.{side}")
    ]
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", *files, "--run", "run", "--trainer.compile", "true", "--trainer.device", "cpu"])
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and err.count("\n") == 1, err
    assert "trainer.compile is true, but torch.compile fails here: InvalidCxxCompiler" in err
    assert "install a C++ compiler" in err and "--trainer.compile false" in err
    assert not (tmp_path / "run").exists()


@compiles
def test_a_compiler_is_proven():
    prove_compiler(torch.device("cpu"))


@pytest.mark.parametrize(
    "options",
    [
        {"trainer.precision": "bf16"},
        {"objective": "soft_beam", "soft_beam.loss": "expected_bleu", "soft_beam.recompute": True},
    ],
)
def test_a_run_with_compiled_regions_is_the_run_without(traced, tmp_path, caplog, recwarn, options):
    corpus = write_corpus(tmp_path / "texts")
    losses, before = [], count()
    caplog.set_level(logging.INFO)
    for on in (False, True):
        train_quietly(make_config(tmp_path / str(on), corpus, {**options, "trainer.compile": on}))
        reports = read_journal(tmp_path / str(on) / "metrics.jsonl")
        losses.append([report["loss"] for report in reports if "loss" in report])
    assert count() > before and "trainer.compile: " in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    rounding = 2e-2 if "trainer.precision" in options else 1e-4
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=rounding, atol=rounding)
    assert not compilation._Compiler.on
