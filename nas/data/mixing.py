"""Mixup and cutmix: mixes every image of a batch with another image, and their labels in the same proportion."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from nas.data.global_random import drawing_from

# (images (B, C, H, W) float, labels (B,), generator on the CPU) -> (images, (B, classes) probabilities)
Mix = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]


class Mixing:
    """Applies torchvision's MixUp or CutMix to a batch, on the device of the batch.

    The proportion is drawn on the CPU, once for each batch.
    mixup: alpha of Beta(alpha, alpha), the distribution of the proportion in which two images are blended; 0 for no
    mixup.
    cutmix: the same for the part of the area that stays when a rectangle is pasted; 0 for no cutmix.
    At least one is > 0. If both are, every batch gets one of the two, each with equal probability.
    Sources: Zhang et al. 2018 (mixup), Yun et al. 2019 (cutmix).
    """

    def __init__(self, *, classes: int, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        from torchvision.transforms import v2  # takes seconds: imported only when used

        kinds: tuple[tuple[Any, float], ...] = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self._kinds = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha > 0]

    def __call__(self, images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        with drawing_from(generator):
            mixed: tuple[Tensor, Tensor] = self._kinds[int(torch.randint(len(self._kinds), ()))](images, labels)
        return mixed
