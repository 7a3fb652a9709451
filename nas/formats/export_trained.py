"""A trained network as files that run without this project."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.data.inputs import each, mapped
from nas.data.loader import Loader
from nas.errors import described
from nas.formats.export import Exported, export
from nas.formats.format import TOLERANCE, Format, Subject
from nas.formats.load import without_auxiliary
from nas.formats.preprocessing import preprocessing
from nas.runtime.buffers import unsaved
from nas.runtime.runtime import refuse_meta
from nas.settings.building import built, foreign, foreign_names, private
from nas.settings.dotted import PLACES
from nas.spaces.space import Space
from nas.storage.run_directory import found_data, recorded
from nas.supernet.copying import copied
from nas.training.evaluate import score
from nas.training.task import Custom
from nas.training.trained import Trained

EXAMPLES = 16  # that every file is compared on
SEARCH = ("search", "sampler", "temperature", "searcher", "deriver", "weight_optim", "arch_optim")


def export_trained(
    trained: Trained,
    loader: Loader | None,
    *,
    formats: Mapping[str, Format],
    result: Mapping[str, Any],
    run: Path | None,
    directory: Path,
    again: bool = False,
) -> Exported:
    """Export, compared on the first examples of the loader, which is the test split's.

    loader: None to compare on training examples, or on made-up ones where the network was loaded. run: the directory of
    the run that trained the network, for its manifest; None for none. result: as in ``result.json``.
    again: see `nas.formats.export.export`.
    """
    inputs = trained.some_inputs() if loader is None else next(loader.epoch(0))[0]
    inputs = mapped(lambda tensor: tensor[:EXAMPLES].cpu().clone(memory_format=torch.contiguous_format), inputs)
    # At least two, because exporters take a size of 1 for a constant.
    examples = tuple(tensor.repeat_interleave(2, dim=0) if len(tensor) == 1 else tensor for tensor in each(inputs))
    # The images may be of another size than in training.
    spec = replace(trained.spec, input_shapes=tuple(tuple(tensor.shape[1:]) for tensor in examples))
    config, metric = trained.config, trained.task.metric

    def measure(network: nn.Module) -> dict[str, float]:
        if loader is None:
            return {}
        device = next(loader.epoch(0))[1].device
        return {f"test_{metric.name}": score(copied(network).to(device), loader, trained.task, trained.spec).metric}

    def remade() -> nn.Module:
        space: Space = built(config["space"], "space", allow=made_of)
        made = space.resized(config["retrain"]["network"]).network(spec, trained.genotype)
        return without_auxiliary(made).eval()

    title = f"{trained.genotype.space} network for {spec.name}"
    made_of = foreign(config["space"])
    network = on_cpu(trained.network)
    subject = Subject(
        network=network,
        examples=examples,
        spec=spec,
        title=title,
        load=f'import nas\n\nnetwork = nas.load("."{f", allow={json.dumps(made_of)}" if made_of else ""})',
        measure=measure,
        unsaved=lambda: needed(network, examples, remade),
        unbuildable=lambda: unbuildable(config["space"], network, remade),
    )
    settings = {"retraining": {"seed": config["seed"], **config["retrain"]}}
    if config.get("teacher") is not None:
        settings["teacher"] = anywhere(config, "teacher")
    if run is not None and (run / "search").is_dir():
        settings = {"search": {name: config[name] for name in SEARCH if name in config}, **settings}
    return export(
        subject,
        formats=formats,
        genotype=trained.genotype,
        metadata={
            "title": title,
            "input": spec.description,
            "output": getattr(trained.task, "output", Custom.output),
            "data": spec.to_dict(),
            "preprocessing": preprocessing(spec),
            "network": {
                "space": anywhere(config, "space"),
                "sizes": config["retrain"]["network"],
                "memory_format": config["runtime"]["memory_format"],
            },
            "results": dict(result),
            "origin": None if run is None else recorded(run),
            "training_data": {**({} if run is None else found_data(run)), "trained_on": trained.trained_on},
            "settings": settings,
        },
        directory=directory,
        again=again,
    )


def anywhere(config: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Returns the settings of a group without paths on this machine."""
    return {name: None if f"{group}.{name}" in PLACES else one for name, one in config[group].items()}


def on_cpu(network: nn.Module) -> nn.Module:
    """A copy that others can load anywhere: on the CPU, in the memory format of files, for inference alone."""
    refuse_meta(network)
    made = without_auxiliary(copied(network)).cpu().eval()
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            # Not contiguous(), which leaves the strides of 1x1 convolutions as they are; kernels are chosen by them.
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return made


def unbuildable(space: Any, network: nn.Module, remade: Callable[[], nn.Module]) -> str:
    """Why nobody can build the network of a user's own model from its files; empty if `remade` does. space: as a plain
    description."""
    if names := private(space):
        return f"no other program can import {', '.join(names)}, which makes the model: put it into a module of its own"
    if owners := foreign_names(space):
        try:
            remade().load_state_dict(network.state_dict())
        except Exception as error:  # whatever a user's own class raises, e.g. of a model that was changed after it
            reason = getattr(error, "problem", described(error))
            return (
                f"{', '.join(sorted(owners))} alone does not make the model ({reason}): give a function that builds "
                "it, choices included, or nas.adapt.Inserted"
            )
    return ""


@torch.no_grad()
def needed(network: nn.Module, examples: tuple[Tensor, ...], remade: Callable[[], nn.Module]) -> tuple[str, ...]:
    """The buffers of the network that its state does not hold, if one made anew needs them to give its outputs: of a
    running average, say, and not of a table that is always the same."""
    names = tuple(unsaved(network))
    if not names:
        return ()
    made = remade()
    made.load_state_dict(network.state_dict())
    same = torch.allclose(made(*examples), network(*examples), rtol=0.0, atol=TOLERANCE, equal_nan=True)
    return () if same else names
