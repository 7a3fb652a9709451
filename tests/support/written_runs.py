"""Runs as they are left on the disk, written by the real loggers without any training."""

import json
import math

from nas.storage import atomic
from nas.storage.metrics_log import JsonLines

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR4nGNsYGBiYAAAApIAhPd8o1gAAAAASUVORK5CYII="
OPERATIONS = ("none", "skip_connect", "conv_3x3")
KEYS = ("cell/0-1", "cell/0-2", "cell/1-2")


def write_run(
    directory,
    *,
    epochs=6,
    seed=0,
    sampler="gdas",
    classes=3,
    accuracy=0.9,
    status="finished",
    names=None,
    tracker=JsonLines,
):
    """Returns the directory. The operation of the first edge changes after half of the epochs."""
    directory.mkdir(parents=True)
    names = names or [f"class {index}" for index in range(classes)]
    choices = {}
    with tracker(directory=directory) as log:
        for epoch in range(epochs):
            part = (epoch + 1) / epochs
            metrics = {
                "weights/loss": 2 - part,
                "arch/loss": 2.1 - part,
                "weights/accuracy": part,
                "arch/accuracy": part / 2,
            }
            metrics |= {
                "temperature": 10 - 9 * part,
                "entropy/mean": 1 - part / 2,
                "gap/relaxed": part,
                "gap/derived": part / 3,
            }
            metrics |= {"gap/recalibrated": part / 2, "collapse/skips": 1, "collapse/parameter_free": 2}
            for key in KEYS:
                leads = 1 + (key == KEYS[0] and 2 * epoch >= epochs)
                for index, name in enumerate(OPERATIONS):
                    metrics[f"probability/{key}/{name}"] = 0.2 + (0.4 if index == leads else 0)
                choices[key] = OPERATIONS[leads]
            log.derived(choices)
            log.log("search", epoch, metrics)
        for epoch in range(epochs):
            log.log("retrain", epoch, {"weights/loss": math.exp(-epoch), "weights/accuracy": 1 - 0.5**epoch})
    confusion = {name: {name: 8, names[(index + 1) % len(names)]: 2} for index, name in enumerate(names)}
    files = {
        "manifest.json": {
            "status": status, "seed": seed, "command": ["nas-run", f"sampler={sampler}"],
            "versions": {"gumbel-nas": "0.1.0"}, "device": "cpu", "started": "2026-01-01T00:00:00+00:00",
            "wall_seconds": 75.0, "process": "1 on elsewhere",
            "changed": {"search.epochs": [50, epochs]}, "latency": [{"batch": 1, "median_ms": 2.5 + seed}],
        },
        "genotype.json": {"format": "nas-genotype", "version": 1, "space": "nas_bench_201", "choices": choices},
        "mistakes.json": [{"index": 3, "true": names[0], "predicted": names[1], "confidence": 0.9, "png": PNG}],
        "result.json": {
            "metric": {"name": "accuracy", "higher_is_better": True, "percent": True},
            "test_accuracy": accuracy, "test_accuracy_interval": [accuracy - 0.1, accuracy + 0.05],
            "test_examples": 10 * len(names), "test_loss": 0.5,
            "parameters": 1000 + 100 * seed, "macs": 123456, "data": "digits", "test_confusion": confusion,
            "test_per_class": {name: {"accuracy": 0.8, "examples": 10} for name in names},
            "test_calibration": [[0, None, None], [4, 0.5, 0.25], [6, 0.9, 1.0]],
            "discretisation_gap": {"relaxed": 0.8, "derived": 0.3, "recalibrated": 0.7, "retrained_test": accuracy},
        },
    }  # fmt: skip
    for name, content in files.items():
        atomic.write_json(directory / name, content)
    settings = {"seed": seed, "search": {"epochs": epochs}, "retrain": {"epochs": epochs}}
    groups = {"space": {"_name_": "nas_bench_201"}, "sampler": {"_name_": sampler}, "data": {"_name_": "digits"}}
    (directory / "config.yaml").write_text(json.dumps(settings | groups))
    return directory
