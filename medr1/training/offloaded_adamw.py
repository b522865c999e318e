"""AdamW whose state is in host memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from medr1.training.mixed_adamw import MixedPrecisionAdamW, parameters_by_index


class OffloadedAdamW(MixedPrecisionAdamW):
    """AdamW that keeps its float32 copies and moments, 12 bytes per weight, in host memory, and updates them there.

    A step copies each gradient to the host and the updated weight back, one weight at a time. The device holds weights
    and gradients alone. The state is kept outside of ``state``, because Lightning moves the tensors in it to the device
    of the weights when it loads a checkpoint. Source: ZeRO-Offload (arXiv 2101.06840), without overlap of copies and
    updates.
    """

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self._host: dict[Tensor, dict[str, Tensor]] = {}

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        if parameter.is_meta:  # memory planning, which counts the memory of the device
            return
        assert parameter.grad is not None
        if parameter not in self._host:
            master = parameter.detach().to("cpu", copy=True).float()
            moments = {name: torch.zeros_like(master) for name in ("exp_avg", "exp_avg_sq")}
            self._host[parameter] = {"step": torch.tensor(0.0), "master": master, **moments}
        state = self._host[parameter]
        adamw(
            [state["master"]],
            [parameter.grad.to("cpu").float()],  # copied before it is converted, which takes no memory on the device
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,  # one pass over the memory in place of ten
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        parameter.copy_(state["master"].to(parameter.dtype))

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
