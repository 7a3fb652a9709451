"""The published skeletons of DARTS: every parameter, and one training step of each at full size."""

import dataclasses

import pytest
import torch
from PIL import Image
from torch import nn

from nas.data.image_folder import ImageFolder
from nas.data.loader import Loader
from nas.errors import ConfigError
from nas.formats.load import without_auxiliary
from nas.spaces.darts import PUBLISHED, Darts
from nas.spaces.darts_imagenet import DartsImageNet, ImageNetAuxiliaryHead
from nas.supernet.choice import choices
from nas.training.evaluate import count_macs, count_parameters
from nas.training.loop import RetrainState, TrainingStep
from nas.training.task import Classification


def imagenet(spec, size=224, classes=1000):
    return dataclasses.replace(spec, input_shapes=((3, size, size),), class_names=tuple(map(str, range(classes))))


@pytest.fixture(scope="module")
def space(ops_tables):
    return DartsImageNet(ops=ops_tables["darts"])  # the defaults are the published size


@pytest.mark.parametrize(
    ("name", "parameters"), [pytest.param("DARTS_V1", 4_510_432, marks=pytest.mark.long), ("DARTS_V2", 4_718_752)]
)
def test_parameters_with_a_thousand_classes(name, parameters, space, spec):
    with space.sketching():
        network = space.resized({"auxiliary": True}).network(imagenet(spec), PUBLISHED[name])
    assert count_parameters(network) == parameters
    # Convolutions 768 -> 128 and 128 -> 768 of 2x2, a batch norm of 128, and the classifier, by hand.
    head = 768 * 128 + 2 * 128 + 4 * 128 * 768 + 768 * 1000 + 1000
    assert sum(p.numel() for p in network.auxiliary.parameters()) == head == 1_260_776
    assert without_auxiliary(network).auxiliary is None


def test_multiply_accumulates_at_224(space, spec):
    """Of convolutions and the classifier; the paper says 574 M and not what it counts."""
    with space.sketching():
        network = space.network(imagenet(spec), PUBLISHED["DARTS_V2"])
        assert count_macs(network, imagenet(spec)) == 529_911_552


def test_the_stem_brings_the_image_to_an_eighth(space, spec):
    network = space.resized({"channels": 4, "cells": 3}).network(imagenet(spec, classes=3), PUBLISHED["DARTS_V2"])
    shapes = []
    for module in (network.stem, network.to_last, *network.cells):
        module.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        network.eval()(torch.randn(1, 3, 64, 64))
    # The first cell is a normal one, with a stem before it that halves; the other two are reductions.
    assert shapes == [(4, 16, 16), (4, 8, 8), (16, 8, 8), (32, 4, 4), (64, 2, 2)]


def test_the_genotypes_are_those_of_cifar(space, ops_tables, spec):
    cifar = Darts(ops=ops_tables["darts"], channels=4, cells=3)
    assert space.name == cifar.name
    assert space.resized({"channels": 4, "cells": 3}).options(imagenet(spec)) == cifar.options(spec)


def test_a_supernet_can_be_searched_in_it(space, spec):
    supernet = space.resized({"channels": 2, "cells": 3}).supernet(imagenet(spec, classes=3))
    assert len(choices(supernet)) == 28
    assert not any(module.affine for cell in supernet.cells for module in cell.modules() if hasattr(module, "affine"))


def test_the_auxiliary_head_answers_in_training_only(space, spec):
    small = space.resized({"channels": 2, "cells": 3, "auxiliary": True})
    network = small.network(imagenet(spec, size=193, classes=3), PUBLISHED["DARTS_V2"])
    images = torch.randn(2, 3, 193, 193)
    scores, auxiliary = network.train()(images)
    assert scores.shape == auxiliary.shape == (2, 3)
    auxiliary.sum().backward()
    assert network.stem[0].weight.grad is not None
    assert isinstance(network.eval()(images), torch.Tensor)


def test_the_auxiliary_head_is_of_one_pixel_at_the_published_size():
    before_pooling = nn.Sequential(*list(ImageNetAuxiliaryHead(8, 5))[:7])
    assert before_pooling(torch.randn(2, 8, 7, 7)).shape == (2, 768, 1, 1)


def test_what_does_not_fit(space, spec):
    with pytest.raises(ConfigError, match=r"at least 193x193, got 192x192; set retrain\.network\.auxiliary=false"):
        space.resized({"auxiliary": True}).build(imagenet(spec, size=192), affine=True)
    with pytest.raises(ConfigError, match=r"space\.channels must be even, .* got 5; set space\.channels=6"):
        space.resized({"channels": 5})
    with pytest.raises(ConfigError, match="which the space darts does not have"):
        space.resized({"stem_multiplier": 3})


# -- training steps


def one_step(network, inputs, targets):
    """A real one: finite, with a gradient for every weight, and nearly all of them move."""
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    state = RetrainState(network.train(), torch.optim.SGD(network.parameters(), lr=0.01))
    step = TrainingStep(auxiliary_weight=0.4, grad_clip=5.0)
    first = step(state, (inputs, targets), Classification())
    assert first.loss.isfinite()
    assert first.grad_norm > 0
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.isfinite().all()
    moved = sum(not torch.equal(parameter, before[name]) for name, parameter in network.named_parameters())
    assert moved > 0.95 * len(before)  # dead units may have no gradient


@pytest.mark.parametrize(
    ("name", "parameters"), [pytest.param("DARTS_V1", 3_169_414, marks=pytest.mark.long), ("DARTS_V2", 3_349_342)]
)
def test_a_step_of_the_published_cifar_network(name, parameters, ops_tables, spec):
    cifar = dataclasses.replace(spec, input_shapes=((3, 32, 32),), class_names=tuple("0123456789"))
    space = Darts(ops=ops_tables["darts"], channels=36, cells=20, auxiliary=True)
    network = space.network(cifar, PUBLISHED[name])
    assert count_parameters(network) == parameters
    one_step(network, torch.randn(2, 3, 32, 32), torch.tensor([3, 7]))


def test_a_step_of_the_imagenet_network_on_a_folder_of_images(space, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 2), ("test", 1)):
        for name in ("cats", "dogs"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(256, (80, 70, 3), generator=generator).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(tmp_path / split / name / f"{number}.png")
    data = ImageFolder(root=str(tmp_path), image_size=64).load()
    loader = Loader(
        data.train,
        spec=data.spec,
        batch_size=4,
        device=torch.device("cpu"),
        augment=data.augment,
        shuffle=True,
        drop_last=True,
        what="retrain.batch_size",
    )
    ((images, labels),) = loader.epoch(0)
    assert images.shape == (4, 3, 64, 64)
    one_step(space.network(data.spec, PUBLISHED["DARTS_V2"]), images, labels)
