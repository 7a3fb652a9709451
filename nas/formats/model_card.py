"""MODEL_CARD.md: what an exported network is, how it came about, and how to load it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nas.formats.front_matter import front_matter
from nas.formats.preprocessing import sentences
from nas.storage.command_line import pasted
from nas.supernet.genotype import Genotype
from nas.untrusted.escaping import code, fenced, markdown

MOST_CLASSES = 100  # of the table of accuracies
SPLITS = (("train", "examples for training"), ("test", "held out for the final score"))


def model_card(metadata: Mapping[str, Any], genotype: Genotype) -> str:
    """Markdown. metadata: as in metadata.json."""
    return "\n".join(lines(metadata, genotype)) + "\n"


def lines(metadata: Mapping[str, Any], genotype: Genotype) -> Iterator[str]:
    data, results = metadata["data"], metadata["results"]
    yield from front_matter(metadata, genotype.space)
    yield ""
    yield f"# {markdown(metadata['title'])}"
    yield ""
    searched = "search" in metadata["settings"]
    found = ", found by differentiable architecture search" if searched else ""
    yield f"A network of the search space {code(genotype.space)}{found}."
    yield ""
    yield from intended_use(data, results)
    yield from results_of(metadata, searched=searched)
    yield from input_and_output(metadata)
    yield from how_it_came_about(metadata, genotype)
    yield from how_to_load(metadata)


def intended_use(data: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[str]:
    tested = code(results.get("data", data["name"]))
    yield "## Intended use"
    yield ""
    if data["class_names"]:
        yield (
            f"To tell {len(data['class_names'])} classes apart, in examples like those of {tested}. It names one of "
            "these classes for every input, also for one that shows none of them."
        )
    else:
        yield f"To predict the targets of {tested} from inputs like those of its examples."
    yield "Its scores hold for such examples only: measure it on examples of your own before you rely on it."
    yield ""


def results_of(metadata: Mapping[str, Any], *, searched: bool) -> Iterator[str]:
    """searched: whether the run searched, too; otherwise the genotype was given."""
    data, results = metadata["data"], metadata["results"]
    yield "## Results"
    yield ""
    if not any(name.startswith("test_") for name in results):
        yield "Not scored on a test split:"
    elif (tested := results.get("data", data["name"])) == data["name"]:
        unseen = "neither the search nor the training saw" if searched else "the training did not see"
        yield f"On the test split of {code(tested)}, which {unseen}:"
    else:
        trained_on = code(data["name"])
        yield f"On the test split of {code(tested)}, another data set than {trained_on}, which it was trained on:"
    yield ""
    yield "| measure | value |"
    yield "|---|---|"
    yield from (f"| {markdown(name.replace('_', ' '))} | {value} |" for name, value in shown(results))
    yield ""
    yield from per_class(results)


def input_and_output(metadata: Mapping[str, Any]) -> Iterator[str]:
    data = metadata["data"]
    yield "## Input and output"
    yield ""
    yield f"- Input: {metadata['input']}. Of one example: {', '.join(map(str, data['input_shapes']))}."
    yield f"- Output: {markdown(metadata['output'])}."
    yield from (f"- {name}: {data[name]}" for name in ("mean", "std") if name in data)
    if (reading := metadata.get("preprocessing")) is not None:
        yield from (f"- {said}" for said in sentences(reading))
    if data["class_names"]:
        yield f"- Classes: {', '.join(map(markdown, data['class_names']))}"
    yield ""
    if reading is not None:
        called = "`read` makes the input of an image file" if "orientation" in reading else "`prepare` makes the input"
        yield f"From an image to the input, with numpy{' and Pillow' if 'orientation' in reading else ''}: {called}."
        yield from ("", *fenced("python", reading["code"].rstrip()), "")


def how_it_came_about(metadata: Mapping[str, Any], genotype: Genotype) -> Iterator[str]:
    yield "## How it came about"
    yield ""
    yield from training_images(metadata)
    yield from (f"- {name}: {value}" for name, value in origin(metadata["origin"]))
    for stage, settings in metadata["settings"].items():
        yield from ("", f"Settings of the {stage}:", "", *fenced("json", json.dumps(settings, indent=2)))
    yield from ("", "The architecture (`genotype.json`):", "")
    yield from (f"- {code(key)}: {markdown(name)}" for key, name in genotype.choices.items() if name is not None)


def how_to_load(metadata: Mapping[str, Any]) -> Iterator[str]:
    data, reading = metadata["data"], metadata.get("preprocessing")
    yield from ("", "## How to load it", "")
    inputs = "x is the input, a tensor" if len(data["input_shapes"]) == 1 else "x1, x2, ... are the inputs, tensors"
    yield f"Start Python in the directory of this file; {inputs}, and y is the output. This very code ran in a fresh"
    yield "process, and y compared with the output of the trained network."
    for file, artefact in metadata["artefacts"].items():
        yield from ("", f"### {file}", "", f"{sentence(artefact['about'])} Needs {', '.join(artefact['needs'])}.", "")
        yield from fenced("python", artefact["code"].rstrip())
        yield ""
        if reading is not None and data["class_names"]:
            yield from one_picture(artefact, from_files="orientation" in reading)
        if "warning" in artefact:
            yield from (f"**{artefact['warning']}**", "")
        yield f"Largest difference to the network: {artefact['largest_difference_to_network']:g}."
        known = ("about", "needs", "code", "warning", "largest_difference_to_network")
        yield from (f"{sentence(f'{k} {v:g}'.replace('_', ' '))}" for k, v in artefact.items() if k not in known)
    for name, reason in metadata["left_out"].items():
        yield from ("", f"Not there: {name}, because {markdown(reason)}.")


def per_class(results: Mapping[str, Any]) -> Iterator[str]:
    """A table of the accuracies; of many classes of the worst."""
    measured = [(name, of) for name, of in (results.get("test_per_class") or {}).items() if of["accuracy"] is not None]
    if not measured:
        return
    shown_ = measured
    if len(measured) > MOST_CLASSES:
        shown_ = sorted(measured, key=lambda one: one[1]["accuracy"])[:MOST_CLASSES]
        yield f"The {MOST_CLASSES} worst of {len(measured)} classes; `metadata.json` has all of them:"
        yield ""
    yield "| class | accuracy | examples |"
    yield "|---|---|---|"
    yield from (f"| {markdown(name)} | {of['accuracy']:.2%} | {of['examples']:,} |" for name, of in shown_)
    yield ""


def training_images(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Which examples the network has seen."""
    seen = metadata.get("training_data") or {}
    name = code(metadata["data"]["name"])
    counts = [f"{seen[split]:,} {said}" for split, said in SPLITS if seen.get(split) and isinstance(seen[split], int)]
    if share := metadata["settings"].get("retraining", {}).get("validation"):
        counts.insert(1, f"of which the last training left out {share:.0%} for validation")
    yield f"- Data: {name}{', ' + ', '.join(counts) if counts else ''}"
    if isinstance(seen.get("trained_on"), str):
        yield f"- SHA-256 of the list of training examples: {code(seen['trained_on'])}"


