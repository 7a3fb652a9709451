"""A search whose steps are replayed on the CPU, by a recorder that does the work again, and what such steps change."""

import copy
from contextlib import nullcontext

import torch
from searchers import build_searcher

from nas.methods.cuda_graphs.replayed_module import replay
from nas.methods.first_order import FirstOrder
from nas.supernet.arch_params import ArchParams

CPU = torch.device("cpu")


class Again:
    """Records work by keeping it, and counts what was recorded."""

    device = CPU
    kept = 0

    def __init__(self):
        self.recorded = []

    def pool(self):
        return object()

    def rehearsing(self):
        return nullcontext()

    def record(self, work, pool):
        self.recorded.append(pool)
        return work

    def compose(self, places):
        return None


def searcher(supernet, sampler, recorder=None, device=CPU, precision=None):
    supernet = copy.deepcopy(supernet).train().to(device)
    if recorder is not None:
        replay(supernet, recorder)
    arch = ArchParams.from_model(supernet, generator=torch.Generator().manual_seed(1))
    arch.to(device, next(supernet.parameters()).dtype)  # or sums in another order would show in the logits' roundings
    return build_searcher(
        FirstOrder,
        supernet=supernet,
        arch=arch,
        sampler=sampler,
        weight_optim=torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9),
        arch_optim=torch.optim.Adam(arch.parameters(), lr=0.1),
        generator=torch.Generator().manual_seed(0),
        precision=precision,
    )


def batch(seed, device=CPU, dtype=torch.float64, size=8):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, 3, size, size, generator=generator, dtype=torch.float64).to(device, dtype)
    return images, torch.randint(3, (4,), generator=generator).to(device)


def steps(made, count=4, **kind):
    """All that changes in so many iterations: losses, logits, weights, statistics, momentum."""
    torch.manual_seed(3)  # what is random draws from torch's own generator
    losses = []
    for step in range(count):
        weights, arch = batch(2 * step, **kind), batch(2 * step + 1, **kind)
        losses += [made.weight_step(weights, 1.0).loss, made.arch_step(arch, weights, 1.0).loss]
    names = {weight: name for name, weight in made.supernet.named_parameters()}
    momentum = {f"momentum of {names[weight]}": s["momentum_buffer"] for weight, s in made.weight_optim.state.items()}
    return {
        "losses": torch.stack(losses),
        "logits": made.arch.logits.detach(),
        **made.supernet.state_dict(),
        **momentum,
    }


def assert_same(one, two, **tolerance):
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(value, two[name], **tolerance), name
