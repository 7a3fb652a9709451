"""Exports the network as ONNX, for runtimes outside of PyTorch."""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.errors import ConfigError, described
from nas.formats.format import Artefact, Subject, UnavailableError
from nas.formats.program import exported

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def missing_packages() -> list[str]:
    """The packages of the extra ``onnx`` that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def onnx_file(
    network: nn.Module, examples: tuple[Tensor, ...], names: Sequence[str], *, any_batch: bool = True
) -> bytes:
    """The content of the network's file. names: of its inputs. examples, any_batch: see `exported`. Raises
    UnavailableError."""
    program = exported(network, examples, any_batch=any_batch)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # the exporter warns about itself
            written = torch.onnx.export(
                program, examples, input_names=list(names), output_names=["y"], dynamo=True, verbose=False
            )
            assert written is not None  # as dynamo=True
            content: bytes = written.model_proto.SerializeToString()  # one file
    except Exception as error:  # usually an operation that ONNX does not have
        first: BaseException = error  # the last says only that it failed, and how to report that to torch
        while first.__cause__ is not None:
            first = first.__cause__
        raise UnavailableError(f"torch.onnx cannot write it ({described(first)})") from error
    return content


class Onnx:
    """``model.onnx``, for batches of any size. Raises ConfigError if the packages of the extra ``onnx`` are missing."""

    def __init__(self) -> None:
        if missing := missing_packages():
            raise ConfigError(
                f"formats=onnx needs {', '.join(missing)}, which is not installed",
                fix="pip install 'gumbel-nas[onnx]', or choose formats without onnx",
            )

    def write(self, subject: Subject, directory: Path) -> Artefact:
        file, names = "model.onnx", subject.variables
        (directory / file).write_bytes(onnx_file(subject.network, subject.examples, names))
        inputs = ", ".join(f'"{name}": np.asarray({name})' for name in names)
        return Artefact(
            file=file,
            about="ONNX, for batches of any size",
            needs=("onnxruntime",),
            code=f'import numpy as np\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession("{file}")\n'
            f"(y,) = session.run(None, {{{inputs}}})\n",
            network=subject.network,
        )
