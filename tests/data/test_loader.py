from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch

from nas.data.bundle import Split
from nas.data.inputs import Batch
from nas.data.loader import Loader, search_batches
from nas.data.mixing import Mixing
from nas.data.policy import TrivialAugment
from nas.data.spec import DataSpec, ImageSpec
from nas.data.split import StreamSplit, TensorSplit
from nas.data.transforms import Augment
from nas.errors import ConfigError, DataError
from nas.runtime.distributed import Share

CPU = torch.device("cpu")
SPEC = ImageSpec(name="n", input_shapes=((1, 4, 4),), class_names=("a", "b"), mean=(0.0,), std=(1 / 255,))


def split_of(count: int) -> TensorSplit:
    """Image k has only pixels k, and with SPEC normalising leaves it so."""
    images = torch.arange(count).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return TensorSplit(images, torch.arange(count) % 2)


def loader(split: Split | int, **changes: Any) -> Loader:
    arguments: dict[str, Any] = {"batch_size": 4, "shuffle": True, "drop_last": True, "what": "search.batch_size"}
    made = split_of(split) if isinstance(split, int) else split
    return Loader(made, device=CPU, **{"spec": SPEC, **arguments, **changes})


def numbers(batch: Batch) -> list[int]:
    return [round(value) for value in batch[0][:, 0, 0, 0].tolist()]


def flat(batches: Iterable[Batch]) -> list[int]:
    return [number for batch in batches for number in numbers(batch)]


def assert_equal(a: Iterable[Batch], b: Iterable[Batch]) -> None:
    for (images_a, labels_a), (images_b, labels_b) in zip(a, b, strict=True):
        assert torch.equal(images_a, images_b)
        assert torch.equal(labels_a, labels_b)


def test_an_epoch_has_every_image_once() -> None:
    full = loader(10, drop_last=False)
    batches = list(full.epoch(0))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert len(full) == 3
    assert sorted(flat(batches)) == list(range(10))
    for images, labels in batches:
        assert images.dtype == torch.float32
        assert images.shape[1:] == SPEC.input_shape
        assert labels.tolist() == [number % 2 for number in numbers((images, labels))]


def test_drop_last_leaves_out_the_rest_and_another_rest_each_epoch() -> None:
    dropping = loader(10)
    assert len(dropping) == 2
    left_out = {frozenset(set(range(10)) - set(flat(dropping.epoch(epoch)))) for epoch in range(20)}
    assert all(len(rest) == 2 for rest in left_out)
    assert len(left_out) > 5


def test_without_shuffle_the_order_is_that_of_the_split() -> None:
    assert flat(loader(9, shuffle=False, drop_last=False).epoch(5)) == list(range(9))


def test_seed_and_epoch_change_the_order_and_nothing_else_does() -> None:
    split = split_of(32)
    first = flat(loader(split, seed=1).epoch(2))
    torch.manual_seed(99)
    assert flat(loader(split, seed=1).epoch(2)) == first
    assert flat(loader(split, seed=2).epoch(1)) != first
    assert flat(loader(split, seed=1).epoch(3)) != first


@pytest.mark.parametrize("start", [0, 1, 3, 8])
def test_start_gives_the_same_batches_as_skipping(start: int) -> None:
    augmented = loader(32, augment=Augment(crop_padding=2, flip=True, cutout=2), seed=7)
    assert_equal(augmented.epoch(3, start=start), list(augmented.epoch(3))[start:])


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
def test_mixed_batches_are_a_function_of_seed_epoch_and_number(options: dict[str, float]) -> None:
    def mixing(seed: int) -> Loader:
        augment = Augment(crop_padding=1, policy=TrivialAugment())
        return loader(32, augment=augment, mix=Mixing(classes=2, **options), seed=seed)

    whole = list(mixing(7).epoch(3))
    torch.manual_seed(99)
    assert_equal(mixing(7).epoch(3, start=2), whole[2:])
    assert not torch.equal(next(mixing(8).epoch(3))[0], whole[0][0])
    for images, targets in whole:
        assert images.shape == (4, 1, 4, 4)
        assert targets.shape == (4, 2)
        assert torch.allclose(targets.sum(1), torch.ones(4))


