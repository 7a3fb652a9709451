"""An architecture for a table of numbers: the activation and the width of each layer are searched.

python examples/table_of_numbers.py
"""

import functools

import torch
from torch import Tensor, nn

import nas


class Layers(nn.Module):
    """(N, columns) -> (N,). The search asks for it by `spec`, which has the shape of an example."""

    def __init__(self, spec: nas.data.DataSpec, width: int = 16) -> None:
        super().__init__()
        (columns,) = spec.input_shape
        self.first = nas.Choice({"narrow": self.layer(columns, 2, width), "wide": self.layer(columns, 32, width)})
        self.activation = nas.Choice({"relu": nn.ReLU(), "tanh": nn.Tanh(), "none": nn.Identity()})
        self.last = nn.Linear(width, 1)

    @staticmethod
    def layer(columns: int, inside: int, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(columns, inside), nn.Tanh(), nn.Linear(inside, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.first(x))).squeeze(1)


def make_table(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Columns, and the number to predict from them. Floats as targets make it a regression."""
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
    return x, x[:, 0].sin() + x[:, 1] * x[:, 2]


def main(epochs: int = 20) -> float:
    train, test = make_table(512, seed=0), make_table(128, seed=1)
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    found = nas.search(Layers, train, epochs=epochs, weight_optim=adam, arch_optim=adam)
    print(found.genotype.to_json())
    net = nas.retrain(Layers, found.genotype, train, epochs=epochs, batch_size=32, optim=adam)
    result = nas.evaluate(net, test)
    print(f"mean absolute error on new rows: {result['test_mean_absolute_error']:.3f}")
    return result["test_mean_absolute_error"]


if __name__ == "__main__":
    main()
