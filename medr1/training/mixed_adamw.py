"""AdamW for weights in half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw


def parameters_by_index(optimizer: Optimizer, stored: dict[str, Any]) -> dict[int, Tensor]:
    """The parameters of an optimizer, by their index in its stored state."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    indices = [index for group in stored["param_groups"] for index in group["params"]]
    return dict(zip(indices, parameters, strict=True))


class MixedPrecisionAdamW(AdamW):
    """AdamW that keeps a float32 copy of each weight and float32 moments.

    bfloat16 has 8 significant bits: near 0.02 its values are 1e-4 apart, so that an update of 1e-6 would be rounded
    away, and so would the decay of the second moment. The copy accumulates the updates, and the weight is the rounded
    copy. The optimizer state takes 12 bytes per weight instead of 4.
    """

    is_fused: ClassVar[bool] = False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Updates one weight, so that only one gradient at a time is held in float32."""
        state, device = self.state_of(parameter)
        if not state:
            state["step"] = torch.tensor(0.0)
            state["master"] = parameter.detach().to(device).to(torch.float32, copy=True)
            state["exp_avg"] = torch.zeros_like(state["master"])
            state["exp_avg_sq"] = torch.zeros_like(state["master"])
        assert parameter.grad is not None
        adamw(
            [state["master"]],
            [parameter.grad.to(device).float()],  # moved before it is converted, which takes no memory where it was
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            foreach=False,
            fused=self.is_fused,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        parameter.copy_(state["master"])

    def state_of(self, parameter: Tensor) -> tuple[dict[str, Any], torch.device]:
        """The state of a weight, empty before its first update, and where it is kept."""
        return self.state[parameter], parameter.device

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state in float32, because ``torch`` would cast it to the dtype of the weights."""
        super().load_state_dict(state_dict)
        for index, parameter in parameters_by_index(self, state_dict).items():
            for name, value in state_dict["state"].get(index, {}).items():
                if name != "step":
                    self.state[parameter][name] = value.to(parameter.device, copy=True)