def test_mixing_draws_after_the_augmentation() -> None:
    """So that the same images are mixed as would be seen without."""
    images, labels = next(loader(32, augment=Augment(crop_padding=1)).epoch(0))
    mixed, targets = next(loader(32, augment=Augment(crop_padding=1), mix=Mixing(classes=2, mixup=1.0)).epoch(0))
    own = torch.nn.functional.one_hot(labels, 2)
    position = int((own != own.roll(1, 0)).any(1).int().argmax())  # where the labels tell the share
    share = float(targets[position] @ own[position].float())
    assert torch.allclose(mixed, share * images + (1 - share) * images.roll(1, 0), atol=1e-4)


def test_start_produces_nothing_before_it() -> None:
    read: list[int] = []

    class Source:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            read.append(index)
            return torch.zeros(1, 4, 4, dtype=torch.uint8), 0

    stream = StreamSplit(Source(), torch.zeros(8), workers=0)
    list(loader(stream, shuffle=False).epoch(0, start=1))
    assert read == [4, 5, 6, 7]


def test_augmentation_differs_between_epochs_and_batches() -> None:
    split = TensorSplit(torch.arange(16).to(torch.uint8).view(1, 1, 4, 4).repeat(64, 1, 1, 1), torch.zeros(64))
    cropping = loader(split, augment=Augment(crop_padding=2), batch_size=32)
    batches = [images for epoch in range(2) for images, _ in cropping.epoch(epoch)]
    assert all(not torch.equal(a, b) for i, a in enumerate(batches) for b in batches[:i])


def rolled(inputs: Any, generator: torch.Generator) -> Any:
    """A user's augmentation that makes each example of two."""
    return inputs + inputs.roll(1, 0) * torch.rand(len(inputs), 1, 1, 1, generator=generator)


FULL = Augment(crop_padding=2, flip=True, cutout=2, policy=TrivialAugment())
ONE_INPUT = DataSpec(name="n", input_shapes=((1, 4, 4),), class_names=("a", "b"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"augment": FULL},
        {"augment": FULL, "mix": Mixing(classes=2, mixup=0.5, cutmix=1.0)},
        {"augment": rolled, "spec": ONE_INPUT},
    ],
    ids=["plain", "augmented", "mixed", "by the user"],
)
@pytest.mark.parametrize("of", [2, 4])
def test_shares_are_parts_of_the_batches_of_one_process(options: dict[str, Any], of: int) -> None:
    whole = loader(26, batch_size=8, **options)
    shares = [loader(26, batch_size=8, share=Share(index, of), **options) for index in range(of)]
    for epoch in range(2):
        batches = list(whole.epoch(epoch, start=1))
        parts = list(zip(*(share.epoch(epoch, start=1) for share in shares), strict=True))
        assert len(parts) == len(batches) == 2
        for (inputs, targets), part in zip(batches, parts, strict=True):
            assert torch.equal(torch.cat([some for some, _ in part]), inputs)
            assert torch.equal(torch.cat([some for _, some in part]), targets)


def test_of_images_each_reads_its_share_alone() -> None:
    read: list[int] = []

    class Source:
        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            read.append(index)
            return torch.full((1, 4, 4), index, dtype=torch.uint8), 0

    found = []
    for index in range(2):
        read.clear()
        stream = StreamSplit(Source(), torch.zeros(16), workers=0)
        list(loader(stream, batch_size=8, augment=Augment(flip=True), share=Share(index, 2)).epoch(0))
        found.append(set(read))
        assert len(read) == 8
    assert found[0] | found[1] == set(range(16))


def test_a_batch_that_cannot_be_shared() -> None:
    with pytest.raises(ConfigError, match=r"search\.batch_size is 4, which 3 processes cannot share equally"):
        loader(32, share=Share(0, 3))


