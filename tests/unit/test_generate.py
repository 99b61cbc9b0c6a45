"""Beam search as transformers' `generate` does it, on small seeded models of its own."""

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import LogitsProcessorList

from nmt.models import Pretrained
from nmt.search import SearchConfig, beam_search
from tests.unit.pretrained import KINDS, Case, framed, make_case, model_of, sources, targets

LIMIT = 12


class OurLimits:
    """No padding and no BOS in a translation, and EOS at the last place; probabilities remain the model's."""

    def __init__(self, model: Pretrained) -> None:
        self.model, self.start = model, len(model.config.start)

    def __call__(self, tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if tokens.shape[1] < self.start:
            return scores
        allowed = torch.ones_like(scores[0], dtype=torch.bool)
        if tokens.shape[1] == self.start + LIMIT - 1:
            allowed[:] = False
        else:
            allowed[[self.model.padding, self.model.bos]] = False
        allowed[self.model.eos] = True
        return scores.masked_fill(~allowed, -torch.inf)


@pytest.fixture(scope="module", params=(*KINDS, "mbart"))
def case(request: Any, tmp_path_factory: Any) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp("models") / request.param)


def let_end(case: Case, network: Any, model: Pretrained, by: float) -> None:
    """Raises the logit of EOS by about so much, where a random network would hardly ever end."""
    with torch.no_grad():
        memory = model.encode(*sources(case, 50))
        features = model.output_inputs(model.teacher_force(targets(case, 50)[0], memory)).flatten(0, 1)
        usual = features.mean(dim=0)
        model.network.get_output_embeddings().weight[model.eos] += by * usual / usual.square().sum()
    network.load_state_dict(model.network.state_dict())


@pytest.mark.parametrize(
    ("early_stopping", "stop", "penalty"), [(False, "present", 0.5), (True, "full", 1.0), ("never", "exact", 1.0)]
)
def test_beam_search_finds_what_generate_finds(case: Case, early_stopping: Any, stop: Any, penalty: float) -> None:
    network, model = copy.deepcopy((case.network, model_of(case)))
    let_end(case, network, model, 3.0)
    config = SearchConfig(5, alpha=penalty, max_ratio=0, max_extra=LIMIT, refill=True, stop=stop)
    ours = [found[0] for found in beam_search(model, *sources(case), config)]
    written = network.generate(
        **framed(case),
        num_beams=5,
        do_sample=False,
        early_stopping=early_stopping,
        length_penalty=penalty,
        max_new_tokens=LIMIT + model.forced,
        logits_processor=LogitsProcessorList([OurLimits(model)]),
        output_scores=True,
        return_dict_in_generate=True,
    )
    rows = written.sequences[:, len(model.config.start) :].tolist()
    theirs = [row[: row.index(model.eos)] for row in rows]
    assert [one.tokens for one in ours] == theirs
    torch.testing.assert_close(
        torch.tensor([one.score for one in ours]), written.sequences_scores, atol=1e-4, rtol=1e-4
    )
    assert len({tuple(one.tokens) for one in ours}) > 10
    assert any(len(one.tokens) < LIMIT - 1 for one in ours)