def one_picture(artefact: Mapping[str, Any], *, from_files: bool) -> Iterator[str]:
    """The lines that go before and after an artefact's code to name the class of a picture."""
    made = 'read("picture.png")' if from_files else "prepare(pixels)"
    x = made if "torch" not in artefact["code"] else f"torch.from_numpy({made})"
    maker = code(made.partition("(")[0])
    yield f"For one picture, {maker} from above makes `x` before that, and its class is printed after it:"
    yield ""
    needed = ("import torch",) if x != made else ()
    names = (
        "import json",
        "from pathlib import Path",
        'names = json.loads(Path("metadata.json").read_text())["data"]["class_names"]',
    )
    yield from fenced(
        "python", "\n".join([*needed, f"x = {x}", "# the code above", *names, "print(names[int(y.argmax())])"])
    )
    yield ""


def shown(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The numbers among the results, and pairs of numbers, which are intervals; metadata.json has the rest."""
    for name, value in results.items():
        if isinstance(value, bool | str) or value is None:
            continue
        if isinstance(value, int | float):
            yield name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(end, int | float) for end in value):
            yield name, f"{value[0]:.4g} to {value[1]:.4g}"


def origin(manifest: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Yields what is recorded of the run that trained the network, e.g. its command and seed."""
    if manifest is None:
        yield "Run", "not recorded: the checkpoint was not in the directory of its run"
        return
    yield "Command", code(pasted(manifest["command"]))
    yield "Commit", markdown(manifest["commit"] or "an installed release")
    yield "Versions", ", ".join(markdown(f"{name} {version}") for name, version in manifest["versions"].items())
    yield "Seed", str(manifest["seed"])
    yield "Device", markdown(manifest["device"])
    yield "Started", markdown(manifest["started"])


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
