"""What a run leaves, and where it differs from what another one leaves."""

import json

TIMES = {"seconds", "seconds_per_step", "examples_per_second"}


def left_by(directory):
    """What a run is to leave whatever happens to it: the last states, the genotype, the metrics, the result and the
    names of what is exported."""
    from nas.storage import checkpoint_file

    states = {
        stage: checkpoint_file.load(directory / stage / "checkpoint.pt", stage) for stage in ("search", "retrain")
    }
    for state in states.values():
        del state["config"]  # which names the directory
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
    """Where two of these differ first, None if they do not."""
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
