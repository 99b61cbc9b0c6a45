"""A run killed at any moment ends in the bytes of one that was not; `python -m tests.crashes` has more moments."""

import pytest
import torch

from tests.crashes import Reference, run_trial

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    torch.set_num_threads(1)
    return Reference(tmp_path_factory.mktemp("reference"))


# Chosen so that they hold each kind of moment: before the first state, while one is written, and between.
@pytest.mark.parametrize("number", range(5))
def test_a_killed_run_goes_on_as_if_nothing_had_been(reference, tmp_path, number):
    assert run_trial(1, number, reference, tmp_path)
