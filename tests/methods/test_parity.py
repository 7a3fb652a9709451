"""Published networks, estimators, steps and derivers against their formulas, in float64.

Each row of the table "Parity" in scripts/README.md is a case here, or names another test. A case returns the largest
deviation between this project and a second implementation of a few lines, relative to the largest number of the latter.

    python -m pytest tests/methods/test_parity.py -s       prints the deviations
"""

import functools
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from searchers import build_searcher
from torch import nn

from nas.data.spec import ImageSpec
from nas.methods.deriver import TopPredecessors
from nas.methods.dirichlet import Dirichlet
from nas.methods.exponentiated_gradient import ExponentiatedGradient
from nas.methods.regulariser import BetaDecay
from nas.methods.sampler import GDAS, GumbelSoftmax, Softmax, draw
from nas.methods.score_function import ScoreFunction
from nas.methods.second_order import SecondOrder
from nas.spaces.darts import Darts
from nas.spaces.nas_bench_201 import NasBench201
from nas.spaces.nas_bench_201_notation import from_text
from nas.spaces.published import PUBLISHED
from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice, choices, gates
from nas.training.schedule import CosineByEpoch, Linear, LinearByEpoch, learning_rate, progress

TAU = 0.7
ALIVE = (0, 2, 3)  # seeds of draws; seed 1 draws `none` on every way to the output, where all gradients are 0


def images(size):
    return ImageSpec(
        name="images", input_shapes=((3, size, size),), class_names=tuple("abcd"), mean=(0.5,) * 3, std=(0.25,) * 3
    )


def batch(size, count=3):
    generator = torch.Generator().manual_seed(size)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64), torch.arange(count) % 4


def randomised(network):
    """In float64 and in training mode, with scales and shifts that are not 1 and 0."""
    network.double().train()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network


# -- the published networks as functions of their weights


def norm(x, scales=()):
    y = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    return y * scales[0][:, None, None] + scales[1][:, None, None] if len(scales) else y


def halved(x, module):
    even, odd = (parameter for parameter in module.parameters() if parameter.ndim == 4)
    x = F.relu(x)
    both = torch.cat([F.conv2d(x, even, stride=2), F.conv2d(x[:, :, 1:, 1:], odd, stride=2)], 1)
    return norm(both, vectors(module))


def vectors(module):
    return [parameter for parameter in module.parameters() if parameter.ndim == 1]


