"""Reads the results of a run, and compares them with those of another run."""

import json

TIMES = {"seconds", "seconds_per_step", "examples_per_second"}


def left_by(directory):
    """Returns the results that a run must have after any fault.

    These are the last states, the genotype, the metrics, the result and the names of the exported files.
    """
    from nas.storage import checkpoint_file

    states = {
        stage: checkpoint_file.load(directory / stage / "checkpoint.pt", stage) for stage in ("search", "retrain")
    }
    for state in states.values():
        del state["config"]  # has the name of the directory
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((directory / "result.json").read_text())
    return {
        "states": states,
        "metrics": lines,
        "genotype": (directory / "genotype.json").read_text(),
        "result": result,
        "exported": sorted(path.name for path in (directory / "export").iterdir()),
    }


def difference(one, other, place=""):
    """Returns the first difference between two results, or None."""
    import torch

    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return None if same else place
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return f"{place}: keys {sorted(map(str, one.keys() ^ other.keys()))}"
        pairs = [(key, one[key], other[key]) for key in one if key not in TIMES]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = [(index, *pair) for index, pair in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other or (one != one and other != other) else f"{place}: {one!r} and {other!r}"
    found = (difference(a, b, f"{place}/{key}") for key, a, b in pairs)
    return next((place for place in found if place is not None), None)
