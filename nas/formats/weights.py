"""Exports only the weights, as safetensors, which hold no code and which every framework can read."""

from pathlib import Path

from torch import Tensor, nn

from nas.data.custom import same
from nas.formats.format import Artefact, Subject, UnavailableError

FILE = "weights.safetensors"


class Weights:
    """``weights.safetensors``: the network's state by name.

    This project rebuilds the network from it and the genotype.
    """

    def write(self, subject: Subject, directory: Path) -> Artefact:
        if reason := subject.unbuildable():
            raise UnavailableError(reason)
        if unsaved := subject.unsaved():
            raise UnavailableError(
                f"without {', '.join(unsaved)}, which training changed and no state dict holds "
                "(persistent=False), the weights do not give this network"
            )
        write_weights(subject.network, directory)
        return Artefact(
            file=FILE,
            about="the weights; this project makes the network for them, from genotype.json and metadata.json",
            needs=("gumbel-nas",),
            code=f"import torch\n{subject.load}\n{subject.call}",
            network=subject.network,
        )


def write_weights(network: nn.Module, directory: Path) -> None:
    """Writes the weights. Raises UnavailableError if the state has anything but tensors, e.g. from get_extra_state."""
    from safetensors.torch import save

    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise UnavailableError(
                f"{name} of the network's state is a {type(value).__name__}, and safetensors holds tensors only"
            )
    # Copies, because safetensors refuses tensors that share memory, e.g. those of a module that is used twice.
    state = {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()}
    network.train()
    changed = [name for name, tensor in network.state_dict().items() if not same(tensor, state[name])]
    network.eval()
    if changed:
        raise UnavailableError(
            f"the network's own train() changes {changed[0]}, as LoRA that is merged for evaluation, so a file of its "
            "weights gives another network"
        )
    (directory / FILE).write_bytes(save(state, metadata={"format": "pt"}))
