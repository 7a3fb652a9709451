import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from nas.data.spec import DataSpec
from nas.errors import OutputError
from nas.export import TOLERANCE, export
from nas.genotype import Genotype
from nas.task import Classification

BATCHES = (1, 2, 3, 7)

# Runs in a directory of its own and knows torch alone.
FRESH = """
import sys, torch
program, inputs, outputs = sys.argv[1:]
model = torch.export.load(program).module()
torch.save([model(x) for x in torch.load(inputs, weights_only=True)], outputs)
assert not [name for name in sys.modules if name == "nas" or name.startswith("nas.")]
"""


@pytest.fixture(scope="module", params=["nas_bench_201", "darts"])
def exported(request, spec, tmp_path_factory):
    """(network, its genotype, what export wrote), the network having seen data in training mode."""
    space = request.getfixturevalue(request.param)
    options = space.options(spec)
    genotype = Genotype(space.name, {key: names[i % len(names)] for i, (key, names) in enumerate(options.items())})
    network = space.network(spec, genotype).train()
    for _ in range(3):
        network(torch.randn(8, *spec.input_shape))
    directory = tmp_path_factory.mktemp("export")
    paths = export(
        network,
        spec=spec,
        task=Classification(),
        genotype=genotype,
        inputs=torch.randn(4, *spec.input_shape).to(memory_format=torch.channels_last),
        directory=directory,
        results={"accuracy": 0.5, "nothing": None},
    )
    return network, genotype, paths


@torch.no_grad()
def test_a_fresh_process_without_this_project_gives_the_same_outputs(exported, spec, tmp_path):
    network, _, paths = exported
    inputs = [torch.randn(n, *spec.input_shape) for n in BATCHES]
    torch.save(inputs, tmp_path / "in.pt")
    command = [sys.executable, "-c", FRESH, paths["model.pt2"], tmp_path / "in.pt", tmp_path / "out.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    network.eval()
    for x, output in zip(inputs, torch.load(tmp_path / "out.pt", weights_only=True), strict=True):
        assert output.shape == (len(x), spec.num_classes)
        assert torch.allclose(output, network(x), atol=TOLERANCE)


def test_what_is_written(exported, spec):
    network, genotype, paths = exported
    assert list(paths) == ["model.pt2", "genotype.json", "metadata.json"]
    directory = paths["model.pt2"].parent
    assert sorted(path.name for path in directory.iterdir()) == sorted(paths)
    assert Genotype.load(paths["genotype.json"]) == genotype
    metadata = json.loads(paths["metadata.json"].read_text())
    assert DataSpec.from_dict(metadata["data"]) == spec
    assert metadata["results"] == {"accuracy": 0.5, "nothing": None}
    assert 0 <= metadata["largest_difference_to_network"] <= TOLERANCE
    assert "mean" in metadata["input"]
    assert "class_names" in metadata["output"]
    assert not network.training


class Unfaithful(nn.Module):
    """A network whose exported program is another one: tracing sees a branch that running does not take."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, 3)

    def forward(self, x):
        scores = self.linear(x.flatten(1))
        return scores if torch.compiler.is_exporting() else scores + 1


@pytest.mark.parametrize("by", [1.0, float("nan")])
def test_nothing_is_written_if_the_program_differs(by, spec, tmp_path):
    network = Unfaithful()
    if by != by:
        with torch.no_grad():
            network.linear.bias.fill_(by)
    with pytest.raises(OutputError, match=f"differs from the network by {by:g}"):
        export(
            network,
            spec=spec,
            task=Classification(),
            genotype=Genotype("s", {}),
            inputs=torch.randn(4, *spec.input_shape),
            directory=tmp_path,
            results={},
        )
    assert list(tmp_path.iterdir()) == []
