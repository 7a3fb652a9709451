"""Compares gradient estimators, on the supernet of a search, with the gradient from the losses of many drawn networks.

The reference: networks are drawn from softmax(logits), each is run on one architecture batch, and their losses are
regressed on the candidate that each choice drew. The effects are E[L | candidate] - E[L], because the choices are drawn
independently, and the gradient of E[L] in a logit is p_k (E[L | k] - E[L]).
"""

import dataclasses
import itertools
import time

import numpy as np
import torch
from torch.nn.functional import cosine_similarity, one_hot

from nas.cli.stages.search import SearchStage
from nas.cli.stages.setup import Setup
from nas.methods.dirichlet import Dirichlet
from nas.methods.first_order import FirstOrder
from nas.methods.sampler import GDAS, GumbelSoftmax, Softmax
from nas.methods.score_function import ScoreFunction
from nas.settings.configuration import from_plain
from nas.storage import checkpoint_file
from nas.supernet.choice import gates


@dataclasses.dataclass(frozen=True)
class Case:
    """An estimator.

    steps: number of its steps, as a multiple of the number on the command line. Estimators that run every candidate
    cost as many times more as there are candidates, and get fewer steps.
    """

    name: str
    sampler: object
    temperature: float | None = None
    steps: float = 1.0


CASES = (
    *(Case(f"gdas {name}", GDAS(estimator=name), tau) for name in ("sampled", "autodl") for tau in (10, 1, 0.1)),
    Case("softmax", Softmax(), steps=0.15),
    Case("dirichlet", Dirichlet(), steps=0.15),
    Case("gumbel_softmax", GumbelSoftmax(), 1, steps=0.25),
    Case("gdas full", GDAS(estimator="full"), 1, steps=0.25),
    Case("gdas reinmax", GDAS(estimator="reinmax"), 1, steps=0.25),
    Case("score_function, 2 networks", ScoreFunction(samples=2)),
    Case("score_function, 2 networks, control", ScoreFunction(samples=2, control=True)),
    Case("score_function, 4 networks", ScoreFunction(samples=4), steps=0.5),
    Case("score_function, 4 networks, control", ScoreFunction(samples=4, control=True), steps=0.5),
)


def opened(path, *, allow=(), data_root=None):
    """Returns the search that wrote a checkpoint, in the state of the checkpoint.

    data_root: where its data are now; None if they have not moved.
    """
    state = checkpoint_file.load(path, "search")
    cfg = from_plain(state["config"], path)
    cfg.allow_targets, cfg.resume, cfg.benchmark = list(allow), None, None
    if data_root is not None:
        cfg.data.root = data_root
    stage = SearchStage(Setup.from_config(cfg))
    stage.state.load_state_dict(state, source=path)
    return stage


def endless(loader):
    return itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())


@torch.no_grad()
def losses_of_draws(stage, batches, count, generator):
    """Returns the drawn candidates (count, choices) and the losses (count,), each network on a batch of its own."""
    searcher, arch = stage.searcher, stage.state.arch
    sampler, drawn, losses = ScoreFunction(), [], []
    for _ in range(count):
        one = sampler(arch.masked(), 1.0, generator)
        with gates(searcher.choices, one.by_key(arch.keys, differentiable=False)):
            losses.append(searcher._forward(next(batches))[0])
        drawn.append(one.drawn)
    return torch.stack(drawn), torch.stack(losses)


def main_effects(drawn, losses, probs):
    """Returns (choices, candidates): E[L | candidate] - E[L] by least squares, and the explained share of variance."""
    indicators = one_hot(drawn, probs.shape[1]).flatten(1).double()
    centred = indicators - indicators.mean(dim=0)
    differences = losses.double() - losses.double().mean()
    solution = torch.linalg.lstsq(centred, differences[:, None], driver="gelsd").solution.squeeze(1)
    explained = 1 - ((differences - centred @ solution) ** 2).sum() / (differences**2).sum()
    effects = solution.view(probs.shape)
    return effects - (effects * probs).sum(dim=1, keepdim=True), float(explained)


