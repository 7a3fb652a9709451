"""The space of choices in a network that has weights, by names: what files and commands build."""

import json

import pytest
import torch
from custom_models import residual
from hostile_files import call, listed, name as global_name, nested, number, packed, text
from safetensors.torch import save_file, save_model
from torch import nn

import nas
from nas.adapt import Inserted, Teacher
from nas.adapt.trained_weights import load_weights
from nas.data import given
from nas.errors import CheckpointError, ConfigError, SpaceError
from nas.settings.building import built, described
from nas.supernet import choices
from nas.training.hooks import Hook

RUN = {"epochs": 1, "batch_size": 8, "device": "cpu", "progress": False, "tracker": nas.storage.JsonLines}
PLACES = {"1": ["skip", {"narrower": {"fractions": [0.5], "multiple_of": 1}}], "*": {"smaller_kernel": 1}}


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (32, 1, 6, 6), generator=generator, dtype=torch.uint8), torch.arange(32) % 2


@pytest.fixture(scope="module")
def spec():
    return given.training(images(), given.Reading()).spec


@pytest.fixture
def original():
    torch.manual_seed(3)
    model = residual()
    with torch.no_grad():
        model[1].conv1.weight[::2] *= 10  # the even channels are the important ones
    return model


WAYS = {
    "w.pt": lambda state, path: torch.save(state, path),
    "w.ckpt": lambda state, path: torch.save({"epoch": 3, "state_dict": state}, path),
    "w.safetensors": save_file,
}


@pytest.mark.parametrize("name", WAYS)
def test_the_supernet_has_the_weights_of_the_file_and_candidates_made_of_them(name, original, spec, tmp_path):
    WAYS[name](original.state_dict(), tmp_path / name)
    space = Inserted(factory=residual, places=PLACES, weights=str(tmp_path / name))
    supernet = space.supernet(spec)
    found = {key: sharing[0].names for key, sharing in choices(supernet).items()}
    assert found == {"0": ("keep", "1x1"), "1": ("keep", "skip", "width_0.5")}
    keep, _, narrow = supernet[1].candidates
    assert torch.equal(keep.conv1.weight, original[1].conv1.weight)
    assert torch.equal(narrow.conv1.weight, original[1].conv1.weight[::2])
    assert torch.equal(supernet[0].candidates[1].weight, original[0].weight[:, :, 1:2, 1:2])
    chosen = nas.Genotype("inserted", {"0": "keep", "1": "width_0.5"})
    assert torch.equal(space.start(spec, chosen)[1].conv1.weight, narrow.conv1.weight)


def test_files_of_a_trained_network_do_not_need_its_first_weights(original, spec, tmp_path, monkeypatch):
    path = tmp_path / "w.pt"
    torch.save(original.state_dict(), path)
    space = Inserted(factory=residual, places=PLACES, weights=str(path))
    assert built(described(space), "space", allow=[residual]) == space
    seen = {}

    class Before(Hook):
        def after_step(self, state):
            seen.setdefault("stem", state.network[0].weight.detach().clone())

    chosen = nas.Genotype("inserted", {"0": "keep", "1": "width_0.5"})
    still = nas.training.Constant(0.0)
    taught = {"teacher": Teacher(factory=residual, weights=str(path), share=0.25)}
    settings = {"directory": tmp_path / "run", "lr": still, "hooks": [Before()]}
    net = nas.retrain(space, chosen, images(), **settings, **taught, **RUN)
    assert torch.equal(seen["stem"], original[0].weight)  # from scratch is from the trained weights here
    path.unlink()
    monkeypatch.setattr("nas.formats.export.compared", lambda _, made, __: {one.file: 0.0 for one in made})
    nas.export(net, tmp_path / "out", formats="weights")
    assert str(path) not in (tmp_path / "out" / "metadata.json").read_text()
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert '"share": 0.25' in card.partition("Settings of the teacher:")[2]
    assert torch.equal(nas.load(tmp_path / "out", allow=[residual])(net.examples), net(net.examples))
    with pytest.raises(ConfigError, match=r"built \(none\); if you trust it, add its package: allow=\['package'\]$"):
        nas.load(tmp_path / "run")
    loaded, x = nas.load(tmp_path / "run", allow=[residual]), torch.randn(2, 1, 6, 6)
    assert torch.equal(loaded(x), net(x))
    with pytest.raises(CheckpointError, match=r"no weights can be read at .*w\.pt \(no such file\); give a state dict"):
        nas.retrain(space, chosen, images(), **{name: value for name, value in RUN.items() if name != "tracker"})


