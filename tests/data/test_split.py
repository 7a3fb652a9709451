import pytest
import torch
from torch import Tensor

from nas.data.bundle import Split
from nas.data.split import StreamSplit, TensorSplit, fits_in_memory
from nas.errors import DataError

CPU = torch.device("cpu")
IMAGES = torch.arange(40).to(torch.uint8).view(10, 1, 2, 2)
LABELS = torch.arange(10) % 3


class Source:
    """An ImageSource of IMAGES; reading number `broken` fails."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == self.broken:
            raise DataError(f"image {index} is damaged; see the log", fix="repair it")
        return IMAGES[index], int(LABELS[index])


SPLITS = {
    "tensor": lambda: TensorSplit(IMAGES, LABELS),
    "stream": lambda: StreamSplit(Source(), LABELS, workers=0),
    "workers": lambda: StreamSplit(Source(), LABELS, workers=1),
}


@pytest.fixture(params=SPLITS)
def split(request: pytest.FixtureRequest) -> Split:
    made: Split = SPLITS[request.param]()
    return made


def test_batches_follow_the_order(split: Split) -> None:
    order = [torch.tensor([3, 1]), torch.tensor([9, 0, 3])]
    for _ in range(2):  # a second pass reuses the workers
        got = list(split.batches(order, device=CPU))
        assert len(got) == 2
        for (images, labels), indices in zip(got, order, strict=True):
            assert images.dtype == torch.uint8
            assert labels.dtype == torch.int64
            assert torch.equal(images, IMAGES[indices])
            assert torch.equal(labels, LABELS[indices])


def test_a_new_pass_may_start_before_the_last_one_ended(split: Split) -> None:
    abandoned = split.batches([torch.tensor([k]) for k in range(10)], device=CPU)
    next(abandoned)
    images, _ = next(split.batches([torch.tensor([7])], device=CPU))
    assert torch.equal(images, IMAGES[7:8])


def test_an_empty_order_has_no_batches(split: Split) -> None:
    assert list(split.batches([], device=CPU)) == []


def test_a_subset_of_a_subset_selects_twice(split: Split) -> None:
    part = split.subset(torch.tensor([8, 6, 4, 2])).subset(torch.tensor([3, 0]))
    assert len(part) == 2
    assert torch.equal(part.labels, LABELS[[2, 8]])
    ((images, labels),) = part.batches([torch.tensor([0, 1])], device=CPU)
    assert torch.equal(images, IMAGES[[2, 8]])
    assert torch.equal(labels, LABELS[[2, 8]])


def test_a_pass_leaves_the_global_generator_alone(split: Split) -> None:
    before = torch.get_rng_state()
    list(split.batches([torch.tensor([0])], device=CPU))
    assert torch.equal(torch.get_rng_state(), before)


def test_tensor_subsets_share_the_pixels() -> None:
    split = TensorSplit(IMAGES, LABELS)
    assert split.subset(torch.tensor([1]))._memory is split._memory


def test_tensor_split_rejects_unequal_lengths() -> None:
    with pytest.raises(DataError, match=r"as many targets as inputs, got \[10\] inputs and 9 targets"):
        TensorSplit(IMAGES, LABELS[:9])
    with pytest.raises(DataError, match=r"got \[10, 9\] inputs and 10 targets"):
        TensorSplit((IMAGES, IMAGES[:9]), LABELS)


@pytest.mark.parametrize(
    ("targets", "are_labels"),
    [(LABELS, True), (LABELS.to(torch.uint8), True), (LABELS.float(), False), (LABELS[:, None], False)],
)
def test_one_integer_an_example_is_a_class_label(targets: Tensor, are_labels: bool) -> None:
    labels = TensorSplit(IMAGES, targets).labels
    assert torch.equal(labels, LABELS) if are_labels and labels is not None else labels is None


class Pairs:
    """A Source of two inputs and a value."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        return (IMAGES[index], torch.tensor([float(index)])), torch.tensor(index / 2)


@pytest.mark.parametrize(
    "split",
    [
        TensorSplit((IMAGES, torch.arange(10.0)[:, None]), torch.arange(10) / 2),
        StreamSplit(Pairs(), None, workers=0),
        StreamSplit(Pairs(), None, workers=1),
    ],
    ids=["tensor", "stream", "workers"],
)
def test_several_inputs_and_targets_that_are_values(split: Split) -> None:
    assert split.labels is None
    part = split.subset(torch.tensor([8, 6, 4]))
    ((inputs, targets),) = part.batches([torch.tensor([2, 0])], device=CPU)
    assert isinstance(inputs, tuple)
    assert torch.equal(inputs[0], IMAGES[[4, 8]])
    assert inputs[1].tolist() == [[4.0], [8.0]]
    assert targets.tolist() == [2.0, 4.0]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_a_data_error_from_any_process(workers: int) -> None:
    split = StreamSplit(Source(broken=5), LABELS, workers=workers)
    with pytest.raises(DataError) as caught:
        list(split.batches([torch.tensor([0, 5]), torch.tensor([1])], device=CPU))
    assert str(caught.value) == "image 5 is damaged; see the log; repair it"


def test_fits_in_memory_counts_one_byte_a_value() -> None:
    assert fits_in_memory(images=1024, shape=(1, 32, 32), limit_mb=1)
    assert not fits_in_memory(images=1025, shape=(1, 32, 32), limit_mb=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_holds_one_copy_for_all_subsets(split: Split) -> None:
    device = torch.device("cuda")
    parts = [split.subset(torch.arange(5)), split.subset(torch.arange(5, 10))]
    for part, expected in zip(parts, (IMAGES[:5], IMAGES[5:]), strict=True):
        ((images, labels),) = part.batches([torch.arange(5)], device=device)
        assert images.device.type == labels.device.type == "cuda"
        assert torch.equal(images.cpu(), expected)
    if isinstance(split, TensorSplit):
        resident = [part._memory.on(device)[0].data_ptr() for part in parts]  # type: ignore[attr-defined]
        assert resident[0] == resident[1]
