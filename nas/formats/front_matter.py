"""The YAML at the top of a model card, by which the Hugging Face Hub finds and lists a model."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

# Names of the Hub for data sets of ours.
DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
}
TAGS = ("neural-architecture-search", "gumbel-nas")


def front_matter(metadata: Mapping[str, Any], space: str) -> list[str]:
    """The lines, ``---`` included. Names become words of letters, digits, dots and dashes."""
    data, results = metadata["data"], metadata["results"]
    metric = results.get("metric") or {}
    name = str(metric.get("name", "accuracy"))
    is_image = "mean" in data
    tested = word(results.get("data", data["name"]))
    task = "image-classification" if is_image else "other"
    fields: dict[str, Any] = {
        "library_name": "gumbel-nas",
        "license": "unknown",  # of the weights: only whoever trained them can say
        "tags": [*TAGS, word(space)],
        "metrics": [word(name)],
    }
    if is_image:
        fields["pipeline_tag"] = task
    if data["name"] in DATASETS:
        fields["datasets"] = [DATASETS[data["name"]]]
    value = results.get(f"test_{name}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        dataset = {
            "type": DATASETS.get(str(results.get("data", data["name"])), tested),
            "name": tested,
            "split": "test",
        }
        measured = {"type": word(name), "value": float(value), "name": f"test {word(name)}"}
        result = {"task": {"type": task}, "dataset": dataset, "metrics": [measured]}
        fields["model-index"] = [{"name": word(metadata["title"]), "results": [result]}]
    text: str = yaml.safe_dump(fields, sort_keys=False, allow_unicode=False, width=100)
    return ["---", *text.rstrip("\n").split("\n"), "---"]


def word(text: object) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(text)).strip("-.")[:90] or "unnamed"