def test_without_augment_images_are_only_normalised() -> None:
    ((images, _),) = loader(4, shuffle=False).epoch(0)
    assert torch.allclose(images[:, 0, 0, 0], torch.arange(4.0), atol=1e-4)


def test_a_batch_larger_than_the_split_says_how_large_it_may_be() -> None:
    with pytest.raises(DataError) as caught:
        loader(300 % 256, batch_size=512)
    assert str(caught.value) == (
        "search.batch_size 512 is larger than the 44 examples of its split; set search.batch_size to at most 44"
    )
    assert len(list(loader(3, batch_size=512, drop_last=False).epoch(0))) == 1


@pytest.mark.parametrize("size", [0, -1])
def test_batch_size_must_be_positive(size: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"search\.batch_size must be at least 1, got {size}; set search\.batch_size"
    ):
        loader(8, batch_size=size)


def test_an_empty_split_is_an_error() -> None:
    empty = split_of(4).subset(torch.arange(0))
    with pytest.raises(DataError, match=r"the split for search\.batch_size has no examples"):
        loader(empty, drop_last=False)


def test_pairs_of_equal_loaders_are_their_epochs() -> None:
    weight, arch = loader(16, seed=0), loader(16, seed=1)
    pairs = list(search_batches(weight, arch, 2))
    assert_equal([pair[0] for pair in pairs], weight.epoch(2))
    assert_equal([pair[1] for pair in pairs], arch.epoch(2))


@pytest.mark.parametrize(("weights", "archs"), [(40, 12), (12, 40), (16, 16), (20, 8), (4, 4)])
def test_architecture_batches_run_through_whole_permutations(weights: int, archs: int) -> None:
    weight, arch = loader(weights, seed=0), loader(archs, seed=1)
    epochs = 6
    pairs = [pair for epoch in range(epochs) for pair in search_batches(weight, arch, epoch)]
    assert len(pairs) == epochs * len(weight)
    got = [pair[1] for pair in pairs]
    for number in range(0, len(got) - len(arch) + 1, len(arch)):
        assert sorted(flat(got[number : number + len(arch)])) == list(range(archs))
    if len(arch) < len(got) // 2:  # further permutations, not the same one again
        assert flat(got[: len(arch)]) != flat(got[len(arch) : 2 * len(arch)]) or archs == 4


@pytest.mark.parametrize(("weights", "archs"), [(40, 12), (12, 40)])
@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_pairs_from_start_are_those_of_the_whole_epoch(weights: int, archs: int, start: int) -> None:
    augment = Augment(crop_padding=1)
    weight, arch = loader(weights, seed=0, augment=augment), loader(archs, seed=1)
    whole = list(search_batches(weight, arch, 3))[start:]
    resumed = list(search_batches(weight, arch, 3, start=start))
    for part in (0, 1):
        assert_equal([pair[part] for pair in resumed], [pair[part] for pair in whole])


def test_architecture_batches_that_no_step_uses_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, arch = loader(12, batch_size=2, seed=1), loader(12, batch_size=3, seed=2)
    every = [pair for epoch in range(3) for pair in search_batches(weight, arch, epoch)]
    sizes: list[int] = []
    batches = TensorSplit.batches

    def counted(self: TensorSplit, order: Sequence[torch.Tensor], *, device: torch.device) -> Iterator[Any]:
        sizes.extend(map(len, order))
        return batches(self, order, device=device)

    monkeypatch.setattr(TensorSplit, "batches", counted)
    wanted = [7, 10, 17]
    some = [pair for epoch in range(3) for pair in search_batches(weight, arch, epoch, wanted=wanted.__contains__)]
    assert [step for step, (_, batch) in enumerate(some) if batch is not None] == wanted
    assert_equal([some[step][1] for step in wanted], [every[step][1] for step in wanted])
    assert_equal([batch for batch, _ in some], [batch for batch, _ in every])
    assert sizes.count(3) == len(wanted)
