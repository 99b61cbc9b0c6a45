"""What all tests share: one torch thread, the measuring corpora, and a tiny seeded model."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from nmt.models import Recurrent, RNNsearchConfig, make_recurrent
from tests import CORPORA
from tests.trained import real_translator, reverse_runs  # noqa: F401

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Triton's kernels then run by numpy. Read when triton is imported, which torch does in its own time.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# A shell that runs the tests in the background has them ignore interruptions, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def corpora() -> Path:
    """Folder of real corpora for measuring; tests that need it skip without it."""
    if not CORPORA.is_dir():
        pytest.skip("needs the measuring corpora")
    return CORPORA


@pytest.fixture
def tiny_model():
    """A function that makes small random models; weights are large enough that they prefer something."""

    def make(vocabulary: int = 12, seed: int = 0, scale: float = 3.0, **config) -> Recurrent:
        torch.manual_seed(seed)
        shape = RNNsearchConfig(**{"embedding": 8, "hidden": 10, "dropout": 0.0, **config})
        model = make_recurrent(shape, vocabulary, vocabulary).eval()
        with torch.no_grad():
            model.output.weight.mul_(scale)
            model.output.bias.normal_()
        return model

    return make


@pytest.fixture
def traced(monkeypatch):
    """Regions are traced as for a compiler, and run by torch's own operations: quick, and no C++ compiler is needed."""
    from nmt import compilation

    monkeypatch.setattr(compilation, "_BACKEND", "aot_eager")
    torch._dynamo.reset()
    for name in ("attention", "dropout"):
        module = sys.modules[f"nmt.models.{name}"]
        for part in vars(module).values():
            if isinstance(part, compilation.Region):
                monkeypatch.setattr(part, "_compiled", None)
    monkeypatch.setattr(sys.modules["nmt.objectives.likelihood"]._exponentiate, "_compiled", None)


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory) -> Path:
    """Folder of a generated corpus: {train,dev,test}.{source,target}; tests must not change it."""
    from tests.unit.runs import write_corpus

    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def finished_run(small_corpus, tmp_path_factory) -> Path:
    """Folder of a run of 8 updates; tests must not change it."""
    from tests.unit.runs import make_config, train_quietly

    folder = tmp_path_factory.mktemp("runs") / "finished"
    train_quietly(make_config(folder, small_corpus, {"trainer.max_steps": 8}))
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(small_corpus):
    """A function that makes checkpoints of random models with real vocabularies (joint or separate)."""
    from nmt.checkpoint import Checkpoint
    from nmt.text.pairs import pairs_from_files
    from nmt.text.vocabulary import VocabularyConfig, train_vocabularies

    pairs = pairs_from_files(small_corpus / "train.source", small_corpus / "train.target")

    def make(joint: bool = True, seed: int = 0, **config) -> Checkpoint:
        vocabularies = train_vocabularies(pairs, VocabularyConfig(size=80 if joint else 60, joint=joint))
        torch.manual_seed(seed)
        shape = RNNsearchConfig(**{"embedding": 8, "hidden": 10, **config})
        model = make_recurrent(shape, *map(len, vocabularies)).eval()
        with torch.no_grad():
            model.output.weight.mul_(2)
        return Checkpoint(model, *vocabularies, {"languages": {"source": "aa", "target": "bb"}})

    return make


def random_batch(rows: int, vocabulary: int, longest: int, seed: int = 0, shortest: int = 2):
    """A batch of random ids that end in EOS; lengths count it."""
    from nmt.text.batching import Batch

    generator = torch.Generator().manual_seed(seed)

    def side() -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.randint(4, vocabulary, (rows, longest), generator=generator)
        lengths = torch.randint(shortest, longest + 1, (rows,), generator=generator)
        lengths[0] = longest
        for row, length in enumerate(lengths.tolist()):
            ids[row, length - 1] = 3
            ids[row, length:] = 0
        return ids, lengths

    source, target = side(), side()
    return Batch(*source, *target, indices=list(range(rows)), epoch=0)
