import io
import re
from contextlib import redirect_stdout

import pytest
import yaml

from nas.formats.model_card import MOST_CLASSES, model_card
from nas.formats.preprocessing import preprocessing
from nas.supernet.genotype import Genotype


def metadata(spec, **changed):
    accuracies = {name: {"accuracy": 0.25 * index, "examples": 8} for index, name in enumerate(spec.class_names)}
    results = {"metric": {"name": "accuracy"}, "test_accuracy": 0.25, "data": spec.name, "test_per_class": accuracies}
    code = "import torch\nnetwork = torch.nn.Flatten()\ny = network(x)\n"
    artefact = {"about": "x", "needs": ["torch"], "code": code, "largest_difference_to_network": 0.0}
    return {
        "title": "a network: of # ours", "input": "x", "output": "scores", "data": spec.to_dict(), "results": results,
        "preprocessing": preprocessing(spec), "origin": None, "settings": {}, "left_out": {},
        "artefacts": {"model.py": artefact}, "training_data": {"train": 1438, "test": 359, "trained_on": "abc"},
    } | changed  # fmt: skip


def test_the_hub_accepts_its_front_matter(spec):
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub, of the extra dev")
    card = hub.ModelCard(model_card(metadata(spec), Genotype("darts", {})))
    assert card.data.library_name == "gumbel-nas"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.tags == ["neural-architecture-search", "gumbel-nas", "darts"]
    assert card.data.metrics == ["accuracy"]
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("tiny", "accuracy", 0.25)
    assert card.data.model_name == "a-network-of-ours"


def test_front_matter_of_anything(spec):
    for changed in ({"results": {"metric": {"name": "x: [", "y": 1}, "test_x: [": True}}, {"results": {}}):
        text = model_card(metadata(spec, **changed), Genotype("<script>", {}))
        fields = yaml.safe_load(text.split("---")[1])
        assert "model-index" not in fields
        assert "<" not in text.split("---")[1]
    data = metadata(spec)["data"] | {"name": "cifar10"}
    assert yaml.safe_load(model_card(metadata(spec, data=data), Genotype("x", {})).split("---")[1])["datasets"] == [
        "uoft-cs/cifar10"
    ]


def test_it_says_which_images_for_what_and_each_class(spec):
    text = model_card(metadata(spec), Genotype("darts", {}))
    assert "To tell 3 classes apart, in examples like those of `tiny`." in text
    assert "| b | 25.00% | 8 |" in text
    assert "- Data: `tiny`, 1,438 examples for training, 359 held out for the final score" in text
    assert "- SHA-256 of the list of training examples: `abc`" in text
    seen = {"settings": {"retraining": {"validation": 0.1}}, "training_data": {"train": 90, "test": 0}}  # as in Python
    of_python = model_card(metadata(spec, **seen), Genotype("darts", {}))
    left_out = "of which the last training left out 10% for validation"
    assert f"- Data: `tiny`, 90 examples for training, {left_out}\n" in of_python
    assert "which the training did not see:" in of_python
    assert ", found by" not in of_python
    searched = model_card(metadata(spec, settings={"search": {}}), Genotype("darts", {}))
    assert "`darts`, found by differentiable architecture search." in searched
    many = {f"c{index}": {"accuracy": index / 1000, "examples": 1} for index in range(300, 0, -1)}
    text = model_card(metadata(spec, results={"test_per_class": many, "data": "tiny"}), Genotype("darts", {}))
    assert f"The {MOST_CLASSES} worst of 300 classes" in text
    assert "| c1 | 0.10% | 1 |" in text
    assert "| c101 |" not in text


def test_the_code_for_one_picture_runs(spec, tmp_path, monkeypatch):
    import json

    import numpy as np

    monkeypatch.chdir(tmp_path)
    names = {"data": {"class_names": [str(index) for index in range(192)]}}
    (tmp_path / "metadata.json").write_text(json.dumps(names))
    prepare, artefact, picture = re.findall(
        r"```python\n(.*?)```", model_card(metadata(spec), Genotype("x", {})), re.DOTALL
    )
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[3, 5, 1] = 255  # of the second channel, place 29: the largest of all
    out = io.StringIO()
    with redirect_stdout(out):
        exec(prepare + picture.replace("# the code above\n", artefact), {"pixels": pixels})
    assert out.getvalue() == f"{64 + 3 * 8 + 5}\n"
