"""Generated images for tests: a fixed pattern for each class, under noise. Results on them mean nothing."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from nas.data.bundle import DataBundle
from nas.data.spec import ImageSpec
from nas.data.split import TensorSplit
from nas.data.statistics import channel_statistics
from nas.data.transforms import Augment
from nas.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Generated images.

    train, test: numbers of images; the classes take turns. size: height and width in pixels.
    """

    train: int = 256
    test: int = 64
    classes: int = 4
    channels: int = 3
    size: int = 8
    seed: int = 0
    crop_padding: int = 0
    flip: bool = False

    def load(self) -> DataBundle:
        for field, least in (("classes", 2), ("channels", 1), ("size", 1), ("train", 1), ("test", 1)):
            if getattr(self, field) < least:
                raise ConfigError(
                    f"data.{field} must be at least {least}, got {getattr(self, field)}",
                    fix=f"set data.{field}={least}",
                )
        generator = Generator().manual_seed(self.seed)
        shape = (self.channels, self.size, self.size)
        patterns = torch.randint(256, (self.classes, *shape), generator=generator).float()
        train_images, train_labels = self._draw(self.train, patterns, generator)
        test_images, test_labels = self._draw(self.test, patterns, generator)
        mean, std = channel_statistics([train_images])
        return DataBundle(
            spec=ImageSpec(
                name="synthetic",
                input_shapes=((self.channels, self.size, self.size),),
                class_names=tuple(f"class_{index}" for index in range(self.classes)),
                mean=mean,
                std=std,
            ),
            train=TensorSplit(train_images, train_labels),
            test=TensorSplit(test_images, test_labels),
            augment=Augment(crop_padding=self.crop_padding, flip=self.flip),
        )

    def _draw(self, count: int, patterns: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count) % self.classes
        noise = torch.randint(256, (count, *patterns.shape[1:]), generator=generator)
        return (0.5 * patterns[labels] + 0.5 * noise).to(torch.uint8), labels
