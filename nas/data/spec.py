"""The shapes, types, classes and statistics of a data set, for a network and for an exported artefact."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import torch
from torch import Generator, Tensor

from nas.data.inputs import Inputs, each, mapped
from nas.data.transforms import Augment
from nas.errors import ConfigError, DataError, NasError, described

# (inputs of a batch, generator) -> inputs of the network. Random numbers come from the generator, which is on the CPU.
Preparation = Callable[[Inputs, Generator], Inputs]


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The shapes, types and classes of data, for a network and for an exported artefact.

    input_shapes: the shape of each input of one example. input_dtypes: the type of each input, e.g. ``float32``.
    target_shape: the shape of one target; () for a class label or a number.
    class_names: the names by label; empty if targets are not class labels.
    Raises DataError if the fields contradict each other.
    """

    name: str
    input_shapes: tuple[tuple[int, ...], ...]
    input_dtypes: tuple[str, ...] = ("float32",)
    target_shape: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.input_shapes or any(size < 1 for shape in self.input_shapes for size in shape):
            self._reject(f"every input needs a shape of sizes >= 1, got {self.input_shapes}")
        if len(self.input_dtypes) != len(self.input_shapes) or not all(
            isinstance(getattr(torch, dtype, None), torch.dtype) for dtype in self.input_dtypes
        ):
            self._reject(f"each of {len(self.input_shapes)} inputs needs a dtype of torch, got {self.input_dtypes}")
        if len(self.class_names) == 1:
            self._reject(f"a classifier needs at least 2 classes, got {list(self.class_names)}")
        if len(set(self.class_names)) < len(self.class_names):
            self._reject(f"class names must differ from each other, got {list(self.class_names)}")

    def _reject(self, problem: str) -> NoReturn:
        raise DataError(f"data spec {self.name!r}: {problem}", fix="correct the data set, or the file this comes from")

    @property
    def num_classes(self) -> int:
        """Returns the number of classes. Raises DataError if targets are not class labels."""
        if not self.class_names:
            shape = self.target_shape
            got = f"targets have the shape {shape}, expected one integer each" if shape else "targets are not integers"
            raise DataError(
                f"the data set {self.name!r} has no classes: its {got}",
                fix="return a class label as one integer, name the classes in data.classes if an example has several "
                "labels, or choose a model that does not ask for num_classes",
            )
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Returns the shape of the only input. Raises DataError if there are several inputs."""
        if len(self.input_shapes) > 1:
            raise DataError(
                f"the data set {self.name!r} has {len(self.input_shapes)} inputs, expected one",
                fix="choose a model that takes them, e.g. space=custom with a factory that asks for spec",
            )
        return self.input_shapes[0]

    @property
    def channels(self) -> int:
        """Returns the first size of the only input: C of (C, H, W), of (C, L) and of (C,)."""
        return self._sizes(1)[0]

    @property
    def height(self) -> int:
        return self._sizes(3)[1]

    @property
    def width(self) -> int:
        return self._sizes(3)[2]

    def _sizes(self, least: int) -> tuple[int, ...]:
        shape = self.input_shape
        if len(shape) < least:
            expected = "(C, H, W)" if least > 1 else "(C, ...)"
            raise DataError(
                f"the data set {self.name!r} has inputs of shape {shape}, expected {expected}",
                fix="choose a model for such inputs, e.g. space=custom",
            )
        return shape

    def zeros(self, *, device: torch.device, batch: int = 1) -> Inputs:
        """Returns a batch of examples that are all zeros."""
        made = tuple(
            torch.zeros(batch, *shape, dtype=getattr(torch, dtype), device=device)
            for shape, dtype in zip(self.input_shapes, self.input_dtypes, strict=True)
        )
        return made if len(made) > 1 else made[0]

    def preparation(self, augment: Augment | Preparation | None, device: torch.device) -> Preparation:
        """Returns the function that prepares a batch for the network, on `device`. augment: None for none."""
        assert not isinstance(augment, Augment)  # an Augment is for images, which have an ImageSpec
        return (lambda inputs, generator: inputs) if augment is None else functools.partial(augmented, augment)

    @property
    def must_match(self) -> dict[str, object]:
        """Returns what another data set must have in common to be scored by the same network: name for messages ->
        value."""
        return {
            "inputs": self.input_shapes,
            "input types": self.input_dtypes,
            "targets": self.target_shape,
            "classes": self.class_names,
        }

    @property
    def description(self) -> str:
        """Returns the inputs of the network as text, for a user who makes them without this project."""
        return ", ".join(
            f"{dtype} ({', '.join(map(str, ('batch', *shape)))})"
            for shape, dtype in zip(self.input_shapes, self.input_dtypes, strict=True)
        )

    def to_dict(self) -> dict[str, object]:
        """Returns the fields as plain lists, strings and numbers, which JSON can keep."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "DataSpec":
        """The inverse of `to_dict`. Returns an ImageSpec if there are pixel statistics.

        Raises DataError if a key is missing, unknown, or of the wrong type.
        """
        kind = ImageSpec if {"mean", "std"} & values.keys() else DataSpec
        expected = {field.name for field in fields(kind)}
        if set(values) != expected:
            raise DataError(
                f"a data spec has the keys {sorted(expected)}, got {sorted(values)}",
                fix="write it with DataSpec.to_dict of this version",
            )
        try:
            return kind(**{name: _READ[name](value) for name, value in values.items()})
        except TypeError as error:
            raise DataError(f"data spec: {error}", fix="write it with DataSpec.to_dict of this version") from error