def test_the_structure_is_made_once_and_each_network_is_its_own(spec, monkeypatch):
    calls = []

    def factory():
        calls.append(1)
        return residual()

    space = Inserted(factory=factory, places={"1": "skip"})
    random = torch.get_rng_state()
    one, other = (space.network(spec, nas.Genotype("inserted", {"1": name})) for name in ("keep", "skip"))
    assert len(calls) == 1
    assert torch.equal(torch.get_rng_state(), random)
    assert one[0] is not other[0]
    assert torch.equal(one[0].weight, other[0].weight)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({}, r"^space\.places is \{\}, expected the paths of modules and makers for them; set e\.g\. space\.places="),
        ({"1": "slim"}, r"^space\.places has 'slim' at 1, expected some of depthwise, .*; write e\.g\. skip"),
        ({"1": nas.adapt.skip()}, r"^space\.places has <function .* call nas\.insert in Python, and give the model$"),
        ({"1": {"narrower": {"factor": 2}}}, r"^space\.places has .* at 1, whose arguments do not fit \(TypeError"),
        ({"1": {"smaller_kernel": [3, 5]}}, r"^space\.places has .* whose arguments do not fit \(TypeError"),
        ({"1": {"narrower": 2}}, "^narrower takes fractions between 0 and 1, got 2"),
        ({"1": {"narrower": "half"}}, "^narrower takes fractions between 0 and 1, got 'half'"),
        ({"1": {"narrower": {"fractions": [0.5], "multiple_of": 0}}}, "^narrower takes a multiple_of >= 1, got 0"),
        ({"1": {"smaller_kernel": 1.0}}, r"^smaller_kernel takes an odd size >= 1, got 1\.0"),
        ({"conv": "skip"}, "^conv matches no module of Sequential; use a path such as "),
    ],
)  # fmt: skip
def test_places_that_cannot_be(places, message, spec):
    with pytest.raises((ConfigError, SpaceError), match=message) as told:
        Inserted(factory=residual, places=places).supernet(spec)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda state: state | {"5.weight": torch.zeros(3, 8)}, r"5\.weight is \(3, 8\), expected \(2, 8\); let"),
        (lambda state: {"x": state["5.bias"]}, r"lacks 0\.weight, .* \(and 25 more\) and has also x; let"),
        (lambda state: {"a": 1}, r"holds no state dict, but a; give a state dict as torch\.save"),
        (lambda state: {"state_dict_ema": state, "epoch": 3}, "holds no state dict, but state_dict_ema, epoch; give"),
        (
            lambda state: {f"module.{name}": value for name, value in state.items()},
            r"lacks .* and has also .*; save the network without its wrapper, as all names begin with 'module\.'",
        ),
        (lambda state: residual(), "holds more than tensors and plain values; nothing of it was run"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(content, message, original, spec, tmp_path):
    torch.save(content(original.state_dict()), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=message) as told:
        Inserted(factory=residual, places=PLACES, weights=str(tmp_path / "w.pt")).supernet(spec)
    assert "\n" not in str(told.value)


def test_a_search_under_a_cap_that_is_stopped_goes_on_with_the_same_bits(original, tmp_path):
    torch.save(original.state_dict(), tmp_path / "w.pt")
    space = Inserted(factory=residual, places=PLACES, weights=str(tmp_path / "w.pt"))
    settings = RUN | {"epochs": 2, "gap_batches": 0, "cap": {"macs": 0.8}}

    class Stop(Hook):
        def after_step(self, state):
            if state.epoch == 1:
                raise RuntimeError("stopped")

    nas.search(space, images(), directory=tmp_path / "whole", **settings)
    with pytest.raises(RuntimeError, match="stopped"):
        nas.search(space, images(), directory=tmp_path / "part", hooks=[Stop()], **settings)
    nas.search(space, images(), directory=tmp_path / "part", resume=True, **settings)
    whole, part = (
        torch.load(tmp_path / name / "search" / "checkpoint.pt", weights_only=True) for name in ("whole", "part")
    )
    for name in ("supernet", "arch"):
        assert all(
            torch.equal(one, other) for one, other in zip(whole[name].values(), part[name].values(), strict=True)
        )
    assert whole["genotype"] == part["genotype"]
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "part")]
    assert results[0] == results[1]
    with pytest.raises(ConfigError, match=r"another configuration: cap\.macs=0\.9 \(was 0\.8\)"):
        nas.search(space, images(), resume=tmp_path / "part", **settings | {"cap": {"macs": 0.9}})
    torch.save(residual().state_dict(), tmp_path / "w.pt")  # others, from which a retraining would start
    with pytest.raises(ConfigError, match=r"^the file of space\.weights has other weights than when .* was written; "):
        nas.search(space, images(), resume=tmp_path / "part", **settings)


