"""One thread: how an operation is split over threads decides the last bit of its sums."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

from nmt.topk import use_kernels


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


NO_NUMBA = pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=NO_NUMBA)], ids=["torch", "kernels"])
def each_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """The tests that use it run by PyTorch's operations, and by the compiled kernels where they can."""
    with use_kernels(request.param):
        yield
