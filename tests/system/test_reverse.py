"""The toolkit learns a task that can be learnt, by cross-entropy and then through the soft beam."""

import pytest

from nmt.corpus import load_card
from nmt.runs.journal import read_journal

pytestmark = pytest.mark.system


def exact_match(translator, folder, **options):
    test = load_card("reverse", folder / "corpus").read("test")
    translated = translator.translate(test.source, **options)
    return sum(h == r for h, r in zip(translated, test.target, strict=True)) / len(test)


def test_reverse_is_learnt_to_97_percent(reverse_runs):
    # Of 200 lines. Which of the last few are right depends on the masks of dropout and the processor's rounding.
    assert exact_match(reverse_runs.cross_entropy, reverse_runs.folder) >= 0.97
    assert exact_match(reverse_runs.soft_beam, reverse_runs.folder) >= 0.97
    assert exact_match(reverse_runs.soft_beam, reverse_runs.folder, beam_size=1) >= 0.97


def test_the_soft_beam_was_really_trained_through(reverse_runs):
    """Its loss was the soft one, its gradients stayed tame, and the weights moved."""
    reports = [r for r in read_journal(reverse_runs.folder / "soft_beam" / "metrics.jsonl") if "soft_nll" in r]
    assert reports
    assert all(0 <= report["gradient_norm"] < 20 for report in reports)
    before, after = (
        translator.model.target_embedding.weight for translator in (reverse_runs.cross_entropy, reverse_runs.soft_beam)
    )
    assert (before - after).norm() > 0


def test_expected_bleu_raises_what_it_maximises(reverse_runs, tmp_path):
    """From a half-trained model, the unrolled search's own BLEU goes up."""
    from nmt.runs.training import train
    from tests.trained import shipped

    common = {
        "data.corpus": "reverse",
        "data.corpus_dir": str(reverse_runs.folder / "corpus"),
        "data.cache": str(reverse_runs.folder / "cache"),
        "trainer.threads": 1,
    }
    weak = {"trainer.max_steps": 130, "trainer.validate_every": 130}
    train(shipped("quickstart_reverse.yaml", run=str(tmp_path / "weak"), **common, **weak))
    soft = {
        "soft_beam.loss": "expected_bleu",
        "soft_beam.cross_entropy": 0.0,
        "trainer.max_steps": 60,
        "trainer.validate_every": 60,
        "trainer.log_every": 10,
    }
    config = shipped("quickstart_reverse_soft_beam.yaml", run=str(tmp_path / "soft"), **common, **soft)
    train(config, start=tmp_path / "weak")
    bleu = [r["soft_bleu"] for r in read_journal(tmp_path / "soft" / "metrics.jsonl") if "soft_bleu" in r]
    assert sum(bleu[-3:]) / 3 > bleu[0] + 0.02