def gradients(stage, case, batches, steps, generator):
    """Returns (steps, logits): the gradients of steps that change nothing; and the seconds per step."""
    arch = stage.state.arch
    resting = torch.optim.SGD(arch.parameters(), lr=0.0)
    state = dataclasses.replace(stage.state, sampler=case.sampler, arch_optim=resting, generator=generator)
    searcher = FirstOrder(state, task=stage.setup.task, precision=stage.setup.runtime.precision)
    found, started = [], time.process_time()
    for _ in range(steps):
        batch = next(batches)
        searcher.arch_step(batch, batch, case.temperature or 1.0)
        found.append(arch.logits.grad.detach().flatten().double())
    return torch.stack(found), (time.process_time() - started) / steps


def compared(found, true):
    """Returns the cosines of the mean and of one step with the true gradient, and the mean's length over its noise."""
    mean = found.mean(dim=0)
    noise = (found.var(dim=0).sum() / len(found)).sqrt()
    return {
        "steps": len(found),
        "cosine": float(cosine_similarity(mean, true, dim=0)),
        "cosine_of_one_step": float(cosine_similarity(found, true[None], dim=1).mean()),
        "length_over_noise": float(mean.norm() / noise),
        "length_over_true": float(mean.norm() / true.norm()),
    }


def table_effects(table, keys, candidates):
    """Returns (edges, operations): mean accuracy of the benchmark's cells with this operation, less the total mean."""
    cells = [table.genotype(index) for index in range(len(table))]
    accuracies = np.array([table.look_up(cell)[table.columns[0]].accuracy for cell in cells])
    return torch.tensor(
        [
            [accuracies[[cell.choices[key] == name for cell in cells]].mean() - accuracies.mean() for name in names]
            for key, names in zip(keys, candidates, strict=True)
        ]
    )


def agreement(effects, known):
    """Returns how far the effects on the loss and on the accuracy agree.

    These are the correlation over all effects, the number of edges with the same best operation, and the number of
    edges with the same order.
    """
    better = -effects
    return {
        "correlation": float(np.corrcoef(better.flatten(), known.flatten())[0, 1]),
        "edges_with_the_best_one": int((better.argmax(dim=1) == known.argmax(dim=1)).sum()),
        "edges_in_order": int((better.argsort(dim=1) == known.argsort(dim=1)).all(dim=1).sum()),
        "edges": len(known),
    }


def study(stage, *, draws, steps, seed, table=None, uniform=False, cases=CASES, say=print):
    """Returns everything that the script writes about one supernet. uniform: use equal logits instead of its own."""
    arch = stage.state.arch
    if uniform:
        arch.logits.data.zero_()
    stage.state.supernet.train()
    generator = torch.Generator().manual_seed(seed)
    batches = endless(stage.arch_loader)
    probs = arch.probs().detach().double()
    drawn, losses = losses_of_draws(stage, batches, draws, generator)
    effects, explained = main_effects(drawn, losses, probs)
    true = (probs * effects).flatten()
    halves = [
        (probs * main_effects(drawn[part], losses[part], probs)[0]).flatten()
        for part in (slice(None, draws // 2), slice(draws // 2, None))
    ]
    result = {
        "epoch": stage.state.epoch,
        "draws": draws,
        "seed": seed,
        "uniform": uniform,
        "mean_loss": float(losses.mean()),
        "explained": explained,
        "cosine_of_halves": float(cosine_similarity(*halves, dim=0)),
        "effects": {
            key: dict(zip(names, row, strict=False))
            for (key, names), row in zip(arch.candidates.items(), effects.tolist(), strict=True)
        },
    }
    say(
        f"{draws} networks: main effects explain {explained:.2f} of the variance, "
        f"the gradients of two halves have a cosine of {result['cosine_of_halves']:.2f}"
    )
    if table is not None:
        known = table_effects(table, arch.keys, arch.candidates.values())
        result["table"] = agreement(effects, known)
        say(f"with the table's effects: {result['table']}")
    say(
        "| estimator | tau | steps | cosine of the mean | of one step | mean / noise | s a step |\n"
        "|---|---|---|---|---|---|---|"
    )
    rows = []
    for case in cases:
        found, seconds = gradients(stage, case, batches, max(2, round(case.steps * steps)), generator)
        row = {"estimator": case.name, "temperature": case.temperature, **compared(found, true), "seconds": seconds}
        rows.append(row)
        tau = "-" if case.temperature is None else f"{case.temperature:g}"
        say(
            f"| {case.name} | {tau} | {row['steps']} | {row['cosine']:.2f} | {row['cosine_of_one_step']:.3f} "
            f"| {row['length_over_noise']:.1f} | {seconds:.3f} |"
        )
    return {**result, "rows": rows}
