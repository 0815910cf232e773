"""A GPU that is not there: torch's rules about devices, on a machine that has none.

Tensors on it say that they are on `cuda:0`, and their values lie in memory. An operation on them and on a
tensor of the CPU is refused, as torch would, and so is numpy; results are those of the CPU. So code can be
shown to put all of its tensors in one place. Not what a GPU computes, how fast, or with how much memory; and
no backward pass, for which torch would ask the driver.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda:0")

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}
"""On a GPU these take indices from the CPU, too."""


class PretendGPUTensor(Tensor):
    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "PretendGPUTensor":
        made: PretendGPUTensor = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device="meta",  # of a tensor on a GPU torch itself would ask the driver
        )
        made.values = values
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    def __repr__(self, **_: Any) -> str:
        return f"on a pretended GPU: {self.values!r}"

    def tolist(self) -> Any:
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the pretended GPU, used outside of `pretended_gpu`")


class _FromPython(TorchFunctionMode):
    """What torch makes of Python's numbers, for which it asks the driver at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if (
            func in (torch.tensor, torch.as_tensor)
            and torch.device(kwargs.get("device") or "cpu").type == "cuda"
        ):
            return func(*args, **{**kwargs, "device": "cpu"}).to(GPU)
        if func is Tensor.new_tensor and isinstance(args[0], PretendGPUTensor):
            return torch.tensor(*args[1:], dtype=kwargs.get("dtype", args[0].dtype)).to(GPU)
        return func(*args, **kwargs)


class _PretendedGPU(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is _aten._fused_sdp_choice.default:
            return 0  # the form that is made of matrix products
        if func in (_aten._pin_memory.default, _aten.pin_memory.default):
            return args[0].clone()
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        here = any(isinstance(tensor, PretendGPUTensor) for tensor in tensors)
        if here:
            _check_places(func, tensors)
        asked = kwargs.get("device")
        if asked is not None:
            here = torch.device(asked).type == "cuda"
            kwargs["device"] = torch.device("cpu")
            kwargs.pop("pin_memory", None)
        elif func is _aten.copy_.default:
            here = isinstance(args[0], PretendGPUTensor)
        # Of tensors that were made in inference mode no parameter of another module may be a part.
        with torch.inference_mode(mode=False), torch.no_grad():
            out = func(*tree_map(_values, args), **tree_map(_values, kwargs))
            if not here:
                return out
            # What works in place returns the tensor that it was given.
            given = {id(tensor.values): tensor for tensor in tensors if isinstance(tensor, PretendGPUTensor)}
            return tree_map(lambda value: given.get(id(value), _on_gpu(value)), out)


def _check_places(func: Any, tensors: list[Tensor]) -> None:
    """A number of the CPU, that is a tensor without dimensions, may stand beside tensors of a GPU."""
    beside = [tensor for tensor in tensors if not isinstance(tensor, PretendGPUTensor) and tensor.ndim]
    if not beside or func in _COPIES:
        return
    if func in _INDEXED and isinstance(tensors[0], PretendGPUTensor):
        values = tensors[-1:] if func is not _aten.index.Tensor else []
        beside = [tensor for tensor in values if not isinstance(tensor, PretendGPUTensor) and tensor.ndim]
        if not beside:
            return
    raise RuntimeError(f"{func}: tensors of cuda:0 and of the CPU, {[list(t.shape) for t in beside]}")


def _values(value: Any) -> Any:
    return value.values if isinstance(value, PretendGPUTensor) else value


def _on_gpu(value: Any) -> Any:
    plain = isinstance(value, Tensor) and not isinstance(value, PretendGPUTensor)
    return PretendGPUTensor(value) if plain else value


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """While it lasts, `.to("cuda:0")` and `device="cuda:0"` are served; nothing has gradients."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        # Asked for a tensor on a GPU, torch would look for the driver before it asks the mode.
        with torch.no_grad(), patch("torch.cuda._lazy_init"), _PretendedGPU(), _FromPython():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
