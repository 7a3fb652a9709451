"""The second-order architecture step of DARTS, which differentiates through one step of the weights."""

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from nas.data.inputs import Batch, each
from nas.errors import ConfigError
from nas.methods.first_order import FirstOrder, weights_frozen
from nas.methods.sampler import Gates
from nas.methods.state import SearchState
from nas.runtime import distributed
from nas.runtime.rng import Randomness
from nas.supernet.choice import gates
from nas.training.batch_norm import batch_norms, on_cpu
from nas.training.metrics import single_sum
from nas.training.weighing import WeighedLoss

METHODS = ("difference", "exact")
HALF = (torch.float16, torch.bfloat16)


class SecondOrder(FirstOrder):
    """Takes architecture steps on L_val(w', alpha), w' = w - xi (m buf + grad_w L_train(w, alpha) + wd w).

    w' are the weights after the next step of the weights' SGD, with its learning rate xi, momentum m and weight decay
    wd (Liu et al. 2019, eq. 7 and 8).
    method: ``exact`` differentiates twice by autograd. ``difference`` computes the mixed second derivative as a central
    difference with epsilon = radius / ||grad_w' L_val||, as the authors do: less memory, two more forward passes.
    For each draw of the gates, which serves all passes, a step costs three to four times a first-order step.
    Raises ConfigError for a sampler that is not relaxed (a hard gate has no useful second derivative), and for weights
    that are not trained by SGD.
    """

    def __init__(
        self, state: SearchState, *, method: str = "difference", radius: float = 0.01, **arguments: Any
    ) -> None:
        super().__init__(state, **arguments)
        if method not in METHODS:
            raise ConfigError(
                f"searcher.method must be one of {', '.join(METHODS)}, got {method!r}",
                fix="set searcher.method=difference",
            )
        if not radius > 0:
            raise ConfigError(f"searcher.radius must be > 0, got {radius:g}", fix="set searcher.radius=0.01")
        if not self.sampler.relaxed:
            raise ConfigError(
                f"second-order search needs a sampler whose gates are a smooth function of the logits, got "
                f"{type(self.sampler).__name__}",
                fix="set sampler=softmax, gumbel_softmax or dirichlet, or searcher=first_order",
            )
        if not isinstance(self.weight_optim, torch.optim.SGD):
            raise ConfigError(
                f"second-order search unrolls a step of SGD, got {type(self.weight_optim).__name__}",
                fix="set optim@weight_optim=sgd, or searcher=first_order",
            )
        if self.precision.name == "fp16":
            raise ConfigError(
                "second-order search differentiates gradients, and fp16 lacks the range, got runtime.precision=fp16",
                fix="set runtime.precision=bf16, or searcher=first_order",
            )
        halves = (name for name, one in self.supernet.named_parameters() if one.dtype in HALF and one.requires_grad)
        if method == "difference" and (half := next(halves, None)):
            raise ConfigError(
                f"searcher.method=difference shifts weights by less than 16 bits resolve, got {half} in 16 bits",
                fix="set searcher.method=exact, or hold the weights in float32, e.g. with runtime.precision=bf16",
            )
        norms = batch_norms(self.supernet)
        if method == "exact" and distributed.world() > 1 and norms and not on_cpu(norms):
            raise ConfigError(
                "searcher.method=exact differentiates twice, and torch's synchronised batch norms cannot, expected "
                f"one process on a GPU, got {distributed.world()}",
                fix="set searcher.method=difference, or start one process",
            )
        self.method = method
        self.radius = radius
        self.name_of: dict[Tensor, str] = {weight: name for name, weight in self.supernet.named_parameters()}
        self.named_weights: dict[str, Tensor] = {}  # that learn: see `_add_gradient`
        # One name for each module that holds a weight: see `_loss`.
        self.places: dict[str, str] = {
            f"{path}.{name}".lstrip("."): self.name_of[weight]
            for path, module in self.supernet.named_modules()
            for name, weight in module._parameters.items()
            if weight is not None
        }

    def _add_gradient(self, batch: Batch, weight_batch: Batch, drawn: Gates, factor: float) -> tuple[Tensor, Tensor]:
        # A frozen weight has no step to unroll. A hook may freeze others meanwhile.
        self.named_weights = {name: weight for weight, name in self.name_of.items() if weight.requires_grad}
        if not self.named_weights:
            return super()._add_gradient(batch, weight_batch, drawn, factor)
        gates_and_shares = packed(drawn)
        # The passes below end at this leaf between the logits and the gates. The backward pass through the sampler's
        # own graph runs once, at the end.
        leaf = gates_and_shares.detach().requires_grad_()

        noise = Randomness(leaf.device)
        train_loss, _ = self._loss(self.named_weights, leaf, weight_batch)
        slopes = self._gradients(train_loss, create_graph=self.method == "exact")
        # w' as a function of the gradient alone. So one backward pass gives both the direct part of the result and the
        # vector that multiplies the mixed second derivative.
        shared = distributed.means(slope.detach() for slope in slopes.values())
        cut = {name: slope.requires_grad_() for name, slope in zip(slopes, shared, strict=True)}
        loss, outputs = self._loss(self._next_weights(cut), leaf, batch)
        direct, *vector = torch.autograd.grad(loss, [leaf, *cut.values()], allow_unused=True)
        direct = torch.zeros_like(leaf) if direct is None else direct  # the batch used no choice
        # A weight that only other processes have used gets a gradient of zeros here.
        elsewhere = distributed.missing_somewhere([v is not None for v in vector])
        by_name = {
            name: torch.zeros_like(cut[name]) if v is None else v
            for name, v, used in zip(cut, vector, elsewhere, strict=True)
            if used or v is not None
        }
        by_name = dict(zip(by_name, distributed.means(by_name.values()), strict=True))

        product = self._exact if self.method == "exact" else self._difference
        gates_and_shares.backward(factor * (direct + product(leaf, slopes, by_name, weight_batch, noise)))
        return loss.detach(), single_sum(self.task.measure(outputs.detach(), batch[1]))

    def _exact(
        self, leaf: Tensor, slopes: dict[str, Tensor], vector: dict[str, Tensor], weight_batch: Batch, noise: Randomness
    ) -> Tensor:
        """Returns d/d leaf <grad_w L_train, vector>."""
        names = [name for name in vector if slopes[name].requires_grad]
        (product,) = torch.autograd.grad(
            [slopes[name] for name in names], leaf, [vector[name] for name in names], allow_unused=True
        )
        return torch.zeros_like(leaf) if product is None else product

    def _difference(
        self, leaf: Tensor, slopes: dict[str, Tensor], vector: dict[str, Tensor], weight_batch: Batch, noise: Randomness
    ) -> Tensor:
        """Returns the same as (grad_leaf L_train(w + eps vector) - grad_leaf L_train(w - eps vector)) / (2 eps).

        noise: the random state of the pass that gave the slopes. Both sides repeat this noise, because a difference in
        dropout would be divided by 2 eps.
        """
        norm = torch.stack([v.norm() for v in vector.values()]).norm()
        epsilon = self.radius / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        sides: list[Tensor] = []
        with weights_frozen(self.weights):
            for sign in (1, -1):
                shifted = {
                    name: weight + sign * epsilon * vector[name] if name in vector else weight
                    for name, weight in self.named_weights.items()
                }
                with noise.again():
                    loss, _ = self._loss(shifted, leaf, weight_batch)
                found = torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None
                sides.append(torch.zeros_like(leaf) if found is None else found)
        return (sides[0] - sides[1]) / (2 * epsilon)

    def _loss(self, weights: dict[str, Tensor], leaf: Tensor, batch: Batch) -> Any:
        """The loss and the outputs of the supernet under these weights and the gates in `leaf`.

        Weights and gates are unset again before the backward pass. So activation checkpointing raises an error instead
        of using other weights.
        """
        # With tie_weights=True, a module that has two names would not get its own weights back.
        placed = {place: weights[name] for place, name in self.places.items() if name in weights}
        inputs, targets = batch
        unpacked = Gates(leaf) if self.arch.share_logits is None else Gates(leaf[:, :-1], shares=leaf[:, -1])
        by_key = unpacked.by_key(self.arch.keys, differentiable=True)
        whole = WeighedLoss(self.task, targets)
        with gates(self.choices, by_key), self.precision.autocast():
            outputs = functional_call(self.supernet, placed, each(inputs), tie_weights=False)
            return whole.loss(outputs, targets), outputs

    def _gradients(self, loss: Tensor, *, create_graph: bool) -> dict[str, Tensor]:
        """grad_w of the loss; zeros for an unused weight."""
        found = torch.autograd.grad(
            loss, list(self.named_weights.values()), create_graph=create_graph, allow_unused=True
        )
        return {
            name: torch.zeros_like(weight) if gradient is None else gradient
            for (name, weight), gradient in zip(self.named_weights.items(), found, strict=True)
        }

    def _next_weights(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights w' after one step of the weights' SGD, differentiable in the gradients."""
        following: dict[str, Tensor] = {}
        for group in self.weight_optim.param_groups:
            momentum, nesterov = group["momentum"], group["nesterov"]
            for weight in group["params"]:
                if (name := self.name_of.get(weight)) not in gradients:
                    continue
                step = gradients[name] + group["weight_decay"] * weight.detach()
                buffer = self.weight_optim.state[weight].get("momentum_buffer")
                # In torch the first momentum buffer is the first step itself, without dampening.
                moved = step if buffer is None else momentum * buffer + (1 - group["dampening"]) * step
                if momentum:
                    step = step + momentum * moved if nesterov else moved
                following[name] = weight.detach() - group["lr"] * step
        return following


def packed(drawn: Gates) -> Tensor:
    """(choices, candidates): the gates, with one more column for the shares if choices are weighed.

    Beside the weights, the loss depends on nothing else.
    """
    return drawn.weights if drawn.shares is None else torch.cat([drawn.weights, drawn.shares[:, None]], dim=-1)