def operation(name, module, x, stride, *, search_norm):
    """One candidate. search_norm: whether pooling is followed by a norm, as in DARTS' supernet."""
    kind, _, side = name.rpartition("_")
    kernels, scales = [p for p in module.parameters() if p.ndim == 4], vectors(module)
    size = int(side[0]) if side[0].isdigit() else 0
    if name == "none":
        return torch.zeros_like(x[:, :, ::stride, ::stride])
    if name == "skip_connect":
        return x if stride == 1 else halved(x, module)
    if kind.endswith("pool"):
        pool = F.max_pool2d if kind == "max_pool" else functools.partial(F.avg_pool2d, count_include_pad=False)
        y = pool(x, size, stride, size // 2)
        return norm(y) if search_norm else y
    if kind == "nor_conv":
        return norm(F.conv2d(F.relu(x), kernels[0], stride=stride, padding=size // 2), scales)
    dilation = 2 if kind == "dil_conv" else 1
    for depthwise, pointwise in zip(kernels[::2], kernels[1::2], strict=True):
        x = F.conv2d(
            F.relu(x), depthwise, stride=stride, padding=dilation * (size // 2), dilation=dilation, groups=x.shape[1]
        )
        x, scales, stride = norm(F.conv2d(x, pointwise), scales[:2]), scales[2:], 1
    return x


def nas_bench_201(net, x, edge):
    x = norm(F.conv2d(x, net.stem[0].weight, padding=1), vectors(net.stem))
    for block in net.body:
        if hasattr(block, "graph"):
            nodes = [x]
            for node, incoming in enumerate(block.graph.edges, start=1):
                nodes.append(sum(edge(f"cell/{s}-{node}", e, nodes[s], 1) for s, e in enumerate(incoming)))
            x = nodes[-1]
        else:
            first, second = block.convs
            y = norm(F.conv2d(F.relu(x), first[1].weight, stride=2, padding=1), vectors(first))
            y = norm(F.conv2d(F.relu(y), second[1].weight, padding=1), vectors(second))
            x = F.conv2d(F.avg_pool2d(x, 2), block.shortcut[1].weight) + y
    x = F.relu(norm(x, vectors(net.norm)))
    return F.linear(x.mean((2, 3)), *net.head.parameters())


def darts(net, x, edge):
    """Returns the pair of scores and auxiliary scores (None without the head)."""
    count, auxiliary = len(net.cells), None
    before = last = norm(F.conv2d(x, net.stem[0].weight, padding=1), vectors(net.stem))
    for index, cell in enumerate(net.cells):
        reduction = index in (count // 3, 2 * count // 3)
        kind, nodes = "reduce" if reduction else "normal", []
        for given, module in ((before, cell.preprocess_before_last), (last, cell.preprocess_last)):
            if given.shape[-1] != last.shape[-1]:
                nodes.append(halved(given, module))
            else:
                nodes.append(norm(F.conv2d(F.relu(given), module[1].weight), vectors(module)))
        for node, incoming in enumerate(cell.graph.edges, start=2):
            terms = (
                edge(f"{kind}/{s}-{node}", e, nodes[s], 2 if reduction and s < 2 else 1) for s, e in enumerate(incoming)
            )
            nodes.append(sum(terms))
        before, last = last, torch.cat(nodes[2:], 1)
        if net.auxiliary is not None and index == 2 * count // 3:
            (first, second, weight), scales = (
                [p for p in net.auxiliary.parameters() if p.ndim > 1],
                vectors(net.auxiliary),
            )
            y = F.avg_pool2d(F.relu(last), 5, 3)
            y = F.relu(norm(F.conv2d(y, first), scales[:2]))
            y = F.relu(norm(F.conv2d(y, second), scales[2:4]))
            auxiliary = F.linear(y.flatten(1), weight, scales[4])
    return F.linear(last.mean((2, 3)), *net.head.parameters()), auxiliary


def deviation(got, expected):
    got, expected = (torch.cat([value.reshape(-1) for value in values]) for values in (got, expected))
    return ((got - expected).abs().max() / expected.abs().max()).item()


def derived(space, genotype, reference):
    network = randomised(space.network(images(32), genotype))
    x, labels = batch(32)

    def edge(key, module, h, stride):
        name = genotype.choices[key]
        return 0 if name is None else operation(name, module, h, stride, search_norm=False)

    results = []
    for run in (lambda: network(x), lambda: reference(network, x, edge)):
        scores = run()
        scores = [s for s in scores if s is not None] if isinstance(scores, tuple) else [scores]
        loss = sum(0.4**index * F.cross_entropy(s, labels) for index, s in enumerate(scores))
        results.append([*scores, *torch.autograd.grad(loss, list(network.parameters()), allow_unused=False)])
    return deviation(*results)


def derived_nas_bench_201(ops):
    text = "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|"
    space = NasBench201(ops=ops["nas_bench_201"], channels=4, cells=2)
    return derived(space, from_text(text), nas_bench_201)


def derived_darts(ops, name, cells=6):
    space = Darts(ops=ops["darts"], channels=4, cells=cells, auxiliary=True)
    return derived(space, PUBLISHED[name], darts)


# -- the estimators, through supernets


def gumbel(logits, seed):
    noise = torch.empty(logits.shape).exponential_(generator=torch.Generator().manual_seed(seed))
    return -noise.log().double()


def soft_sample(logits, seed):
    return ((logits.log_softmax(-1) + gumbel(logits, seed)) / TAU).softmax(-1)


def hard_sample(logits, seed):
    y = soft_sample(logits, seed)
    return F.one_hot(y.argmax(-1), y.shape[-1]) + y - y.detach()


def reinmax_sample(logits, seed):
    """Algorithm 2 of Liu et al. 2023."""
    drawn = F.one_hot((logits.log_softmax(-1) + gumbel(logits, seed)).argmax(-1), logits.shape[-1]).double()
    pi_0 = logits.softmax(-1)
    pi_1 = (drawn + (logits / TAU).softmax(-1)) / 2
    pi_1 = ((pi_1.log() - logits).detach() + logits).softmax(-1)
    pi_2 = 2 * pi_1 - pi_0 / 2
    return pi_2 - pi_2.detach() + drawn


def weighed_sum(weights, outputs):
    return sum(w * y for w, y in zip(weights, outputs, strict=True))


def only_drawn(weights, outputs):
    k = int(weights.argmax())
    return weights[k] * outputs[k]


def with_the_others_as_scalars(weights, outputs):
    """The edge of AutoDL-Projects: ``weight * op(x)`` for the drawn one, plus the weights of the others."""
    k = int(weights.argmax())
    return sum(w * y if i == k else w for i, (w, y) in enumerate(zip(weights, outputs, strict=True)))


def supernet_gradient(ops, sampler, sample, mixed, space="nas_bench_201", seeds=ALIVE):
    """Of the loss and of its gradient in the logits, in several draws."""
    build = NasBench201 if space == "nas_bench_201" else Darts
    built = build(ops=ops[space], channels=4, cells=1 if space == "nas_bench_201" else 3)
    network, (x, labels) = randomised(built.supernet(images(8))), batch(8)
    arch = ArchParams.from_model(network, init_std=0.8, generator=torch.Generator().manual_seed(1)).double()
    worst = 0.0
    for seed in seeds:
        drawn = draw(sampler, arch, TAU, torch.Generator().manual_seed(seed))
        with gates(choices(network), drawn.by_key(arch.keys, differentiable=True)):
            loss = F.cross_entropy(network(x), labels)
        got = [loss, *torch.autograd.grad(loss, [arch.logits])]
        rows = dict(zip(arch.keys, sample(arch.logits, seed), strict=True))

        def edge(key, choice, h, stride, rows=rows):
            outputs = [
                operation(name, module, h, stride, search_norm=space == "darts")
                for name, module in zip(choice.names, choice.candidates, strict=True)
            ]
            return mixed(rows[key], outputs)

        scores = nas_bench_201(network, x, edge) if space == "nas_bench_201" else darts(network, x, edge)[0]
        expected = F.cross_entropy(scores, labels)
        gradient = torch.autograd.grad(expected, [arch.logits])
        worst = max(worst, deviation(got[:1], [expected]), deviation(got[1:], gradient))
    return worst


def softmax_sample(logits, seed):
    return logits.softmax(-1)


def pc_darts(ops):
    """Xu et al. 2020: a quarter of the channels, shuffled; the edges of a node are weighed by a softmax."""
    space = Darts(ops=ops["darts"], channels=4, cells=3, partial_channels=4, edge_normalisation=True)
    network, (x, labels) = randomised(space.supernet(images(8))), batch(8)
    arch = ArchParams.from_model(network, init_std=0.8, generator=torch.Generator().manual_seed(1)).double()
    drawn = draw(Softmax(), arch, 1.0, torch.Generator())
    with gates(choices(network), drawn.by_key(arch.keys, differentiable=True)):
        loss = F.cross_entropy(network(x), labels)
    leaves = [arch.logits, arch.share_logits]
    got = [loss, *torch.autograd.grad(loss, leaves)]

    probs = dict(zip(arch.keys, arch.logits.softmax(-1), strict=True))
    shares = {}
    for node in {key.split("-")[0].split("/")[0] + "/" + key.split("-")[1] for key in arch.keys}:
        kind, number = node.split("/")
        rows = [i for i, key in enumerate(arch.keys) if key.startswith(kind) and key.endswith(f"-{number}")]
        shares |= dict(zip([arch.keys[i] for i in rows], arch.share_logits[rows].softmax(0), strict=True))

    def edge(key, module, h, stride):
        quarter, choice = h.shape[1] // 4, module.choice
        outputs = [
            operation(name, candidate, h[:, :quarter], stride, search_norm=True)
            for name, candidate in zip(choice.names, choice.candidates, strict=True)
        ]
        rest = h[:, quarter:] if stride == 1 else F.max_pool2d(h[:, quarter:], 2)
        y = torch.cat([weighed_sum(probs[key], outputs), rest], 1)
        n, c, height, width = y.shape
        return shares[key] * y.view(n, 4, c // 4, height, width).transpose(1, 2).reshape(n, c, height, width)

    expected = F.cross_entropy(darts(network, x, edge)[0], labels)
    gradients = torch.autograd.grad(expected, leaves)
    return max(deviation([one], [other]) for one, other in zip(got, [expected, *gradients], strict=True))


def dirichlet(ops):
    """DrNAS: concentration elu(alpha) + 1; the derivative of torch.distributions at the same draw."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    weights = Dirichlet()(logits, 1.0, torch.Generator().manual_seed(6)).weights
    (got,) = torch.autograd.grad((weights * values).sum(), logits)
    concentration = F.elu(logits) + 1
    slope = torch.distributions.dirichlet._Dirichlet_backward(weights.detach(), concentration.detach(), values)
    (expected,) = torch.autograd.grad(concentration, logits, slope)
    return deviation([got], [expected])


def score_function(ops):
    """(L_1 - L_2) / 2 times the difference of the scores onehot - p: REINFORCE, each draw the other's baseline."""

    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.all = nn.ModuleList(Choice({name: nn.Identity() for name in "abcd"}, key=f"{i}") for i in range(3))

    arch = ArchParams.from_model(Three(), init_std=1.0, generator=torch.Generator().manual_seed(1)).double()
    sampler, generator = ScoreFunction(), torch.Generator().manual_seed(2)
    drawn = [draw(sampler, arch, 1.0, generator) for _ in range(2)]
    losses = torch.tensor([1.3, 0.4], dtype=torch.float64)
    (got,) = torch.autograd.grad(sampler.surrogate(arch, drawn, losses), arch.logits)
    scores = [F.one_hot(one.drawn, 4) - arch.logits.detach().softmax(-1) for one in drawn]
    return deviation([got], [(losses[0] - losses[1]) / 2 * (scores[0] - scores[1])])


# -- steps


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.c = Choice({name: nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for name in "abc"})
        self.head = nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        return self.head(self.c(x))


def second_order(ops, method):
    """Equations 6 to 8 of Liu et al. 2019 with momentum and weight decay, as written."""
    generator = torch.Generator().manual_seed(3)
    batches = [
        (torch.randn(8, 4, generator=generator, dtype=torch.float64), torch.randint(3, (8,), generator=generator))
        for _ in range(3)
    ]
    network, xi, momentum, decay, radius = Small(), 0.1, 0.9, 3e-4, 0.01
    arch = ArchParams.from_model(network, init_std=0.5, generator=generator).double()
    optim = torch.optim.SGD(network.parameters(), lr=xi, momentum=momentum, weight_decay=decay)
    searcher = build_searcher(
        SecondOrder,
        supernet=network,
        arch=arch,
        sampler=Softmax(),
        weight_optim=optim,
        arch_optim=torch.optim.SGD(arch.parameters(), lr=0.0),
        generator=generator,
        method=method,
        radius=radius,
        grad_clip=0.0,
    )
    searcher.weight_step(batches[0], 1.0)  # gives the weights a momentum
    weights = [weight.detach().clone().requires_grad_() for weight in network.parameters()]
    buffers = [optim.state[weight]["momentum_buffer"].clone() for weight in network.parameters()]
    searcher.arch_step(batches[2], batches[1], 1.0)
    alpha = arch.logits.detach().clone().requires_grad_()

    def loss(weights, data):
        *pairs, head, bias = weights
        outputs = [torch.tanh(F.linear(data[0], w, b)) for w, b in zip(pairs[::2], pairs[1::2], strict=True)]
        return F.cross_entropy(F.linear(weighed_sum(alpha.softmax(-1)[0], outputs), head, bias), data[1])

    slopes = torch.autograd.grad(loss(weights, batches[1]), weights, create_graph=True)
    moved = [w - xi * (momentum * v + g + decay * w) for w, v, g in zip(weights, buffers, slopes, strict=True)]
    if method == "exact":
        (expected,) = torch.autograd.grad(loss(moved, batches[2]), alpha)
    else:
        moved = [w.detach().requires_grad_() for w in moved]
        direct, *vector = torch.autograd.grad(loss(moved, batches[2]), [alpha, *moved])
        epsilon = radius / torch.cat([v.flatten() for v in vector]).norm()
        sides = [
            torch.autograd.grad(
                loss([w + sign * epsilon * v for w, v in zip(weights, vector, strict=True)], batches[1]), alpha
            )[0]
            for sign in (1, -1)
        ]
        expected = direct - xi * (sides[0] - sides[1]) / (2 * epsilon)
    return deviation([arch.logits.grad], [expected])


def beta_decay(ops):
    """Ye et al. 2022: the gradient of the mean log-sum-exp is the probability over the number of edges."""
    network = NasBench201(ops=ops["nas_bench_201"], channels=4, cells=1).supernet(images(8))
    arch = ArchParams.from_model(network, init_std=0.8, generator=torch.Generator().manual_seed(1)).double()
    (got,) = torch.autograd.grad(BetaDecay(weight=LinearByEpoch(0.5, 100))(arch, progress(60, 100)), arch.logits)
    return deviation([got], [0.5 * 60 * arch.logits.detach().softmax(-1) / 6])


def exponentiated(ops):
    """GAEA, Li et al. 2021: theta exp(-lr dL/dtheta), normalised."""
    logits = nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    target = torch.rand(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    theta = logits.detach().softmax(-1)
    optim = ExponentiatedGradient([logits], lr=0.1)
    for _ in range(5):
        optim.zero_grad()
        ((logits.softmax(-1) - target) ** 2).sum().backward()
        optim.step()
        theta = theta * (-0.1 * 2 * (theta - target)).exp()
        theta = theta / theta.sum(-1, keepdim=True)
    return deviation([logits.detach().softmax(-1)], [theta])


def schedules(ops):
    """GDAS' temperature 10 - 9.9 e / (E - 1); cosine annealing by epoch, e / E, after warm-up by step."""
    temperature, cosine = Linear(10.0, 0.1), CosineByEpoch(0.025, 0.001)
    warm = CosineByEpoch(0.025, 0.0, warmup_epochs=5)
    got, expected = [], []
    for epoch in range(250):
        got.append(temperature(progress(epoch, 250)))
        expected.append(10 - 9.9 * epoch / 249)
        got.append(learning_rate(cosine, epoch, 7, steps=100, epochs=250))
        expected.append(0.001 + 0.024 * 0.5 * (1 + math.cos(math.pi * epoch / 250)))
        got.append(learning_rate(warm, epoch, 7, steps=100, epochs=250))
        rising = 0.025 * (epoch + 0.07) / 5
        expected.append(rising if epoch < 5 else 0.0125 * (1 + math.cos(math.pi * (epoch - 5) / 245)))
    return deviation([torch.tensor(got).double()], [torch.tensor(expected).double()])


def derivation(ops):
    """DARTS: of each node the two edges of the largest probability that is not `none`'s, with its operation."""
    network = Darts(ops=ops["darts"], channels=2, cells=3).supernet(images(8))
    differing = 0
    for seed in range(8):
        arch = ArchParams.from_model(network, init_std=1.0, generator=torch.Generator().manual_seed(seed)).double()
        got, expected, (name, *_) = TopPredecessors()(arch), {}, arch.candidates.values()
        probs = dict(zip(arch.keys, arch.probs().tolist(), strict=True))
        none = name.index("none")
        for kind in ("normal", "reduce"):
            for node in range(2, 6):
                strength = {
                    s: max(p for k, p in enumerate(probs[f"{kind}/{s}-{node}"]) if k != none) for s in range(node)
                }
                kept = sorted(strength, key=strength.get)[-2:]
                for s in range(node):
                    row = probs[f"{kind}/{s}-{node}"]
                    expected[f"{kind}/{s}-{node}"] = name[row.index(strength[s])] if s in kept else None
        differing += got != expected
    return float(differing)


ROWS = {
    "NAS-Bench-201 network": derived_nas_bench_201,
    "DARTS_V1 network": functools.partial(derived_darts, name="DARTS_V1"),
    "DARTS_V2 network": functools.partial(derived_darts, name="DARTS_V2"),
    "GDAS_V1 network": functools.partial(derived_darts, name="GDAS_V1", cells=3),
    "PCDARTS network": functools.partial(derived_darts, name="PCDARTS", cells=3),
    "softmax": functools.partial(supernet_gradient, sampler=Softmax(), sample=softmax_sample, mixed=weighed_sum),
    "softmax, DARTS space": functools.partial(
        supernet_gradient, sampler=Softmax(), sample=softmax_sample, mixed=weighed_sum, space="darts", seeds=[0]
    ),
    "gumbel_softmax": functools.partial(
        supernet_gradient, sampler=GumbelSoftmax(), sample=soft_sample, mixed=weighed_sum
    ),
    "gdas sampled": functools.partial(supernet_gradient, sampler=GDAS(), sample=hard_sample, mixed=only_drawn),
    "gdas sampled, DARTS space": functools.partial(
        supernet_gradient, sampler=GDAS(), sample=hard_sample, mixed=only_drawn, space="darts", seeds=[0, 1]
    ),
    "gdas autodl": functools.partial(
        supernet_gradient, sampler=GDAS(estimator="autodl"), sample=hard_sample, mixed=with_the_others_as_scalars
    ),
    "gdas full": functools.partial(
        supernet_gradient, sampler=GDAS(estimator="full"), sample=hard_sample, mixed=weighed_sum
    ),
    "gdas reinmax": functools.partial(
        supernet_gradient, sampler=GDAS(estimator="reinmax"), sample=reinmax_sample, mixed=weighed_sum
    ),
    "PC-DARTS supernet": pc_darts,
    "dirichlet": dirichlet,
    "score_function": score_function,
    "second order, difference": functools.partial(second_order, method="difference"),
    "second order, exact": functools.partial(second_order, method="exact"),
    "beta decay": beta_decay,
    "exponentiated gradient": exponentiated,
    "schedules": schedules,
    "top predecessors": derivation,
}


@pytest.mark.parametrize("row", ROWS)
def test_it_is_the_formula(row, ops_tables):
    torch.manual_seed(0)
    found = ROWS[row](ops_tables)
    print(f"\n{row}: {found:.1e}")
    assert found <= 1e-11


def test_every_row_is_in_the_table():
    text = (Path(__file__).parents[2] / "scripts" / "README.md").read_text()
    table = text.partition("## Parity")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE) == list(ROWS)
