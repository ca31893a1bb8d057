"""Gradients inside ``torch.inference_mode``: of a classifier, a measurement or a likelihood while a model draws."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


@contextmanager
def differentiable() -> Iterator[None]:
    """Gradients are recorded within, also where a caller has turned them off with ``torch.inference_mode``.

    Tensors made under it are copied wherever a function takes them, so what is written into one in place is lost.
    """
    with torch.inference_mode(False), torch.enable_grad(), _InferenceCloned():
        yield


class _InferenceCloned(TorchFunctionMode):
    """Autograd refuses tensors made under ``torch.inference_mode``, a prompt's keys and values say, but not copies."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*tree_map(_ordinary, args), **tree_map(_ordinary, kwargs or {}))


def _ordinary(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value
