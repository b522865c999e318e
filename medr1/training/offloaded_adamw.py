"""AdamW whose state is in host memory."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from medr1.training.mixed_adamw import MixedPrecisionAdamW, parameters_by_index


class OffloadedAdamW(MixedPrecisionAdamW):
    """AdamW that keeps its float32 copies and moments, 12 bytes per weight, in host memory, and updates them there.

    A step copies each gradient to the host and the updated weight back, one weight at a time. The device holds weights
    and gradients alone. The state is kept outside of ``state``, because Lightning moves the tensors in it to the device
    of the weights when it loads a checkpoint. Source: ZeRO-Offload (arXiv 2101.06840), without overlap of copies and
    updates.
    """

    is_fused: ClassVar[bool] = True  # one pass over the memory in place of ten

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self._host: dict[Tensor, dict[str, Tensor]] = {}

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        if not parameter.is_meta:  # memory planning counts the memory of the device alone
            super()._update(parameter, group)

    def state_of(self, parameter: Tensor) -> tuple[dict[str, Any], torch.device]:
        return self._host.setdefault(parameter, {}), torch.device("cpu")

    def state_dict(self) -> dict[str, Any]:
        stored = super().state_dict()
        by_index = parameters_by_index(self, stored)
        return {**stored, "state": {i: self._host[p] for i, p in by_index.items() if p in self._host}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "state": {}})
        self._host = {
            parameter: {name: value.to("cpu", copy=True) for name, value in state_dict["state"][index].items()}
            for index, parameter in parameters_by_index(self, state_dict).items()
            if index in state_dict["state"]
        }
