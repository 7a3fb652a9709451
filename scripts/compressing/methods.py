"""Ways to make a trained network smaller. Each returns it with choices in it, and what they are to be."""

import copy
import functools
import random as random_numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import nas
from compressing.training import ALIKE, AUGMENT, BATCH, DECIDED, SGD, decided
from nas.adapt import factorised, narrower, skip
from nas.adapt.insertion import Maker, Place
from nas.api.found import Found
from nas.data.image_folder import ImageFolder
from nas.data.loader import Loader
from nas.errors import ConfigError
from nas.methods.best_of import BestOf
from nas.methods.counted_costs import macs
from nas.methods.score_function import ScoreFunction
from nas.runtime.runtime import derived_seed
from nas.supernet.choice import choices
from nas.supernet.genotype import Genotype
from nas.supernet.mac_counter import MacCounter
from nas.training.inheritance import SupernetWeights
from nas.training.schedule import Constant

IMAGES = torch.zeros(2, 3, 32, 32)
BLOCKS = "stages.*.*"  # of the ResNet
LEAST_USED = 0.95  # of the cap, by a random network


@dataclass(frozen=True)
class Task:
    """What a method is to do. data: a folder of images. directory: for its files. macs: that the result may have.
    search_epochs: of weight updates, counted in epochs of fine-tuning. lr, arch_lr: of the weights and the
    logits in a search."""

    data: Path
    directory: Path
    macs: float
    seed: int
    search_epochs: int
    lr: float
    arch_lr: float


Method = Callable[[nn.Module, Task], tuple[nn.Module, Found]]


def both_convolutions(name: str, maker: Maker) -> Maker:
    """Candidates for a block, in which the maker's first candidates stand in for both of its 3x3 convolutions."""

    def replaced(block: nn.Module) -> nn.Module:
        for path in ("conv1", "conv2"):
            place = Place(path, getattr(block, path), (), {}, None)
            setattr(block, path, next(iter(maker(place).values())))
        return block

    return nas.adapt.other(name, replaced)


def candidates() -> list[Maker]:
    """What may stand in for a block, from 3/4 of its multiply-accumulates down to none."""
    ranks = [both_convolutions(f"rank_{part:g}", factorised(part)) for part in (0.5, 0.25, 0.125)]
    return [narrower(0.75, 0.5, 0.25, multiple_of=1), *ranks, skip()]


def searched(network: nn.Module, task: Task) -> tuple[nn.Module, Found]:
    """Single-path search by the score function; then the best of drawn architectures that hold the cap."""
    model = nas.insert(network, {BLOCKS: candidates()}, example=IMAGES)
    found = nas.search(
        model,
        task.data,
        # Half of the images are for the architecture, so an epoch has half of the updates.
        epochs=2 * task.search_epochs,
        warmup_epochs=task.search_epochs - 1,
        init_std=0.0,
        gap_batches=0,
        sampler=ScoreFunction(samples=2, control=True),
        arch_optim=functools.partial(torch.optim.Adam, lr=task.arch_lr, betas=(0.5, 0.999)),
        deriver=BestOf(samples=64, batches=16, rounds=4, by="loss"),
        cap={"macs": task.macs},
        weight_optim=functools.partial(SGD, lr=task.lr),
        lr=Constant(task.lr),
        seed=task.seed,
        directory=task.directory / "search",
        **ALIKE,
    )
    return model, found


def uniform(network: nn.Module, task: Task) -> tuple[nn.Module, Found]:
    """The largest ratio, the same in every block, that holds the cap."""
    widest = max(layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d))
    for kept in reversed(range(1, widest)):
        makers = narrower(kept / widest, multiple_of=1)
        model = nas.insert(copy.deepcopy(network), {BLOCKS: makers}, example=IMAGES)
        chosen = {key: names[-1] for key, names in names_in(model).items()}
        if macs(model, IMAGES[:1]).of(chosen) <= task.macs:
            return model, found_in(model, chosen)
    raise ConfigError(f"no ratio holds {task.macs:,.0f} multiply-accumulates", fix="raise --cap")


def random(network: nn.Module, task: Task) -> tuple[nn.Module, Found]:
    """Drawn uniformly from the architectures of `searched` that hold the cap and use nearly all of it."""
    model = nas.insert(network, {BLOCKS: candidates()}, example=IMAGES)
    cost, names = macs(model, IMAGES[:1]), names_in(model)
    generator = random_numbers.Random(derived_seed(task.seed, "random choices"))
    for _ in range(100_000):
        chosen = {key: generator.choice(of) for key, of in names.items()}
        if LEAST_USED * task.macs <= cost.of(chosen) <= task.macs:
            return model, found_in(model, chosen)
    raise ConfigError(
        f"no random network with {LEAST_USED:.0%} to 100% of {task.macs:,.0f} multiply-accumulates was found",
        fix="choose another --cap",
    )


def torch_pruning(network: nn.Module, task: Task, *, steps: int = 100, batches: int = 4) -> tuple[nn.Module, Found]:
    """Torch-Pruning with group Taylor importance (Molchanov et al. 2019; Fang et al. 2023).

    Channels of all layers compete, also those of the residual stream. A hundredth of them goes in each step, by the
    gradients of `batches` batches, until the cap holds.
    """
    try:
        import torch_pruning as tp
    except ImportError as error:
        raise ConfigError("torch_pruning is not installed", fix="pip install torch-pruning") from error

    bundle = ImageFolder(root=str(task.data)).training()
    loader = Loader(
        bundle.train,
        spec=bundle.spec,
        batch_size=min(BATCH, len(bundle.train)),
        device=torch.device("cpu"),
        seed=derived_seed(task.seed, "pruning batches"),
        augment=AUGMENT,
        shuffle=True,
        drop_last=True,
        what="batch_size",
    )
    endless = (batch for epoch in range(10**9) for batch in loader.epoch(epoch))
    pruner = tp.pruner.BasePruner(
        network,
        IMAGES,
        importance=tp.importance.GroupTaylorImportance(),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=steps,
        ignored_layers=[network.head],
    )
    network.train()
    groups = iter(())
    while macs_of(network) > task.macs:
        group = next(groups, None)
        if group is not None:
            group.prune()
            continue
        if pruner.current_step == steps:
            raise ConfigError(
                f"nothing is left to prune above {task.macs:,.0f} multiply-accumulates", fix="raise --cap"
            )
        network.zero_grad()
        for _ in range(batches):
            images, labels = next(endless)
            F.cross_entropy(network(images), labels).backward()
        groups = pruner.step(interactive=True)
    network.zero_grad()
    model = decided(network.eval())
    return model, found_in(model, DECIDED.choices)


METHODS: Mapping[str, Method] = {
    "searched": searched,
    "uniform": uniform,
    "random": random,
    "torch_pruning": torch_pruning,
}


def names_in(model: nn.Module) -> dict[str, list[str]]:
    """choice key -> its candidates."""
    return {key: list(sharing[0].names) for key, sharing in choices(model).items()}


def found_in(model: nn.Module, chosen: Mapping[str, str | None]) -> Found:
    """As if a search had chosen so, with the weights that the model has."""
    return Found(Genotype("custom", dict(chosen)), {}, {}, supernet=SupernetWeights.of(model))


@torch.no_grad()
def macs_of(network: nn.Module) -> int:
    """The multiply-accumulates for one image."""
    training = network.training
    network.eval()
    with MacCounter() as counter:
        network(IMAGES[:1])
    network.train(training)
    return counter.total
