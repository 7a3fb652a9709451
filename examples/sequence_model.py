"""An architecture for sequences: whether a text mixer looks at neighbours, at all positions, or keeps a state.

python examples/sequence_model.py
"""

import functools

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import nas

VOCABULARY, LENGTH = 8, 12


class Sequences(Dataset):
    """Tokens, and whether the first one comes again: a map-style data set of (tokens, label)."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)
        self.tokens[: count // 2, 0] = 0
        self.tokens[: count // 2, LENGTH // 2 :][:, ::3] = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        tokens = self.tokens[index]
        return tokens, int((tokens[1:] == tokens[0]).any())


class Neighbours(nn.Conv1d):
    """(N, L, C) -> (N, L, C): a convolution over the positions."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class State(nn.GRU):
    """(N, L, C) -> (N, L, C)."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)[0]


class Everywhere(nn.MultiheadAttention):
    """(N, L, C) -> (N, L, C): each position looks at all."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0]


def build_model(num_classes: int, width: int = 16) -> nn.Module:
    def mixer() -> nas.Choice:
        return nas.Choice(
            {
                "neighbours": Neighbours(width, width, 3, padding=1),
                "everywhere": Everywhere(width, 2, batch_first=True),
                "state": State(width, width, batch_first=True),
            }
        )

    return nn.Sequential(
        nn.Embedding(VOCABULARY, width),
        mixer(),
        nn.ReLU(),
        mixer(),
        nn.Flatten(),
        nn.Linear(LENGTH * width, num_classes),
    )


def main(epochs: int = 20) -> float:
    train, test = Sequences(256, seed=0), Sequences(64, seed=1)
    adam = functools.partial(torch.optim.Adam, lr=3e-3)
    found = nas.search(build_model, train, epochs=epochs, batch_size=32, weight_optim=adam, arch_optim=adam)
    print(found.genotype.to_json())
    net = nas.retrain(build_model, found.genotype, train, test=test, epochs=epochs, batch_size=32, optim=adam)
    assert net.result is not None  # as there is a test split
    print(f"accuracy on new sequences: {net.result['test_accuracy']:.1%}")
    return net.result["test_accuracy"]


if __name__ == "__main__":
    main()
