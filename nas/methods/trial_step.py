"""Runs one trial step of a search before anything is written, to find errors early and to measure the step."""

import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.data.inputs import Batch
from nas.errors import ConfigError, DivergenceError, SpaceError
from nas.methods.estimate import Measured
from nas.methods.first_order import FirstOrder
from nas.methods.sampler import Gates, Uniform, draw, read_on_host
from nas.runtime import distributed
from nas.runtime.nonfinite import Guard, Reading
from nas.runtime.precision import take_step
from nas.runtime.runtime import peak_memory, seed_layers, synchronise
from nas.training.batch_norm import synchronised
from nas.training.distillation import attached, without_teacher
from nas.training.job import two_of
from nas.training.put_back import all_put_back
from nas.training.step_failure import Trial
from nas.training.task_state import changing, modules_of
from nas.training.unsaved_numbers import UnsavedNumbers

SEARCH = Trial("a step of the search", "search.batch_size", "optim@weight_optim")
MOST_CANDIDATES = 8  # of a choice that are tried one by one, on two examples each


def try_search(
    searcher: FirstOrder,
    weight_batch: Batch,
    arch_batch: Batch,
    *,
    temperature: float = 1.0,
    learns: bool = True,
) -> Measured | None:
    """Takes one weight step and one architecture step on full batches, at the precision of the search.

    If the sampler draws one candidate per choice, each candidate is first tried on two examples. All state is restored
    to the bit: weights, buffers, modes, logits, optimisers, scaler, guard, the sampler's and the global generators.
    learns: whether the search takes architecture steps at all.

    Returns the time and memory of the step, or None if a number is not finite: the search itself reports this error,
    with epoch and step. Raises SpaceError, naming the module, if the step fails.
    """
    supernet, device = searcher.supernet, searcher.arch.logits.device
    task = without_teacher(searcher.task)
    objects = [
        *(supernet, searcher.arch, searcher.weight_optim, searcher.arch_optim, searcher.scaler, searcher.guard),
        *(searcher.sampler, searcher.task, task, searcher.regulariser, searcher, *changing(task)),
    ]
    watched = {"supernet": supernet, "sampler": searcher.sampler, "task": task, **modules_of(task)}
    watched |= {"weight_optim": searcher.weight_optim, "arch_optim": searcher.arch_optim, "searcher": searcher}
    watched |= {} if searcher.regulariser is None else getattr(searcher.regulariser, "terms", {})

    def step() -> None:
        searcher.weight_step(weight_batch, temperature)
        if learns:
            searcher.arch_step(arch_batch, weight_batch, temperature)

    with (
        all_put_back(objects, device=device),
        synchronised(supernet),
        attached(searcher.task, supernet),
        SEARCH.explained(supernet, searcher.precision),
        supernet.register_forward_hook(refuse_auxiliary),
    ):
        searcher.guard = Quiet()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            seed_layers(torch.initial_seed())  # as in the search, where each process draws numbers of its own
            has_run = try_each_candidate(searcher, weight_batch, temperature)
            if not has_run or device.type == "cuda":  # a GPU's libraries choose kernels for each shape
                step()  # to warm up
            synchronise(device)
            numbers = UnsavedNumbers(watched)
            started = time.perf_counter()
            step()
            synchronise(device)
        except DivergenceError:
            return None
        seconds = time.perf_counter() - started
        numbers.say_which_changed()
        if learns and searcher.arch.logits.grad is None and not isinstance(searcher.sampler, Uniform):
            say_that_logits_rest(searcher.sampler)
        return Measured(seconds, peak_memory(device), device)


def refuse_auxiliary(module: nn.Module, inputs: object, outputs: object) -> None:
    if not isinstance(outputs, Tensor):
        raise SpaceError(
            f"in training the model returns a {type(outputs).__name__}, expected one tensor as in evaluation",
            fix="return no auxiliary outputs in a search; a derived network, which is built with affine=True, "
            "may return a pair of the outputs and the auxiliary outputs, see retrain.auxiliary_weight",
        )


def try_each_candidate(searcher: FirstOrder, batch: Batch, temperature: float) -> bool:
    """Takes a weight step on two examples with each candidate. Returns False if the sampler runs all candidates in
    every step, so that there is nothing to try."""
    each_drawn = list(each_candidate(searcher, temperature))
    if not each_drawn:
        return False
    searcher.weight_optim.zero_grad(set_to_none=True)
    for drawn in each_drawn:
        searcher.add_weight_gradient(two_of(batch), drawn)
    # One step for all of them: in small networks it takes as long as a pass.
    take_step(searcher.weight_optim, searcher.scaler, max_norm=searcher.grad_clip)
    return True


def say_that_logits_rest(sampler: object) -> None:
    if distributed.first():
        print(
            f"warning: the gates of the sampler {type(sampler).__name__} have no gradient, so the logits stay as they "
            "begin: compute the gates from the logits without detach(), or give the sampler what a LossSampler has",
            file=sys.stderr,
        )


class Quiet(Guard):
    """Lets every step pass. The search itself reports numbers that are not finite, with epoch and step."""

    def begin(self, *models: nn.Module) -> None:
        return None

    def passes(self, reading: Reading) -> bool:
        return True


def each_candidate(searcher: FirstOrder, temperature: float) -> Iterator[Gates]:
    """Yields gates that draw the first candidate of every choice, then the second candidate of every choice, and so on.

    Yields nothing if the sampler runs all candidates in every step.
    """
    arch = searcher.arch
    with torch.no_grad():
        gates = draw(searcher.sampler, arch, temperature, searcher.generator)
        if gates.weights[arch.padding].count_nonzero():  # no choice would read them
            raise ConfigError(
                f"the sampler {type(searcher.sampler).__name__} gives weights to the padding of choices with fewer "
                "candidates, expected 0 where the logits are -inf",
                fix="spread the weights over logits != -inf, e.g. by softmax(dim=-1)",
            )
        if gates.drawn is None:
            return
        sizes = arch.mask.sum(dim=-1)
        for index in range(min(MOST_CANDIDATES, arch.mask.shape[-1])):
            drawn = torch.full_like(sizes, index) % sizes
            weights = F.one_hot(drawn, arch.mask.shape[-1]).to(arch.logits)
            yield read_on_host([Gates(weights, drawn, shares=arch.shares())])[0]
