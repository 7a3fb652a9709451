"""Exports the network as Python code that can be read, edited and trained without this project."""

import runpy
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.formats.format import TOLERANCE, Artefact, Subject, UnavailableError
from nas.formats.source.source import source
from nas.formats.source.unsupported import UnsupportedError
from nas.formats.weights import FILE as WEIGHTS, write_weights
from nas.supernet.copying import copied

FILE = "model.py"


class Standalone:
    """``model.py``: plain PyTorch that loads ``weights.safetensors`` and gives the same outputs to the bit."""

    def write(self, subject: Subject, directory: Path) -> Artefact:
        network = subject.network
        try:
            text = source(network, subject.examples, title=subject.title, spec=subject.spec, weights=WEIGHTS)
        except UnsupportedError as error:
            raise UnavailableError(f"this network cannot be written as source: {error}") from error
        write_weights(network, directory)
        (directory / FILE).write_text(text, encoding="utf-8")
        # A forward may take another branch while it is traced, e.g. if it asks whether its inputs are tensors.
        again = runpy.run_path(str(directory / FILE), run_name="model")["build"]()
        again.load_state_dict(network.state_dict())
        with torch.no_grad():
            if not torch.equal(again.eval()(*subject.examples), network(*subject.examples)):
                raise UnavailableError("this network computes something else while it is traced")
        about = f"plain PyTorch, to be read and edited; its load() takes the weights from {WEIGHTS}"
        if not trains_alike(network, again, subject.examples):
            about += (
                "; in training mode it computes something else than the network did, because what only training does, "
                "such as a functional dropout, is left out"
            )
        return Artefact(
            file=FILE,
            about=about,
            needs=("torch", "safetensors"),
            code=f"import torch\nfrom model import load\n\nnetwork = load()\n{subject.call}",
            network=network,
            tolerance=0.0,  # it computes the same in the same order
        )


@torch.no_grad()
def trains_alike(network: nn.Module, again: nn.Module, examples: tuple[Tensor, ...]) -> bool:
    """Whether both have the same outputs in training mode with the same random numbers. Changes `again`."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            expected = copied(network).train()(*examples)
            torch.manual_seed(0)
            got = again.train()(*examples)
        return torch.allclose(got, expected, rtol=0.0, atol=TOLERANCE, equal_nan=True)
    except Exception:  # a user's own module may raise any error in training mode
        return False
