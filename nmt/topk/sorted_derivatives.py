"""Derivatives of the sorted operator to any order; see `plain_derivatives` for the way. Memory is O(n k).

Shapes: x (rows, n) float64; T (rows, 1); a solution (rows, 2, k) holds the origins and u = (tau - origin) / T, as
`thresholds` defines them, for the anchors 1..k.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from nmt.topk.rows import FAR, column
from nmt.topk.thresholds import HARD

# A threshold whose weights vary less moves nothing; the inverse of the root stays finite in all products.
_STIFF = 1e-200


class _Plan(NamedTuple):
    """The sorted plan: as `thresholds.Plan`, with o = (x - origin) / T (rows, k, n), 0 where the plan is hard."""

    p: Tensor
    c: Tensor
    d: Tensor
    o: Tensor
    soft: Tensor


def _plan(x: Tensor, T: Tensor, origin: Tensor, u: Tensor) -> _Plan:
    finite = (x > -torch.inf).unsqueeze(1)
    level = torch.arange(origin.shape[1], 0, -1, device=x.device).unsqueeze(1)
    # A threshold with no candidate below it belongs to a slot that takes all, or stays empty.
    soft = finite & (level < finite.sum(-1, keepdim=True))
    gap = torch.where(finite, x.unsqueeze(1), 0.0) - origin.unsqueeze(2)
    o = torch.where(soft, gap.clamp(-FAR, FAR) / T.unsqueeze(2), 0.0)
    hard = torch.where(finite, HARD, -HARD).to(x.dtype)
    steps = torch.where(soft, (o - u.unsqueeze(2)).clamp(-HARD, HARD), hard)
    p = pad(steps.cumsum(1), (0, 0, 1, 0)).softmax(1) * finite
    return _Plan(p, p.flip(1).cumsum(1).flip(1)[:, 1:], p.cumsum(1)[:, :-1], o, soft)


def _couple(plan: _Plan, v: Tensor) -> Tensor:
    """sum_m M_jm v_m of each candidate, M_jm = d_min(j,m) c_max(j,m) the change of c_j with offset m."""
    cv = plan.c * v
    return plan.c * (plan.d * v).cumsum(1) + plan.d * (cv.flip(1).cumsum(1).flip(1) - cv)


def _inverse(plan: _Plan, b: Tensor) -> Tensor:
    """K^-1 b, K = sum over the candidates of M; both (rows, k). 0 where a threshold is hard."""
    upper = plan.d @ plan.c.mT
    K = upper.triu() + upper.triu(1).mT
    diagonal = K.detach().diagonal(dim1=1, dim2=2)
    stiff = diagonal < _STIFF
    # A constant scale: the solution does not depend on it, and so neither do its derivatives.
    scale = torch.where(stiff, 0.0, torch.where(stiff, 1.0, diagonal).rsqrt())
    K = K * scale.unsqueeze(1) * scale.unsqueeze(2) + stiff.to(K.dtype).diag_embed()
    return scale * torch.linalg.solve_ex(K, (scale * b).unsqueeze(2)).result.squeeze(2)


class _Thresholds(torch.autograd.Function):
    """u with K du = sum over the candidates of M do, which keeps the mass of every slot."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, T: Tensor, origin: Tensor, u: Tensor) -> Tensor:
        return u.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3], output)
        ctx.save_for_forward(*inputs[:3], output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        T = ctx.saved_tensors[1]
        plan = _plan(*ctx.saved_tensors)
        t = _couple(plan, _inverse(plan, g).unsqueeze(2))
        return t.sum(1) / T, -(t * plan.o).sum((1, 2)).unsqueeze(1) / T, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dT: Tensor, *_: None) -> Tensor:
        T = ctx.saved_tensors[1]
        plan = _plan(*ctx.saved_tensors)
        do = torch.where(plan.soft, (dx.unsqueeze(1) - plan.o * dT.unsqueeze(2)) / T.unsqueeze(2), 0.0)
        return _inverse(plan, _couple(plan, do).sum(-1))


def _solved_plan(x: Tensor, T: float | Tensor, solution: Tensor) -> tuple[_Plan, Tensor]:
    x, T = x.double(), column(T, x)
    origin, u = solution.detach().unbind(1)
    return _plan(x, T, origin, _Thresholds.apply(x, T, origin, u)), T


def pull_sorted(g: Tensor, x: Tensor, T: float | Tensor, solution: Tensor) -> tuple[Tensor, Tensor]:
    """dL/dx (rows, n) and dL/dT (rows,) of g = dL/dA (rows, n, k); formulas at `thresholds.pull_back`."""
    plan, t = _solved_plan(x, T, solution)
    gp = pad(g.double().mT.flip(1), (0, 0, 1, 0)) * plan.p
    e = gp.flip(1).cumsum(1).flip(1)[:, 1:] * plan.d - gp.cumsum(1)[:, :-1] * plan.c
    scaled = e - _couple(plan, _inverse(plan, e.sum(-1)).unsqueeze(2))
    return scaled.sum(1) / t, -((scaled * plan.o).sum((1, 2)).unsqueeze(1) / t).squeeze(1)


def push_sorted(dx: Tensor, dT: Tensor, x: Tensor, T: float | Tensor, solution: Tensor) -> Tensor:
    """dA (rows, n, k): the logits move by the cumulative sum of do - du."""
    plan, t = _solved_plan(x, T, solution)
    do = (dx.double().unsqueeze(1) - plan.o * column(dT, x).unsqueeze(2)) / t.unsqueeze(2)
    do = torch.where(plan.soft, do, 0.0)
    step = do - _inverse(plan, _couple(plan, do).sum(-1)).unsqueeze(2)
    logits = pad(step.cumsum(1), (0, 0, 1, 0))
    dp = plan.p * (logits - (plan.p * logits).sum(1, keepdim=True))
    return dp[:, 1:].flip(1).mT
