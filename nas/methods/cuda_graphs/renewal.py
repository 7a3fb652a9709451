"""Records a supernet anew when its weights or modes have changed."""

from typing import Any

from torch import nn

from nas.methods.cuda_graphs.replayed_module import Replayed
from nas.training.frozen_parts import learning
from nas.training.hooks import Hook


class Renewal(Hook):
    """Drops what is recorded if a hook has frozen or unfrozen weights, or put modules into another mode.

    Recordings would go on as before. It looks after each epoch and has to be the last hook.
    """

    def __init__(self, supernet: nn.Module) -> None:
        self._supernet = supernet
        self._before = learning(supernet)

    def after_epoch(self, state: Any) -> None:
        if (now := learning(self._supernet)) == self._before:
            return
        self._before = now
        for module in self._supernet.modules():
            if isinstance(replayed := module._compiled_call_impl, Replayed):
                replayed.forget()
