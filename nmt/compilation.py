"""Regions of training that torch.compile may turn into one loop each (trainer.compile).

A region is a pure function of tensors, but for those that it says it writes to, and has no matrix product in it: what
stands between the products of a time step. A whole step, or the loop over steps, would be compiled anew for each length
and take minutes. The same Python function runs as it is where nothing is compiled, so that there is one definition;
what a compiler wants otherwise (one sum instead of blocks that a cache holds) asks `torch.compiler.is_compiling`.
"""

import contextlib
import functools
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from nmt.errors import UserError

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")
_BACKEND = "inductor"
# Of one region: dtypes, one or several slots, autocast, ...
_VARIANTS = 64


class _Compiler:
    """What compiles, while something does.

    Attributes:
        on: whether regions run compiled.
        strict: whether a failure ends the run; otherwise the region is told of and goes on as it is.
        seconds, variants: spent so far, and what for.
    """

    on = False
    strict = True
    seconds = 0.0
    variants = 0


class Region(Generic[_P, _R]):
    """A function that runs as it is, or compiled within `compiled_regions`; then it carries no gradient, which is for a
    torch.autograd.Function that calls it.

    Its first argument is a tensor. One with fewer than two rows is none of a compiler's business: torch makes a variant
    of its own for each dimension of size 1, and there is nothing to gain.
    """

    def __init__(self, function: Callable[_P, _R]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._compiled: Callable[..., Any] | None = None
        self._failed = False

    @property
    def compiles(self) -> bool:
        """Whether a call would run compiled, given enough rows."""
        # Validations decode in inference mode, whose tensors are a kind of their own.
        return _Compiler.on and not self._failed and not torch.is_inference_mode_enabled()

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        first: Any = args[0]
        if not self.compiles or len(first) < 2:
            return self.function(*args, **kwargs)
        return self._run(*args, **kwargs)

    def _run(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        from torch._dynamo.exc import TorchDynamoException
        from torch._dynamo.utils import counters

        if self._compiled is None:
            self._compiled = torch.compile(self.function, backend=_BACKEND, dynamic=True, fullgraph=True)
        # Not `detach`: whether one requires a gradient, and what it is a view of, would make variants.
        given = [arg.data if isinstance(arg, torch.Tensor) else arg for arg in args]
        before, began = counters["stats"]["unique_graphs"], time.perf_counter()
        try:
            result: _R = self._compiled(*given, **kwargs)
        except TorchDynamoException as error:
            # Nothing has been written to yet: compiling comes before running.
            if _Compiler.strict:
                raise _failure(error) from None
            self._failed = True
            logger.warning("%s does not compile (%s) and runs as it is", self.function.__name__, _cause(error))
            return self.function(*args, **kwargs)
        if new := counters["stats"]["unique_graphs"] - before:
            _Compiler.variants += new
            _Compiler.seconds += time.perf_counter() - began
        return result


def region(function: Callable[_P, _R]) -> Region[_P, _R]:
    """A decorator, see `Region`."""
    return Region(function)


@contextlib.contextmanager
def compiled_regions(on: bool = True) -> Iterator[None]:
    """Regions run compiled in the block, if `on`.

    Torch's threads are to be set before: their number is compiled in.
    """
    if not on:
        yield
        return
    import torch._dynamo
    import torch._inductor.config
    import torch.fx.experimental._config

    dynamo: Any = torch._dynamo.config
    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
    inductor: Any = torch._inductor.config
    shapes: Any = torch.fx.experimental._config
    before = _Compiler.on, _Compiler.strict
    levels = {name: logging.getLogger(name).level for name in ("torch._dynamo", "torch._inductor")}
    with (
        dynamo.patch({limit: _VARIANTS}),
        # In this process alone; and a program for another number of threads is not taken from the cache on disk.
        inductor.patch({"compile_threads": 1, "cpp.threads": torch.get_num_threads()}),
        # Two sizes that are equal once need not be so for ever.
        shapes.patch(use_duck_shape=False),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", module=r"torch\._(dynamo|inductor|functorch)")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        _Compiler.on, _Compiler.strict = True, True
        try:
            yield
        finally:
            _Compiler.on, _Compiler.strict = before
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def prove_compiler(device: torch.device) -> None:
    """Makes sure that something can be compiled for a device.

    Raises:
        UserError: it cannot.
    """
    with compiled_regions():
        Region(_probe)(torch.ones(2, 8, device=device))


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.exp() + 1


def compile_ahead(work: Callable[[], None]) -> None:
    """Lets `work` call the regions, within `compiled_regions`, and tells how long they took to compile. From then on a
    region that does not compile for what it is given is no mistake.

    Raises:
        UserError: one does not compile.
    """
    variants, seconds = _Compiler.variants, _Compiler.seconds
    work()
    _Compiler.strict = False
    new = _Compiler.variants - variants
    logger.info("trainer.compile: %d functions in %.0f s", new, _Compiler.seconds - seconds)


def compile_seconds() -> float:
    """Spent in this process so far."""
    return _Compiler.seconds


def _failure(error: BaseException) -> UserError:
    return UserError(
        f"trainer.compile is true, but torch.compile fails here: {_cause(error)}; install a C++ compiler (g++; CXX "
        "names another) with the headers of Python, for a GPU also Triton, or give --trainer.compile false"
    )


def _cause(error: BaseException) -> str:
    """The first line of what is behind an error of torch.compile."""
    inner = getattr(error, "inner_exception", None) or error.__cause__
    if inner is not None:
        return _cause(inner)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A compiler's own words stand somewhere below its command.
    told = next((line for line in lines if "error:" in line), lines[0] if lines else "")
    return f"{type(error).__name__} {told}".strip()[:300]
