import math

import pytest
import torch
from torch import nn

from nas.supernet.arch_params import ArchParams
from nas.supernet.choice import Choice, choices


def choice(size, **kwargs):
    return Choice({f"op{k}": nn.Identity() for k in range(size)}, **kwargs)


@pytest.fixture
def arch():
    """Three choices of 2, 4 and 3 candidates: two rows are padded."""
    model = nn.Sequential(choice(2, key="a"), choice(4, key="b", group="g"), choice(3, key="c"), choice(2, key="a"))
    return ArchParams.from_model(model, init_std=1.0, generator=torch.Generator().manual_seed(2))


def test_one_row_a_key(arch):
    assert arch.keys == ("a", "b", "c")
    assert arch.logits.shape == (3, 4)
    assert arch.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert arch.groups == {"a": None, "b": "g", "c": None}
    assert arch.candidates["c"] == ("op0", "op1", "op2")


def test_logits_are_the_only_parameter_and_not_in_the_model():
    model = nn.Sequential(choice(2), nn.Linear(1, 1))
    arch = ArchParams.from_model(model)
    assert [name for name, _ in arch.named_parameters()] == ["logits"]
    assert not any(parameter is arch.logits for parameter in model.parameters())


def test_padding_has_probability_zero(arch):
    probs = arch.probs()
    assert (probs[~arch.mask] == 0).all()
    assert torch.allclose(probs.sum(dim=-1), torch.ones(3))
    assert (arch.masked()[~arch.mask] == -math.inf).all()
    for row, size in zip(range(3), (2, 4, 3), strict=True):
        assert torch.allclose(probs[row, :size], arch.logits[row, :size].softmax(dim=0))


def test_padding_has_no_influence(arch):
    before = arch.probs()
    with torch.no_grad():
        arch.logits[~arch.mask] = 1e6
    assert torch.equal(arch.probs(), before)


def test_padding_gets_no_gradient_from_probabilities(arch):
    (arch.probs() * torch.arange(12.0).view(3, 4)).sum().backward()
    assert arch.logits.grad.isfinite().all()
    assert (arch.logits.grad[~arch.mask] == 0).all()
    assert (arch.logits.grad[arch.mask] != 0).all()


def test_entropy_by_its_definition(arch):
    entropy = arch.entropy()
    assert entropy.isfinite().all()
    for row, size in zip(range(3), (2, 4, 3), strict=True):
        p = arch.logits[row, :size].softmax(dim=0)
        assert torch.allclose(entropy[row], -(p * p.log()).sum())


def test_entropy_of_no_preference_is_log_k(arch):
    with torch.no_grad():
        arch.logits.zero_()
    assert arch.entropy().tolist() == pytest.approx([math.log(2), math.log(4), math.log(3)])


def test_entropy_of_certainty_is_zero(arch):
    with torch.no_grad():
        arch.logits.zero_()[:, 0] = 1e4
    assert arch.entropy().tolist() == [0.0, 0.0, 0.0]


def test_gradient_of_entropy_is_finite_and_exact_with_padding(arch):
    """d H / d logit_j = -p_j (log p_j + H)."""
    arch.entropy().sum().backward()
    p = arch.probs().detach()
    log_p = torch.where(arch.mask, p.clamp_min(1e-30).log(), 0.0)
    expected = -p * (log_p + arch.entropy().detach()[:, None])
    assert arch.logits.grad.isfinite().all()
    assert torch.allclose(arch.logits.grad, expected, atol=1e-6)


def test_named_probs_leaves_out_the_padding(arch):
    named = arch.named_probs()
    assert [list(row) for row in named.values()] == [[f"op{k}" for k in range(size)] for size in (2, 4, 3)]
    assert named["b"]["op3"] == arch.probs()[1, 3].item()


def test_init_std_and_generator():
    found = choices(nn.Sequential(*(choice(5, key=str(k)) for k in range(400))))
    one = ArchParams(found, init_std=1e-3, generator=torch.Generator().manual_seed(4))
    same = ArchParams(found, init_std=1e-3, generator=torch.Generator().manual_seed(4))
    other = ArchParams(found, init_std=1e-3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(one.logits, same.logits)
    assert not torch.equal(one.logits, other.logits)
    # 2000 draws: the sample deviation has a relative standard error of 1.6 %.
    assert one.logits.std().item() == pytest.approx(1e-3, rel=0.08)
    assert (ArchParams(found, init_std=0.0).logits == 0).all()


def test_an_optimiser_never_moves_the_padding(arch):
    optimizer = torch.optim.Adam(arch.parameters(), lr=0.1, weight_decay=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (arch.probs() ** 2).sum().backward()
        optimizer.step()
    assert (arch.logits[~arch.mask] == 0).all()


def test_state_round_trip(arch):
    other = ArchParams.from_model(
        nn.Sequential(choice(2, key="a"), choice(4, key="b", group="g"), choice(3, key="c")), init_std=0.0
    )
    other.load_state_dict(arch.state_dict())
    assert torch.equal(other.logits, arch.logits)
