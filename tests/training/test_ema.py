import pytest
import torch
from no_waiting import no_waiting
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nas.errors import ConfigError
from nas.training.ema import Average, check_averaged


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())


def move(model, step):
    """Stands for a training step."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.train()(torch.randn(4, 1, 5, 5, generator=generator))


def test_the_average_is_its_closed_form():
    """average = sum over steps of weight_t (1 - kept_t) prod of kept after t, and the start what is left."""
    model = network()
    start = model[0].weight.detach().clone()
    average, steps, decay = Average(model, decay=0.4), 8, 0.4
    seen = []
    for step in range(steps):
        move(model, step)
        average.update()
        seen.append(model[0].weight.detach().clone())
    kept = [min(decay, (1 + t) / (10 + t)) for t in range(steps)]
    assert kept[:2] == [0.1, 2 / 11]
    assert kept[-1] == decay
    expected = start * torch.tensor(kept).prod()
    for t, weight in enumerate(seen):
        expected = expected + weight * (1 - kept[t]) * torch.tensor(kept[t + 1 :]).prod()
    assert torch.allclose(average.network[0].weight, expected, atol=1e-6)
    assert average.updates == steps


def test_once_warm_it_is_torchs_averaged_model():
    model, decay = network(), 0.9
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    move(model, 0)
    theirs.update_parameters(model)  # the first of theirs is a copy
    ours = Average(model, decay=decay)
    ours.updates = 1000  # of which the decay is the one that was asked for
    for step in range(1, 6):
        move(model, step)
        ours.update()
        theirs.update_parameters(model)
    for name in ("0.weight", "1.weight", "1.running_mean", "1.running_var"):
        assert torch.allclose(ours.network.state_dict()[name], theirs.module.state_dict()[name], atol=1e-6), name


def test_weights_in_16_bits_are_refused_as_their_average_would_not_move():
    model = nn.Linear(2, 2).bfloat16()
    with pytest.raises(ConfigError, match="takes weights in float32 or wider, got weight in bfloat16"):
        check_averaged(model)
    check_averaged(model.requires_grad_(False))


def test_counts_are_copied_and_the_network_is_left_alone():
    model = network()
    average = Average(model, decay=0.9)
    for step in range(3):
        move(model, step)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        average.update()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert average.network[1].num_batches_tracked == model[1].num_batches_tracked == 3
    assert not torch.equal(average.network[0].weight, model[0].weight)
    assert all(parameter.requires_grad for parameter in average.network.parameters())


def test_it_keeps_the_memory_format():
    model = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    average = Average(model, decay=0.9)
    average.update()
    assert average.network.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_it_does_not_wait_for_the_gpu():
    model = network().cuda()
    average = Average(model, decay=0.9)
    with no_waiting():
        average.update()


class Replacing(nn.Module):
    """Replaces buffers in its forward pass, in place of writing into them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        for name in ("mean", "twin", "last", "none"):
            self.register_buffer(name, torch.zeros(2), persistent=name == "mean")
        self.twin = self.mean

    def forward(self, x):
        self.mean = self.twin = self.mean + x
        self.last, self.none = x.repeat(2), None


def test_buffers_that_a_step_replaces_are_averaged_too():
    model = Replacing()
    average = Average(model, decay=0.9)
    for _ in range(2):
        model(torch.ones(2))
        with torch.no_grad():
            model.weight += 1j
        average.update()
    kept = 0.1, 2 / 11
    expected = (1 - kept[0]) * 1 * kept[1] + (1 - kept[1]) * 2
    ours = average.network
    assert torch.allclose(ours.mean, torch.full((2,), expected))
    assert torch.equal(ours.twin, ours.mean)
    assert torch.allclose(ours.weight.detach(), torch.full((2,), 1 + expected * 1j))
    assert torch.equal(ours.last, torch.ones(4))
    assert ours.none is None
    assert ours.state_dict().keys() == model.state_dict().keys()


def test_a_buffer_with_infinite_numbers_does_not_become_nan():
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    model.register_buffer("highest", torch.full((2,), -torch.inf, dtype=torch.float64))  # so far
    average = Average(model, decay=0.9)
    for highest, expected in ((-torch.inf, -torch.inf), (2.0, 2.0), (4.0, 2 * 3 / 12 + 4 * 9 / 12)):
        model.highest.fill_(highest)
        average.update()
        assert torch.equal(average.network.mask, model.mask)
        assert average.network.highest.tolist() == pytest.approx([expected] * 2)


class Counting(nn.Linear):
    """Keeps a number and a list in the extra state of its state dict."""

    def __init__(self):
        super().__init__(2, 2)
        self.seen, self.sizes = 0, []

    def get_extra_state(self):
        return {"seen": self.seen, "sizes": self.sizes}

    def set_extra_state(self, state):
        self.seen, self.sizes = state["seen"], state["sizes"]

    def forward(self, x):
        self.seen += len(x)
        self.sizes.append(len(x))
        return super().forward(x)


def test_extra_state_is_that_of_the_network():
    model = nn.Sequential(Counting())
    average = Average(model, decay=0.9)
    model(torch.ones(3, 2))
    average.update()
    (mine,), (live,) = average.network, model
    assert (mine.seen, mine.sizes) == (live.seen, live.sizes) == (3, [3])
    assert mine.sizes is not live.sizes


def test_extra_state_that_is_never_taken_back_stays():
    class Told(nn.Linear):
        def get_extra_state(self):
            return {"made": "by hand"}

    average = Average(Told(2, 2), decay=0.9)
    average.update()
    assert average.updates == 1
