"""Models of torchvision, timm and transformers: searched under a cap, derived, fine-tuned, exported and loaded."""

import copy
import functools
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import nas
from nas.adapt import factorised, fewer_heads, narrower, skip
from nas.training.evaluate import count_parameters

TEXT = (Path(nas.__file__).parent / "adapt" / "README.md").read_text(encoding="utf-8")
CODE, LESSON = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
RUN = {"epochs": 1, "batch_size": 8, "device": "cpu", "progress": False}


class Logits(nn.Module):
    """A model of transformers for tokens, that returns one tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids).logits


def images(count=32, size=16):
    labels = torch.arange(count) % 2
    pixels = torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[labels == 1] //= 3
    return pixels, labels


def tokens(count=32):
    ids = torch.randint(2, 50, (count, 8), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = torch.arange(count) % 2
    return ids, ids[:, 0].clone()


def resnet():
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=2)


def small_resnet():
    """The blocks of a ResNet of torchvision, at a quarter of its width and half of its depth."""
    from torchvision.models.resnet import BasicBlock

    down = nn.Sequential(nn.Conv2d(16, 32, 1, stride=2, bias=False), nn.BatchNorm2d(32))
    parts = {
        "conv1": nn.Conv2d(3, 16, 3, stride=2, padding=1),
        "layer1": nn.Sequential(BasicBlock(16, 16)),
        "layer2": nn.Sequential(BasicBlock(16, 32, stride=2, downsample=down), BasicBlock(32, 32)),
        "avgpool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(32, 2),
    }
    return nn.Sequential(OrderedDict(parts))


def timm_attention():
    models = pytest.importorskip("timm.models.vision_transformer", reason="needs timm, of the extra dev")
    return models.VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=2, num_heads=4, num_classes=2)


def timm_convolutions():
    timm = pytest.importorskip("timm", reason="needs timm, of the extra dev")
    return timm.create_model("test_convnext", pretrained=False, num_classes=2)


def llama():
    transformers = pytest.importorskip("transformers", reason="needs transformers, of the extra dev")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=50, num_key_value_heads=2, max_position_embeddings=16, num_labels=2, pad_token_id=49, **small
    )
    return Logits(transformers.LlamaForSequenceClassification(config))


def bert():
    transformers = pytest.importorskip("transformers", reason="needs transformers, of the extra dev")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, num_labels=2, **small)
    return Logits(transformers.BertForSequenceClassification(config))


MODELS = {
    "blocks": (small_resnet, {"layer*.*": [skip(), narrower(0.5)]}, images),
    "torchvision": (resnet, {"layer*.*": [skip(), narrower(0.5, 0.25)]}, images),
    "timm_attention": (
        timm_attention,
        {"blocks.*.attn": fewer_heads(0.5), "blocks.*.mlp": narrower(0.5), "blocks.*": skip()},
        images,
    ),
    "timm_convolutions": (
        timm_convolutions,
        {"stages.*.blocks.*": [skip(), narrower(0.5)]},
        functools.partial(images, size=32),
    ),
    "llama": (llama, {"model.model.layers.*.mlp": narrower(0.5), "model.model.layers.*": skip()}, tokens),
    "bert": (bert, {"model.bert.encoder.layer.*.intermediate.dense": factorised(0.25)}, tokens),
}
QUICK = ("blocks", "timm_attention")  # others take seconds to import, or to run


def few(train):
    """A small batch of examples, as the network gets them."""
    return train[0][:2].float() if train[0].dtype == torch.uint8 else train[0][:2]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in MODELS])
def test_a_model_is_searched_derived_and_fine_tuned(name):
    make, places, data = MODELS[name]
    torch.manual_seed(0)
    model, train = make().eval(), data()
    whole = count_parameters(model)
    example = few(train)
    before, untouched = model(example), copy.deepcopy(model)
    found = nas.supernet.choices(nas.insert(untouched, places, example=example))
    assert torch.equal(nas.freeze(untouched, dict.fromkeys(found, "keep"))(example), before)
    nas.insert(model, places, example=example)
    found = nas.search(model, train, gap_batches=0, cap={"parameters": 0.9}, **RUN)
    net = nas.retrain(model, found, train, start="supernet", **RUN)
    assert count_parameters(net.network) == found.result["cap"]["parameters"]["predicted"] <= 0.9 * whole
    assert net(net.examples).shape[1:] == (2,)


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_the_file_gives_the_outputs_of_the_network(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    make, places, data = MODELS[name]
    torch.manual_seed(0)
    model, train = make(), data()
    nas.insert(model, places, example=few(train))
    chosen = {key: sharing[0].names[-1] for key, sharing in nas.supernet.choices(model).items()}
    net = nas.retrain(model, nas.Genotype("custom", chosen), train, **RUN)
    nas.export(net, tmp_path / "out", formats=["onnx", "program"])
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    (name,) = (one.name for one in session.get_inputs())
    (outputs,) = session.run(None, {name: net.examples[:4].numpy()})
    assert torch.allclose(torch.from_numpy(outputs), net(net.examples[:4]), atol=1e-4)
    loaded = torch.export.load(tmp_path / "out" / "model.pt2").module()
    assert torch.allclose(loaded(net.examples[:4]), net(net.examples[:4]), atol=1e-4)


@pytest.mark.long  # by the imports of the exporter
def test_the_example_of_the_readme_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # What the fresh process finds is tested in tests/formats.
    monkeypatch.setattr("nas.formats.export.compared", lambda _, made, __: {one.file: 0.0 for one in made})
    torch.manual_seed(0)
    model, train = small_resnet(), images(count=192)
    names = {"model": model, "train": train, "test": images(count=16)}
    exec(CODE, names)
    exec(LESSON.replace("epochs=10", "epochs=1, batch_size=8"), names)
    assert (tmp_path / "smaller" / "model.onnx").is_file()
    assert "'macs': {'cap': " in capsys.readouterr().out
