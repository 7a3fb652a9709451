"""Writes the file model.py of an exported network."""

import re
from collections.abc import Iterator

from torch import Tensor, nn

from nas.data.spec import DataSpec, ImageSpec
from nas.formats.source.classes import Classes, Definition
from nas.formats.source.layout import WIDTH, laid_out, statement
from nas.formats.source.parts import parts

LOAD = '''
def load(weights=WEIGHTS):
    """The trained network, in eval mode, on the CPU."""
    network = build()
    network.load_state_dict(load_file(weights))
    return network.eval()
'''
PREPARE = '''
def prepare(images):
    """Pixels for the network: (N, C, H, W) from 0 to 255 -> (N, C, H, W) float32."""
    mean = torch.tensor(MEAN)[:, None, None]
    std = torch.tensor(STD)[:, None, None]
    return images.float() * (1 / (255 * std)) - mean / std
'''


def source(network: nn.Module, examples: tuple[Tensor, ...], *, title: str, spec: DataSpec, weights: str) -> str:
    """Returns Python that needs only torch and safetensors, and whose ``load()`` gives the network.

    network: in eval mode, on the CPU. examples: a batch of its inputs. title: the first line of the file's docstring.
    weights: the name of the file with the network's state, which the source looks for beside itself.
    A module that is used at several places becomes several modules with equal weights.
    Raises UnsupportedError if the network cannot be written as source.
    """
    classes = Classes(network, parts(network, examples))
    body: list[str] = []
    for definition in classes.definitions:
        body += ["", "", *class_lines(definition)]
    body += ["", "", "def build():", '    """The network with weights that are still to be loaded."""']
    body += laid_out("return ", classes.root, "", indent=4)
    body += ["", *LOAD.rstrip().split("\n")]
    if isinstance(spec, ImageSpec):
        body += ["", *PREPARE.rstrip().split("\n")]
    text = "\n".join(body)
    head = [f'"""{one_line(title)}', "", "from model import load", "", "network = load()", '"""', "", *imports(text)]
    return (
        "\n".join([*head, "", f'WEIGHTS = Path(__file__).with_name("{weights}")', *constants(spec), text.rstrip()])
        + "\n"
    )


def class_lines(definition: Definition) -> Iterator[str]:
    yield f"class {definition.name}({definition.base}):"
    if definition.documentation:
        first, *rest = definition.documentation.split("\n")
        yield f'    """{first}' + ("" if rest else '"""')
        yield from (f"    {line}".rstrip() for line in rest)
        if rest:
            yield '    """'
        yield ""
    yield from signature("__init__", definition.parameters)
    yield from laid_out("", definition.start, "", indent=8)
    for name, term in definition.members:
        yield from laid_out(f"self.{name} = ", term, "", indent=8)
    for name, term in definition.buffers:
        yield from laid_out(f'self.register_buffer("{name}", ', term, ")", indent=8)
    if definition.body:
        yield ""
        yield from signature("forward", definition.inputs)
        for node in definition.body:
            yield from statement(node, indent=8)


def signature(name: str, parameters: tuple[str, ...]) -> Iterator[str]:
    flat = f"    def {name}({', '.join(('self', *parameters))}):"
    if len(flat) <= WIDTH:
        yield flat
        return
    yield f"    def {name}("
    yield from (f"        {parameter}," for parameter in ("self", *parameters))
    yield "    ):"


def imports(text: str) -> Iterator[str]:
    """Yields the imports that the text needs, in the order of isort."""

    def uses(name: str) -> bool:
        return re.search(rf"\b{name}\b", text) is not None

    standard = ["import math"] * uses(r"math\.")
    standard += ["from collections import OrderedDict"] * uses("OrderedDict") + ["from pathlib import Path"]
    others = ["import torch"] * uses(r"torch\.") + ["import torch.nn.functional as F"] * uses(r"F\.")
    yield from [*standard, "", *others, "from safetensors.torch import load_file", "from torch import nn"]


def constants(spec: DataSpec) -> Iterator[str]:
    """Yields the constants that are needed to make the network's input and to read its output."""
    if spec.class_names:
        yield from values("CLASSES", [repr_quoted(name) for name in spec.class_names])
    if isinstance(spec, ImageSpec):
        yield from values("MEAN", list(map(repr, spec.mean)))
        yield from values("STD", list(map(repr, spec.std)))


def values(name: str, written: list[str]) -> Iterator[str]:
    flat = f"{name} = ({', '.join(written)}{',' * (len(written) == 1)})"
    if len(flat) <= WIDTH:
        yield flat
        return
    yield f"{name} = ("
    yield from (f"    {value}," for value in written)
    yield ")"


def one_line(text: str) -> str:
    """Returns the text without characters that a docstring cannot hold.

    The title has names of a data set and a space in it, which come from a checkpoint.
    """
    return "".join(letter if letter.isprintable() and letter not in '"\\' else "_" for letter in text)


def repr_quoted(text: str) -> str:
    """Returns the text in double quotes, if it has no double quotes itself."""
    quoted = repr(text)
    return f'"{quoted[1:-1]}"' if quoted[0] == "'" and '"' not in quoted else quoted
