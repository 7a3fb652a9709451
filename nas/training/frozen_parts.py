"""Saves which weights learn, and which modules are in training mode: a hook may change both during a stage."""

from collections.abc import Mapping

from torch import nn


class FrozenParts:
    """The changes since the construction, for a checkpoint. Everything else stays as the model is built."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = learning(model)

    def state_dict(self) -> dict[str, dict[str, bool]]:
        """Returns, for weights and for modules, name -> whether it learns or is in training mode."""
        now = learning(self._model)
        return {
            kind: {name: flag for name, flag in flags.items() if self._before[kind].get(name) != flag}
            for kind, flags in now.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, bool]]) -> None:
        for name, weight in self._model.named_parameters():
            weight.requires_grad_(bool(state["weights"].get(name, weight.requires_grad)))
        for name, module in self._model.named_modules():
            module.training = bool(state["modules"].get(name, module.training))


def learning(model: nn.Module) -> dict[str, dict[str, bool]]:
    return {
        "weights": {name: weight.requires_grad for name, weight in model.named_parameters()},
        "modules": {name: module.training for name, module in model.named_modules()},
    }
