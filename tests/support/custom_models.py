"""Models and data as a user would write them. They import only `Choice` from nas."""

import math
import warnings
from typing import ClassVar

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from nas.supernet.choice import Choice


def conv(c_in, c_out, kernel_size, affine):
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel_size, padding=kernel_size // 2, bias=False), nn.BatchNorm2d(c_out, affine=affine)
    )


class Depths(nn.Module):
    """Choices directly in the model, in a list of blocks, and in the head; the candidates are layers and widths."""

    class Block(nn.Module):
        def __init__(self, width, affine):
            super().__init__()
            self.layers = nn.ModuleDict(
                {"conv": Choice({"3x3": conv(width, width, 3, affine), "5x5": conv(width, width, 5, affine)})}
            )

        def forward(self, x):
            return x + torch.relu(self.layers["conv"](x))

    def __init__(self, in_channels, num_classes, affine, width=4, depth=2):
        super().__init__()
        self.stem = Choice({"1x1": conv(in_channels, width, 1, affine), "3x3": conv(in_channels, width, 3, affine)})
        # Reads tensors while it is built, as drop-path rates often are. This fails for tensors without storage.
        self.scales = torch.linspace(0.5, 1, depth).tolist()
        self.blocks = nn.ModuleList(self.Block(width, affine) for _ in range(depth))
        self.head = Choice(
            {
                "linear": nn.Linear(width, num_classes),
                **{
                    f"mlp.{hidden}": nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))
                    for hidden in (8, 16)
                },
            }
        )

    def forward(self, x):
        x = self.stem(x)
        for scale, block in zip(self.scales, self.blocks, strict=True):
            x = scale * block(x)
        return self.head(x.mean((2, 3)))


def shared_key(spec, affine):
    """All activations are one choice, and one module is used at two places."""

    def activation():
        return Choice({"relu": nn.ReLU(), "silu": nn.SiLU(), "tanh": nn.Tanh()}, key="activation")

    last = activation()
    return nn.Sequential(
        *(conv(spec.channels, 4, 3, affine), activation(), conv(4, 4, 3, affine), last, conv(4, 4, 3, affine), last),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, spec.num_classes)),
    )


def nested(num_classes, in_channels, affine):
    """A choice between a plain layer, a block with a choice in it, and a choice."""
    block = nn.Sequential(
        conv(4, 4, 3, affine),
        Choice({"relu": nn.ReLU(), "gelu": nn.GELU()}, key="inner activation"),
        Choice({"1": conv(4, 4, 1, affine), "3": conv(4, 4, 3, affine)}),
    )
    pool = Choice({"max": nn.MaxPool2d(3, 1, 1), "avg": nn.AvgPool2d(3, 1, 1)})
    return nn.Sequential(
        conv(in_channels, 4, 3, affine),
        Choice({"plain": conv(4, 4, 3, affine), "block": block, "pool": pool}, key="kind"),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)),
    )


class Add(nn.Module):
    def forward(self, a, b):
        return a + b


class Bilinear(nn.Bilinear):
    def __init__(self, width):
        super().__init__(width, width, width)


class TwoInputs(nn.Module):
    """A vector and a sequence of tokens -> one number. The module that joins them is a choice with two inputs."""

    def __init__(self, spec, width=6):
        super().__init__()
        (features,), _ = spec.input_shapes
        self.vector = nn.Linear(features, width)
        self.tokens = nn.Embedding(5, width)
        self.join = Choice({"add": Add(), "bilinear": Bilinear(width)})
        self.act = Choice({"tanh": nn.Tanh(), "relu": nn.ReLU(), "none": nn.Identity()})
        self.out = nn.Linear(width, 1)

    def forward(self, vector, tokens):
        joined = self.join(self.vector(vector), self.tokens(tokens).mean(1))
        return self.out(self.act(joined)).squeeze(1)


