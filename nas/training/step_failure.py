"""Explains an error in a trial step in one line: which module of the model raised it, and what helps."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from torch import nn

from nas.errors import NasError, SpaceError, described
from nas.runtime.precision import Precision


@dataclass(frozen=True)
class Trial:
    """Describes a trial step, for messages.

    step: as text, e.g. ``a step of the search``. batch_setting: the setting of the number of examples in a pass.
    optim_setting: the setting of the optimiser.
    """

    step: str
    batch_setting: str
    optim_setting: str

    @contextmanager
    def explained(self, model: nn.Module, precision: Precision) -> Iterator[None]:
        """Raises SpaceError for any error inside, with the path of the module that raised it.

        Errors of this project are not changed.
        """
        try:
            yield
        except NasError:
            raise
        except Exception as error:
            where = place(model, error.__traceback__)
            raise SpaceError(
                f"{self.step} fails{where} ({described(error)})", fix=self.help_for(error, precision)
            ) from error

    def help_for(self, error: Exception, precision: Precision) -> str:
        """Returns the setting that helps, if the error is known, or else general help."""
        text = str(error)
        for pieces, fix in (
            (("view size is not compatible",), "use reshape there, or set runtime.memory_format=contiguous"),
            (
                ("Expected more than 1 value per channel",),
                f"let a batch norm see two examples or more: change {self.batch_setting}",
            ),
            (("sparse", "Sparse"), "make the gradients dense, e.g. nn.Embedding(..., sparse=False)"),
            (
                ("modified by an inplace operation", "refers to a single memory location"),
                "write into a copy there, e.g. y = y + 1 or y.clone() in place of y += 1",
            ),
            (
                ("does not require grad",),
                "let parameters require a gradient, and the outputs depend on them without detach() or no_grad()",
            ),
            (("grad can be implicitly created only for scalar",), "let the loss return its mean over the batch"),
            (("closure",), f"choose an optimiser whose step needs no closure, e.g. {self.optim_setting}=sgd"),
            (("out of memory", "can't allocate memory"), f"lower {self.batch_setting}"),
            (("same device",), "register tensors of the model's own as buffers, which move with it"),
        ):
            if any(piece in text for piece in pieces):
                return fix
        if precision.name != "fp32" and any(piece in text for piece in ("dtype", "scalar type", "BFloat16", "Half")):
            return "convert one to the type of the other there, e.g. x.to(y.dtype), or set runtime.precision=fp32"
        return "change the model until a training step runs; --debug shows where it stopped"


def place(model: nn.Module, trace: TracebackType | None) -> str:
    """Returns `` in <path> (<class>)`` of the innermost module of the model that was running.

    Empty if no module was running, as in the backward pass and in the optimiser.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    found = ""
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and (path := paths.get(id(module))) is not None:
            found = (
                f" in {path} ({type(module).__name__})" if path else f" in the model itself ({type(module).__name__})"
            )
        trace = trace.tb_next
    return found
