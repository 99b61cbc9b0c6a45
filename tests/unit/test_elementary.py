"""Elementary functions against torch's in float64."""

import pytest
import torch

from nmt.models.elementary import exp_, fast_tanh, tanh_

POINTS = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([-torch.inf, -100.0, -87.0, 0.0, 1e-6, 80.0, 100.0])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponentials(dtype):
    x = POINTS.to(dtype)
    expected = x.double().exp().to(dtype)
    assert exp_(x) is x
    torch.testing.assert_close(x, expected, rtol=2e-5 if dtype == torch.float32 else 1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh(dtype):
    x = POINTS.to(dtype)
    expected = x.double().tanh().to(dtype)
    torch.testing.assert_close(fast_tanh(x), expected, rtol=0, atol=2 * torch.finfo(dtype).eps)
    assert tanh_(x) is x
    torch.testing.assert_close(x, expected, rtol=0, atol=2 * torch.finfo(dtype).eps)