class Signals(nn.Module):
    """A 1-D convolutional network whose kernel sizes and pooling are searched."""

    def __init__(self, in_channels, num_classes, affine, width=8):
        super().__init__()
        layers = []
        for c_in in (in_channels, width):
            layers += [
                Choice({f"kernel_{size}": nn.Conv1d(c_in, width, size, padding=size // 2) for size in (3, 7)}),
                nn.BatchNorm1d(width, affine=affine),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.pool = Choice({"avg": nn.AdaptiveAvgPool1d(1), "max": nn.AdaptiveMaxPool1d(1)})
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.pool(self.body(x)).flatten(1))


class BuiltInEvalMode(Signals):
    """Records the mode in which it is trained."""

    modes: ClassVar = []

    def __init__(self, in_channels, num_classes, affine):
        super().__init__(in_channels, num_classes, affine)
        self.eval()

    def forward(self, x):
        outputs, mode = super().forward(x), self.training
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: self.modes.append(mode))  # not passes that are only looked at
        return outputs


class Modes(nn.Module):
    """Weights of the first `count` frequencies, as a neural operator has them."""

    def __init__(self, width, count):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, count, dtype=torch.complex64))

    def forward(self, spectrum):
        weighed = spectrum[..., : self.weight.shape[-1]] * self.weight
        return nn.functional.pad(weighed, (0, spectrum.shape[-1] - weighed.shape[-1]))


class Frequencies(nn.Module):
    """A choice between complex outputs."""

    def __init__(self, in_channels, num_classes, width=4):
        super().__init__()
        self.stem = nn.Conv1d(in_channels, width, 1)
        self.modes = Choice({f"first {count}": Modes(width, count) for count in (2, 4)})
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.fft.irfft(self.modes(torch.fft.rfft(x)), n=x.shape[-1]).amax(2))