@dataclass(frozen=True, kw_only=True)
class ImageSpec(DataSpec):
    """The description of images with class labels: one input (C, H, W), stored as uint8 pixels.

    mean, std: one value per channel, of pixels scaled to [0, 1].
    from_files: whether the pixels were read by nas.data.image_file.
    image_size: the side of the square to which that module scales and crops the images; None for no scaling.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    from_files: bool = False
    image_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.input_shapes) != 1 or len(self.input_shape) != 3:
            self._reject(f"images are one input of shape (C, H, W), got {self.input_shapes}")
        if not self.class_names:
            self._reject("a classifier needs at least 2 classes, got []")
        for field in ("mean", "std"):
            got = getattr(self, field)
            if len(got) != self.channels:
                self._reject(f"{field} must have one value for each of {self.channels} channels, got {got}")
        if not all(value > 0 for value in self.std):
            self._reject(f"std must be > 0, got {self.std}")

    def preparation(self, augment: Augment | Preparation | None, device: torch.device) -> Preparation:
        """Returns the function that augments and normalises a batch. Raises ConfigError if it would move the pixels of
        images with a label for each pixel, as labels are not augmented."""
        chosen = augment or Augment()
        assert isinstance(chosen, Augment)
        if len(self.target_shape) > 1 and (chosen.crop_padding or chosen.flip or chosen.policy is not None):
            raise ConfigError(
                f"crop_padding, flip and policies move the pixels of {self.name!r}, and would leave its labels of "
                f"shape {self.target_shape} where they are",
                fix="set crop_padding=0, flip=false and no policy",
            )
        # Made once: if these small tensors were made for each batch, they would stall the GPU twice a step.
        mean, std = torch.tensor(self.mean, device=device), torch.tensor(self.std, device=device)

        def prepare(images: Inputs, generator: Generator) -> Tensor:
            if not isinstance(images, Tensor) or images.dtype != torch.uint8:
                self._reject("images must be one uint8 tensor (N, C, H, W)")
            return chosen(images, mean=mean, std=std, generator=generator)

        return prepare

    @property
    def must_match(self) -> dict[str, object]:
        return {"channels": self.channels, "classes": self.class_names}  # most networks take images of any size

    @property
    def description(self) -> str:
        order = "one grey channel" if self.channels == 1 else "channels in the order red, green, blue (RGB)"
        colours = f", {order}" if self.channels in (1, 3) else ""
        return f"float32 (batch, channels, height, width): pixels in [0, 1], less mean, divided by std{colours}"


def augmented(augment: Preparation, inputs: Inputs, generator: Generator) -> Inputs:
    """Returns what a user's own function makes of the inputs of a batch. Raises ConfigError if the function fails, or
    returns something else than as many inputs."""
    examples = len(each(inputs)[0])
    expected = "a tensor, or a tuple of tensors, with as many examples"
    try:
        made: Any = augment(inputs, generator)
    except NasError:
        raise
    except Exception as error:  # of a user's own code
        raise ConfigError(
            f"data.augment fails on a batch of {examples} ({described(error)}), expected a function of (inputs, "
            f"generator) that returns {expected}",
            fix="correct data.augment; --debug shows where it stopped",
        ) from error
    parts = each(made)
    if not parts or not all(isinstance(one, Tensor) and one.ndim and len(one) == examples for one in parts):
        got = ", ".join(
            str(tuple(one.shape)) if isinstance(one, Tensor) else f"a {type(one).__name__}" for one in parts
        )
        raise ConfigError(
            f"data.augment returned {got or '()'} for a batch of {examples}, expected {expected}",
            fix="let it return the inputs alone, all of them: targets do not go through it",
        )
    return mapped(Tensor.detach, made)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _typed(value: Any, *kinds: type) -> Any:
    # To Python a bool is an int, to a user it is not.
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"expected {' or '.join(kind.__name__ for kind in kinds)}, got {value!r}")
    return value


def _flag(value: Any) -> Any:
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {value!r}")
    return value


def _text(value: Any) -> Any:
    return _typed(value, str)


def _tuple(value: Any, *kinds: type) -> tuple[Any, ...]:
    return tuple(_typed(item, *kinds) for item in _typed(value, list, tuple))


# Field of a spec -> the function that checks and converts its value from a file.
_READ: dict[str, Callable[[Any], Any]] = {
    "name": _text,
    "input_shapes": lambda value: tuple(_tuple(shape, int) for shape in _tuple(value, list, tuple)),
    "input_dtypes": lambda value: _tuple(value, str),
    "target_shape": lambda value: _tuple(value, int),
    "class_names": lambda value: _tuple(value, str),
    "mean": lambda value: tuple(map(float, _tuple(value, int, float))),
    "std": lambda value: tuple(map(float, _tuple(value, int, float))),
    "from_files": _flag,
    "image_size": lambda value: None if value is None else _typed(value, int),
}
