"""Models whose weights have shapes but no memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.modules.module import register_module_parameter_registration_hook


def skeleton(build: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Model that `build` returns, with fake parameters of `dtype` and real buffers.

    Buffers are small and computed from the configuration, such as the frequencies of a rotary embedding;
    parameters come from a file later, so each is replaced the moment it is registered.
    """
    with _fake_parameters(dtype), torch.no_grad():
        return build()


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor has a shape but no memory."""
    return isinstance(tensor, FakeTensor)


@contextmanager
def _fake_parameters(dtype: torch.dtype) -> Iterator[None]:
    # initializers may mix fake parameters with real tensors, and export adds the symbols of dynamic sizes
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())

    def replace(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or is_fake(parameter):
            return None
        kind = dtype if parameter.is_floating_point() else parameter.dtype
        with mode:
            empty = torch.empty_strided(parameter.shape, parameter.stride(), dtype=kind, device="cpu")
        return nn.Parameter(empty, requires_grad=False)

    handle = register_module_parameter_registration_hook(replace)  # type: ignore[arg-type]  # it may return one
    try:
        yield
    finally:
        handle.remove()