class WithExtra(nn.Linear):
    def get_extra_state(self):
        return {"scale": 2}

    def set_extra_state(self, state):
        self.scale = state["scale"]


def test_tied_weights_of_safetensors_and_extra_states_load(tmp_path):
    made = [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), WithExtra(4, 2)) for _ in range(2)]
    for one in made:
        one[1].weight = one[0].weight
    trained, network = made
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    load_weights(network, tmp_path / "w.pt")
    assert network[2].scale == 2
    plain = [nn.Sequential(*one[:2]) for one in made]
    with torch.no_grad():
        plain[0][0].weight.fill_(3.0)
    save_model(plain[0], str(tmp_path / "w.safetensors"))  # which writes the tied weight once
    load_weights(plain[1], tmp_path / "w.safetensors")
    assert plain[1][1].weight is plain[1][0].weight
    assert (plain[1][0].weight == 3).all()


def quantised(state):
    return {**state, "0.bias": torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8)}


HOSTILE = {
    "endless hash": listed(nested(60), b"}h\x3bNs"),
    "memory": call(global_name("builtins", "bytearray"), number(3 * 10**9)),
    "methods": call(global_name("collections", "OrderedDict")) + b"}" + text("values") + number(5) + b"sb",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_of_weights_is_one_line(kind, tmp_path):
    (tmp_path / "w.pt").write_bytes(packed(b"\x80\2" + HOSTILE[kind] + b".", {"0": bytes(16)}))
    with pytest.raises(CheckpointError) as raised:
        load_weights(nn.Linear(4, 4), tmp_path / "w.pt")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("make", [quantised, lambda state: {**state, "0.bias": torch.zeros(4).to_sparse()}])
@pytest.mark.filterwarnings("ignore")  # torch's, of old kinds of tensors
def test_weights_of_another_kind_are_one_line(make, tmp_path):
    network = nn.Sequential(nn.Linear(4, 4))
    torch.save(make(network.state_dict()), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="more than tensors"):
        load_weights(network, tmp_path / "w.pt")


@pytest.mark.parametrize("new", [True, False])
def test_checkpoints_of_other_programs_load(new, tmp_path):
    torch.manual_seed(0)
    network, other = nn.Linear(4, 4), nn.Linear(4, 4)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])  # whose state holds a Counter
    state = {"epoch": 3, "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "arguments": b"\xe9"}
    torch.save({**state, "state_dict": network.state_dict()}, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
    load_weights(other, tmp_path / "w.pt")
    assert torch.equal(other.weight, network.weight)
