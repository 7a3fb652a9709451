"""Mixup and cutmix: every image of a batch is mixed with another one, and their labels to the same parts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from nas.data.global_random import drawing_from

# (images (B, C, H, W) float, labels (B,), generator on the CPU) -> (images, (B, classes) probabilities)
Mix = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]


class Mixing:
    """torchvision's MixUp and CutMix, on the device of the batch; the share is drawn on the CPU, once a batch.

    mixup: alpha of Beta(alpha, alpha), the distribution of the share at which two images are blended, > 0, or 0 for
    no mixup. cutmix: likewise of the area that stays when a rectangle is pasted. At least one is > 0; with both, every
    batch gets one of them, each equally often.
    Sources: Zhang et al. 2018 (mixup), Yun et al. 2019 (cutmix).
    """

    def __init__(self, *, classes: int, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        from torchvision.transforms import v2  # seconds: only for those who use it

        kinds: tuple[tuple[Any, float], ...] = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self._kinds = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha > 0]

    def __call__(self, images: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        with drawing_from(generator):
            mixed: tuple[Tensor, Tensor] = self._kinds[int(torch.randint(len(self._kinds), ()))](images, labels)
        return mixed
