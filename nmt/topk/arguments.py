"""What every top-k operator demands of its arguments, checked once and with one wording."""

import math
from typing import Any

import torch
from torch import Tensor

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def is_captured(x: Tensor) -> bool:
    """Whether a CUDA graph is captured, so that no value can be read, and none refused."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def check_scores(scores: Tensor) -> None:
    """Checks type and shape; the values are checked where they are first read (`check_values`).

    Raises:
        ValueError: not a floating-point tensor of shape (..., n) with n >= 1.
    """
    if scores.dtype not in _FLOATS:
        raise ValueError(
            f"scores must be float64, float32, bfloat16 or float16, not {scores.dtype}: convert them first"
        )
    if scores.dim() == 0 or scores.shape[-1] == 0:
        raise ValueError(
            f"scores must have shape (..., n) with n >= 1, not {tuple(scores.shape)}: "
            "add a last dimension of candidates"
        )


def check_k(k: int, n: int) -> None:
    """Checks a number of slots.

    Raises:
        ValueError: k is no int, or is outside 1..n.
    """
    if isinstance(k, bool) or not isinstance(k, int):
        raise ValueError(f"k must be an int, not {k!r} ({type(k).__name__})")
    if not 1 <= k <= n:
        raise ValueError(f"k must lie in 1..{n} (the number of candidates), not {k}: lower k or widen the candidates")


def check_temperature(temperature: float | Tensor, scores: Tensor) -> float | Tensor:
    """Returns a number, or a float64 tensor of shape () or scores.shape[:-1] that keeps its graph.

    The values of a tensor are checked where they may be read (`refuse_temperature`): not under vmap or compile.

    Raises:
        ValueError: a number that is not finite and positive, or a shape that does not fit the rows.
    """
    if not isinstance(temperature, Tensor):
        if not (0 < temperature < math.inf):
            raise ValueError(f"temperature must be finite and > 0, not {temperature}: for T = 0 use hard_topk")
        return float(temperature)
    rows = scores.shape[:-1]
    if temperature.dim() and temperature.shape != rows:
        raise ValueError(
            f"temperature must be a number, a 0-d tensor or one value a row, shape {tuple(rows)}, "
            f"not shape {tuple(temperature.shape)}"
        )
    return temperature.to(device=scores.device, dtype=torch.float64)


def refuse_temperature(temperature: float | Tensor) -> None:
    """Checks the values of a tensor.

    Raises:
        ValueError: a temperature that is not finite and positive.
    """
    if not isinstance(temperature, Tensor) or is_captured(temperature):
        return
    good = (temperature > 0) & (temperature < math.inf)
    if not bool(good.all()):
        bad = temperature.detach()[~good].flatten()[0].item()
        raise ValueError(f"temperature must be finite and > 0 in every row, not {bad}: for T = 0 use hard_topk")


def refuse_values(best: Tensor, shape: torch.Size, largest: bool) -> None:
    """Raises for the first row whose best score is NaN or infinite.

    Args:
        best: (rows,) the largest score of each row, NaN counting as the largest, after the sign change of
            `largest=False`.
        shape: the leading shape of the scores, to name the row.

    Raises:
        ValueError: a NaN or an infinity that is no mask.
    """
    good = best < math.inf
    if bool(good.all()):
        return
    bad = ~good
    flat = int(bad.nonzero()[0, 0])
    row: list[int] = []
    for size in reversed(shape):
        flat, position = divmod(flat, size)
        row.insert(0, position)
    mask, infinity = ("-inf", "+inf") if largest else ("+inf", "-inf")
    kind = "NaN" if math.isnan(best[bad][0].item()) else infinity
    where = f"row {row[0] if len(row) == 1 else tuple(row)}" if row else "the only row"
    raise ValueError(f"scores hold {kind} in {where}: mask candidates with {mask}, and look for the {kind} upstream")


def as_rows(
    scores: Tensor, k: int | Tensor, temperature: float | Tensor, largest: bool, ranked: bool
) -> tuple[Tensor, Any, float | Tensor]:
    """The arguments of an operator with all leading dimensions as one, (rows, n); the sign changed for the smallest.

    k, which must be an int if the result is `ranked`, and the temperature become float64 of shape () or (rows,) if they
    are tensors. Their values are for `refuse_k` and `refuse_temperature`.

    Raises:
        ValueError: scores, a number or a shape that no operator takes.
    """
    check_scores(scores)
    n = scores.shape[-1]
    if isinstance(k, Tensor) and not ranked:
        k = _one_a_row(k, "k must be an int", scores)
    else:
        check_k(k, n)  # type: ignore[arg-type]
    temperature = check_temperature(temperature, scores)
    if isinstance(temperature, Tensor) and temperature.dim():
        temperature = temperature.reshape(-1)
    return (scores if largest else -scores).reshape(-1, n).contiguous(), k, temperature


def _one_a_row(value: Tensor, wanted: str, scores: Tensor) -> Tensor:
    rows = scores.shape[:-1]
    if value.dim() and value.shape != rows:
        raise ValueError(
            f"{wanted}, a 0-d tensor or one value a row, shape {tuple(rows)}, not shape {tuple(value.shape)}"
        )
    value = value.to(device=scores.device, dtype=torch.float64)
    return value.reshape(-1) if value.dim() else value


def refuse_k(k: int | Tensor, n: int) -> None:
    """Checks the values of a tensor.

    Raises:
        ValueError: a value outside (0, n].
    """
    if not isinstance(k, Tensor):
        return
    good = (k > 0) & (k <= n)
    if not bool(good.all()):
        bad = k.detach()[~good].flatten()[0].item()
        raise ValueError(f"k must lie in (0, {n}] (the number of candidates) in every row, not {bad}")