class Grouped(nn.Module):
    """Three branches that compete. A derivation may drop some of them, and a dropped edge adds nothing."""

    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.branches = nn.ModuleList(
            Choice({str(size): nn.Conv1d(in_channels, 4, size, padding=size // 2) for size in (1, 3)}, group="branches")
            for _ in range(3)
        )
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(sum(branch(x) for branch in self.branches).mean(-1))


# -- data


class Waves(Dataset):
    """Sine waves of three frequencies with a random phase, under noise: (1, length) float64, label."""

    def __init__(self, count, length, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 3
        phase = 2 * math.pi * torch.rand(count, 1, generator=generator)
        time = torch.linspace(0, 1, length)
        waves = torch.sin(2 * math.pi * (1 + 2 * self.labels[:, None]) * time + phase)
        self.waves = (waves + 0.3 * torch.randn(waves.shape, generator=generator)).double()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.waves[index][None], int(self.labels[index])


def signals(length=32, train=32, test=8):
    return Waves(train, length, seed=0), Waves(test, length, seed=1)


class Pairs(Dataset):
    """((vector, tokens), number): the number is known from both inputs together."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.vectors = torch.randn(count, 3, generator=generator)
        self.tokens = torch.randint(5, (count, 4), generator=generator)

    def __len__(self):
        return len(self.vectors)

    def __getitem__(self, index):
        vector, tokens = self.vectors[index], self.tokens[index]
        return (vector, tokens), float(vector.sum() + tokens.float().mean())


def pairs():
    return Pairs(48, seed=0), Pairs(16, seed=1)


def pixels(label=-100):
    """Images whose pixels are classified as dark or bright. The pixels of the first row have the given label."""

    def some(count, seed):
        inputs = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
        targets = (inputs[:, 0] > 0).long()
        targets[:, 0] = label
        return TensorDataset(inputs, targets)

    return some(32, seed=0), some(8, seed=1)


def pixelwise(num_classes):
    return nn.Sequential(
        Choice({"1": nn.Conv2d(1, 4, 1), "3": nn.Conv2d(1, 4, 3, padding=1)}), nn.Conv2d(4, num_classes, 1)
    )


def noisy_shift(signals, generator):
    """An augmentation that rolls every signal by its own random number of samples."""
    length = signals.shape[-1]
    shifts = torch.randint(length, (len(signals), 1, 1), generator=generator)
    return signals.gather(-1, (torch.arange(length) + shifts) % length)


def vectors():
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(40, 3, generator=generator), torch.rand(40, 2, generator=generator)
    return TensorDataset(inputs[:32], targets[:32]), TensorDataset(inputs[32:], targets[32:])


def regressor(spec):
    (wide,) = spec.target_shape
    return Choice({"linear": nn.Linear(spec.channels, wide), "bias": nn.Linear(spec.channels, wide, bias=True)})


def within(outputs, targets, tolerance):
    """A metric: whether all outputs of an example are within the tolerance."""
    return ((outputs - targets).abs() < tolerance).all(1).float()


# -- what is wrong in every way


def no_choice(num_classes):
    return nn.Linear(3, num_classes)


def no_module():
    return {"model": nn.Linear(3, 3)}


def unlike_keys():
    return nn.Sequential(
        Choice({"relu": nn.ReLU(), "tanh": nn.Tanh()}, key="act"),
        Choice({"relu": nn.ReLU(), "silu": nn.SiLU()}, key="act"),
    )


def one_candidate(inside):
    lone = Choice({"only": nn.Identity()} if inside else {})
    return nn.Sequential(Choice({"lone": lone, "relu": nn.ReLU()}))


def unlike_shapes(in_channels, num_classes):
    """A choice whose candidates have different shapes, inside a later candidate of another choice."""
    inner = nn.Sequential(Choice({"same": nn.Conv2d(4, 4, 3, padding=1), "valid": nn.Conv2d(4, 4, 3)}))
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 1),
        Choice({"plain": nn.Identity(), "block": inner}),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)),
    )


def lazy_candidate(num_classes):
    with warnings.catch_warnings(action="ignore"):  # torch warns about a new feature
        lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
    return nn.Sequential(Choice({"lazy": lazy, "other": nn.Identity()}))


class Encoder(nn.Module):
    """A choice that replaces a linear layer whose weight torch reads in evaluation mode."""

    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.stem = nn.Linear(in_channels, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layer.linear1 = Choice(
            {"full": nn.Linear(8, 16), "low rank": nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 16))}
        )
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.layer(self.stem(x.mT)).mean(1))


def tuple_candidate(in_channels):
    return nn.Sequential(Choice({"identity": nn.Identity(), "rnn": nn.GRU(8, 8)}))


def too_narrow(num_classes):
    """Has one score too few."""
    size = 3 * 8 * 8
    return nn.Sequential(
        nn.Flatten(), Choice({"a": nn.Linear(size, num_classes - 1), "b": nn.Linear(size, num_classes - 1)})
    )


def column(spec):
    """Returns (B, 1) for targets of shape (B,)."""

    class Column(TwoInputs):
        def forward(self, vector, tokens):
            return super().forward(vector, tokens)[:, None]

    return Column(spec)


def two_outputs(spec):
    class Two(TwoInputs):
        def forward(self, vector, tokens):
            return (super().forward(vector, tokens),) * 2

    return Two(spec)


def untraceable(in_channels, num_classes):
    class Peeking(Signals):
        def forward(self, x):
            return super().forward(x if x.sum().item() > 0 else -x)

    return Peeking(in_channels, num_classes, True)


def one_data_set():
    return Waves(8, 4, seed=0)


def three_data_sets():
    return Waves(8, 4, seed=0), Waves(8, 4, seed=1), Waves(8, 4, seed=2)


def empty_data_set():
    return Waves(8, 4, seed=0), Waves(0, 4, seed=1)


class Items(Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        return item() if callable(item) else item


def items(kind):
    good = (torch.zeros(2), 0)
    wrong = {
        "no pair": torch.zeros(2),
        "list": ([1.0, 2.0], 0),
        "text": (torch.zeros(2), "cat"),
        "shape": (torch.zeros(3), 0),
        "target": (torch.zeros(2), 0.5),
        "label": (torch.zeros(2), -1),
        "large": (torch.zeros(2), 7),
    }
    if kind == "random":
        return Items(lambda: (torch.rand(2), 0), good), Items(good)
    return Items(good, wrong[kind]), Items(good)


class Residual(nn.Module):
    """A block of a network that somebody has trained: it knows nothing of choices."""

    def __init__(self, width=8):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))


def residual(in_channels=1, num_classes=2, width=8):
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1),
        Residual(width),
        Residual(width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, num_classes),
    )
