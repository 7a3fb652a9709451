"""Steps of torch's fused optimisers without the Python that torch runs around their kernels."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, optimizer as torch_optimizer

# Whether all parameters of an optimiser are of one device and type, by the optimisers that have been asked for.
ALIKE: WeakKeyDictionary[Optimizer, bool] = WeakKeyDictionary()


def alike(optimizer: Optimizer) -> bool:
    """Whether an optimiser has one group of parameters, which are plain tensors of one device and one type."""
    if len(optimizer.param_groups) > 1:
        return False
    if (found := ALIKE.get(optimizer)) is None:
        parameters = optimizer.param_groups[0]["params"]
        kinds = {(one.device, one.dtype) for one in parameters}
        found = ALIKE[optimizer] = len(kinds) == 1 and {type(one) for one in parameters} <= {Tensor, nn.Parameter}
    return found


def zero_gradients(optimizer: Optimizer) -> None:
    """Sets the gradients to None, like ``optimizer.zero_grad(set_to_none=True)``."""
    if type(optimizer).zero_grad is not Optimizer.zero_grad:
        optimizer.zero_grad(set_to_none=True)
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad = None


def clip(optimizer: Optimizer, learning: list[Tensor], gradients: list[Tensor], limit: float, norm: Tensor) -> None:
    """Does what `torch.nn.utils.clip_grads_with_norm_` does, to the last bit.

    learning: the parameters of the optimiser that have gradients, in their order.
    """
    if alike(optimizer):
        torch._foreach_mul_(gradients, torch.clamp(limit / (norm + 1e-6), max=1.0))
    else:
        nn.utils.clip_grads_with_norm_(learning, limit, total_norm=norm)


def fused_step(optimizer: Optimizer, learning: list[Tensor], gradients: list[Tensor]) -> bool:
    """Takes the step of a fused SGD, Adam or AdamW, to the last bit as its own ``step`` does.

    Does nothing and returns False for any other optimiser, for one with hooks or rare settings, while a profiler runs,
    and if a parameter has no state yet. The gradients must not be scaled. learning: as in `clip`.
    """
    if type(optimizer) not in (SGD, Adam, AdamW) or not alike(optimizer) or watched(optimizer):
        return False
    (group,) = optimizer.param_groups
    if not group["fused"] or not isinstance(group["lr"], float):
        return False
    states = [optimizer.state[parameter] for parameter in learning]
    take = with_momentum if type(optimizer) is SGD else with_moments
    with torch.no_grad():
        return take(group, states, learning, gradients)


def with_momentum(
    group: dict[str, Any], states: list[dict[str, Any]], learning: list[Tensor], gradients: list[Tensor]
) -> bool:
    """Takes the step of SGD. states: of the parameters."""
    momenta = [state.get("momentum_buffer") for state in states] if group["momentum"] else []
    if any(one is None for one in momenta):
        return False
    torch._fused_sgd_(
        learning,
        gradients,
        momenta,  # type: ignore[arg-type]
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        lr=group["lr"],
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        maximize=group["maximize"],
        is_first_step=False,
    )
    return True


def with_moments(
    group: dict[str, Any], states: list[dict[str, Any]], learning: list[Tensor], gradients: list[Tensor]
) -> bool:
    """Takes the step of Adam or AdamW. states: of the parameters."""
    beta1, beta2 = group["betas"]
    if group["amsgrad"] or group["capturable"] or isinstance(beta1, Tensor) or not all(states):
        return False
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1)
    (torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_)(
        learning,
        gradients,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        steps,
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=group["maximize"],
    )
    return True


def watched(optimizer: Optimizer) -> bool:
    """Whether something else than the step itself is to run when an optimiser takes a step."""
    return bool(
        "step" in vars(optimizer)
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
        or torch.autograd.profiler._is_profiler_enabled
    )
