"""A user's mistakes: one line on standard error, exit code 2, no files, and a traceback only with --debug."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli.conftest import TINY, Outcome
from PIL import Image

from nas.data import Synthetic

Nas = Callable[..., Outcome]

MISTAKES = {
    "mistyped setting": (
        ("search.epoch=3",),
        "search.epoch is not a setting; did you mean search.epochs or search.warmup_epochs?",
    ),
    "setting in the wrong place": (
        ("epochs=0",),
        "epochs is not a setting; did you mean search.epochs or retrain.epochs?",
    ),
    "option in place of a setting": (
        ("--batch-size", "64"),
        "--batch-size is not an option, expected a setting as name=value, without dashes; "
        "did you mean search.batch_size or retrain.batch_size?",
    ),
    "mistyped group": (("spcae=darts",), "spcae is not a setting; did you mean space?"),
    "mistyped option": (
        ("space=dart",),
        "space=dart is not an option of space; expected one of {options}",
    ),
    "several options of one object": (
        ("tracker=[tensorboard,jsonl]",),
        "tracker takes one of its options, got 2: tensorboard, jsonl; set tracker=tensorboard",
    ),
    "unknown data set": (
        ("data=cifar11",),
        "data=cifar11 is not an option of data; expected one of {options}",
    ),
    "unknown preset": (
        ("experiment=nope",),
        "experiment=nope is not an option of experiment; expected one of {options}",
    ),
    "not an override": (
        ("foo",),
        "'foo' is not of the form key=value; write e.g. search.epochs=10, quoted where a shell needs it",
    ),
    "wrong type": (
        ("seed=one",),
        "seed: Value 'one' of type 'str' could not be converted to Integer; correct the value (see --cfg job)",
    ),
    "switch that is neither on nor off": (
        ("runtime.cuda_graphs=perhaps",),
        "runtime.cuda_graphs must be true, false or composed, got 'perhaps'; set runtime.cuda_graphs=true",
    ),
    "kernels that nothing records": (
        ("runtime.triton=true",),
        "runtime.triton needs runtime.cuda_graphs, as only recorded operations run by Triton; "
        "set runtime.cuda_graphs=true",
    ),
    "switch of the data": (("data.flip=1",), "data.flip must be true or false, got 1; set data.flip=true"),
    "switch of torch's": (
        ("weight_optim.nesterov=maybe",),
        "weight_optim.nesterov must be true or false, got 'maybe'; set weight_optim.nesterov=true",
    ),
    "no epochs": (("search.epochs=0",), "search.epochs must be at least 1, got 0; set search.epochs=1"),
    "no retraining epochs": (
        ("retrain.epochs=0",),
        "retrain.epochs must be at least 1, got 0; set retrain.epochs=1",
    ),
    "negative temperature": (
        ("temperature.end=-1",),
        "temperature must be finite and > 0 throughout, got -1; set it to e.g. 0.1, as temperature.end=0.1",
    ),
    "temperature of zero": (
        ("temperature=constant", "temperature.value=0"),
        "temperature must be finite and > 0 throughout, got 0; set it to e.g. 0.1, as temperature.end=0.1",
    ),
    "search batch too large": (
        ("search.batch_size=100",),
        "search.batch_size 100 is larger than the 24 examples of its split; set search.batch_size to at most 24",
    ),
    "retraining batch too large": (
        ("retrain.batch_size=100",),
        "retrain.batch_size 100 is larger than the 48 examples of its split; set retrain.batch_size to at most 48",
    ),
    "batch of nothing": (
        ("search.batch_size=0",),
        "search.batch_size must be at least 1, got 0; set search.batch_size to e.g. 64",
    ),
    "split fraction": (
        ("search.weight_fraction=1.0",),
        "weight_fraction must lie strictly between 0 and 1, got 1.0; set search.weight_fraction to e.g. 0.5",
    ),
    "device that is not there": (
        ("runtime.device=cuda:99",),
        "device 'cuda:99' is not on this machine, which has {devices}; set runtime.device=auto",
    ),
    "no threads": (
        ("runtime.threads=0",),
        "runtime.threads must be at least 1, got 0; set runtime.threads=null for torch's choice",
    ),
    "memory format": (
        ("runtime.memory_format=nhwc",),
        "runtime.memory_format must be one of channels_last, contiguous, got 'nhwc'; "
        "set runtime.memory_format=channels_last",
    ),
    "optimiser's value": (
        ("weight_optim.lr=-1",),
        "torch.optim.SGD refuses its arguments: Invalid learning rate: -1; "
        "correct them in its configuration group, or choose another of its options",
    ),
    "optimiser's value that is no number": (
        ("weight_optim.lr=fast",),
        "weight_optim.lr must be a number, got 'fast'; set weight_optim.lr=0.5",
    ),
    "retraining optimiser's value": (
        ("retrain.optim.lr=-1",),
        "torch.optim.SGD refuses its arguments: Invalid learning rate: -1; "
        "correct them in its configuration group, or choose another of its options",
    ),
    "gradient clip": (
        ("searcher.grad_clip=-1",),
        "searcher.grad_clip must be >= 0, got -1; set searcher.grad_clip=0 for no clipping",
    ),
    "drop-path": (("retrain.drop_path=1",), "retrain.drop_path must be below 1, got 1.0; set retrain.drop_path=0.2"),
    "label smoothing": (
        ("retrain.label_smoothing=1",),
        "retrain.label_smoothing must be below 1, got 1.0; set retrain.label_smoothing=0.1",
    ),
    "average": (("retrain.average=1",), "retrain.average must be below 1, got 1.0; set retrain.average=0.999"),
    "mixup": (("retrain.mixup=-1",), "retrain.mixup must be at least 0, got -1.0; set retrain.mixup=0"),
    "more parts than examples": (
        ("retrain.accumulation=17",),
        "retrain.accumulation splits a batch of 16 into 17 parts, expected at most one for each example; "
        "set retrain.accumulation=1",
    ),
    "policy for two channels": (
        ("policy@retrain.policy=trivial_augment", "data.channels=2"),
        "retrain.policy takes images of 1 or 3 channels, got 2 in 'synthetic'; set policy@retrain.policy=null",
    ),
    "policy": (
        ("policy@retrain.policy=rand_augment", "retrain.policy.magnitude=31"),
        "magnitude of a policy must be from 0 to 30, got 31; set retrain.policy.magnitude=9",
    ),
    "one cycle": (
        ("lr@retrain.lr=one_cycle", "retrain.lr.warmup=1"),
        "warmup is a fraction of the run in (0, 1), got 1; set warmup to e.g. 0.3",
    ),
    "a metric that takes no mixed labels": (
        (
            "task=custom",
            "task.loss._target_=torch.nn.functional.cross_entropy",
            "task.metric._target_=torch.nn.functional.nll_loss",
            "+task.metric.reduction=none",
            "task.name=surprise",
            "task.higher_is_better=false",
            "retrain.mixup=0.2",
        ),
        "retrain.label_smoothing, mixup and cutmix make probabilities of classes out of the targets, but the task "
        "refuses them (RuntimeError: 0D or 1D target tensor expected, multi-target not supported); set all three to 0",
    ),
    "size of the space": (
        ("space.channels=0",),
        "space.channels must be an integer >= 1, got 0; set space.channels=1",
    ),
    "parts that do not divide the channels": (
        ("space.partial_channels=3",),
        "space.partial_channels must divide the channels of every cell, got 3 for 4 channels; "
        "set space.channels to a multiple of 3, or space.partial_channels=1",
    ),
    "precision": (
        ("runtime.precision=int8",),
        "runtime.precision must be one of fp32, bf16, fp16, got 'int8'; set runtime.precision=bf16 for mixed precision",
    ),
    "size the space does not have": (
        ("retrain.network.chanels=3",),
        "retrain.network sets chanels, which the space nas_bench_201 does not have; "
        "set any of ops, channels, partial_channels, edge_normalisation, entangled, cells, nodes",
    ),
    "auxiliary head on small images": (
        ("space=darts", "space.cells=3", "retrain.network={channels: 4, cells: 3, auxiliary: true}"),
        "the auxiliary head needs images of at least 32x32, got 8x8; set retrain.network.auxiliary=false",
    ),
    "deriver without groups": (
        ("deriver=argmax", "deriver.exclude=[none,skip_connect,nor_conv_1x1,nor_conv_3x3,avg_pool_3x3]"),
        "deriver.exclude leaves none of the candidates none, skip_connect, nor_conv_1x1, nor_conv_3x3, avg_pool_3x3; "
        "exclude fewer operations",
    ),
    "target outside": (
        ("sampler._target_=os.system",),
        "_target_ 'os.system' is none of the options that ship, and outside of the packages that may be built (none); "
        "if you trust it, add its package: allow_targets=[package]",
    ),
    "folder not named": (
        ("data=image_folder",),
        "data.root is not set, and has no default; add data.root=...",
    ),
    "folder missing": (
        ("data=image_folder", "data.root=nowhere"),
        "data.root nowhere does not exist; set data.root to the folder with the images",
    ),
    "CIFAR-10 not on disk": (
        ("data=cifar10", "data.root=nowhere"),
        "CIFAR-10 is not in nowhere, or is damaged: expected nowhere/cifar-10-batches-py; "
        "set data.root to where it is, or data.download=true to fetch it",
    ),
    "output directory under a file": (
        ("hydra.run.dir=file/run",),
        "file/run cannot be written (Not a directory); set hydra.run.dir to a directory you can write to",
    ),
    "estimator": (
        ("sampler.estimator=best",),
        "sampler.estimator must be one of sampled, autodl, full, reinmax, got 'best'; set sampler.estimator=sampled",
    ),
    "schedule": (
        ("temperature=quadratic",),
        "temperature=quadratic is not an option of temperature; expected one of constant, cosine, "
        "exponential, linear, step",
    ),
    "second order with hard gates": (
        ("searcher=second_order",),
        "second-order search needs a sampler whose gates are a smooth function of the logits, got GDAS; "
        "set sampler=softmax, gumbel_softmax or dirichlet, or searcher=first_order",
    ),
    "method of second order": (
        ("sampler=softmax", "searcher=second_order", "searcher.method=guess"),
        "searcher.method must be one of difference, exact, got 'guess'; set searcher.method=difference",
    ),
    "cost that cannot be reached": (
        ("regulariser=parameters", "regulariser.parameters.target=1"),
        "regulariser.parameters.target is 1 parameters, which no architecture of the space can reach, "
        "expected 4,775 to 23,255 for the network that is retrained; set regulariser.parameters.target "
        "within this range, or change retrain.network",
    ),
    "architecture steps": (
        ("search.arch_every=0",),
        "search.arch_every must be at least 1, got 0; set search.arch_every=1",
    ),
    "gap batches": (
        ("search.gap_batches=-1",),
        "search.gap_batches must be at least 0, got -1; set search.gap_batches=0",
    ),
    "spread of the logits": (
        ("search.init_std=-1",),
        "search.init_std must be at least 0, got -1.0; set search.init_std=0",
    ),
    "warm-up": (
        ("search.warmup_epochs=-1",),
        "search.warmup_epochs must be at least 0, got -1; set search.warmup_epochs=0",
    ),
    "saving steps": (
        ("saving.every_steps=0",),
        "saving.every_steps must be > 0, got 0; set saving.every_steps=null, to save only after epochs",
    ),
    "saving nothing": (
        ("saving.keep=0",),
        "saving.keep must be > 0, got 0; set saving.keep=2",
    ),
    "saving minutes": (
        ("saving.every_minutes=-1",),
        "saving.every_minutes must be > 0, got -1; set saving.every_minutes=null, to save only after epochs",
    ),
    "what is done about NaN": (
        ("runtime.on_nonfinite=halt",),
        "runtime.on_nonfinite must be one of stop, skip, got 'halt'; set runtime.on_nonfinite=stop",
    ),
    "skipped steps": (
        ("runtime.on_nonfinite=skip", "runtime.max_skipped=0"),
        "runtime.max_skipped must be at least 1, got 0; set runtime.max_skipped=10, or "
        "runtime.on_nonfinite=stop to skip none",
    ),
    "device of another kind": (
        ("runtime.device=tpu",),
        "device 'tpu' is not on this machine, which has {devices}; set runtime.device=auto",
    ),
    "retraining clip": (
        ("retrain.grad_clip=-1",),
        "retrain.grad_clip must be at least 0, got -1.0; set retrain.grad_clip=0",
    ),
    "cutout": (
        ("retrain.cutout=-1",),
        "retrain.cutout must be at least 0, got -1; set retrain.cutout=0",
    ),
    "no parts": (
        ("retrain.accumulation=0",),
        "retrain.accumulation must be at least 1, got 0; set retrain.accumulation=1",
    ),
    "resume nowhere": (
        ("resume=nowhere",),
        "there is no run in nowhere that could be resumed, expected its manifest.json; give the directory "
        "that a run left, e.g. resume=runs/my_run",
    ),
    "list for a number": (
        ("seed=[1]",),
        "seed: Value '[1]' of type 'list' could not be converted to Integer; correct the value (see --cfg job)",
    ),
    "fraction for a number": (
        ("search.epochs=1.5",),
        "search.epochs: Value '1.5' of type 'float' could not be converted to Integer; correct the value "
        "(see --cfg job)",
    ),
    "unknown optimiser": (
        ("optim@weight_optim=rmsprop",),
        "optim=rmsprop is not an option of optim; expected one of adam, adamw, exponentiated_gradient, sgd, sgd_darts, "
        "sgd_darts_imagenet, sgd_nas_bench_201",
    ),
    "setting of another option": (
        ("lr=step", "lr.size=0"),
        "lr.size is not a setting; did you mean lr.end?",
    ),
    "samples of a deriver": (
        ("deriver=best_of", "deriver.samples=0"),
        "deriver.samples must be at least 1, got 0; set deriver.samples=4",
    ),
    "too few cells": (
        ("space=darts", "space.cells=0"),
        "space.cells must be an integer >= 3, got 0; set space.cells=3",
    ),
    "mistyped argument": (
        ("weight_optim.momentun=0.9",),
        "weight_optim.momentun is not a setting; did you mean weight_optim.momentum or weight_optim?",
    ),
    "word for a number": (
        ("searcher.grad_clip=x",),
        "searcher.grad_clip must be a number, got 'x'; set searcher.grad_clip=0.5",
    ),
    "nothing for a number": (
        ("sampler.samples=null",),
        "sampler.samples must be a whole number, got null; set sampler.samples=1",
    ),
    "word for a whole number": (
        ("data.train=many",),
        "data.train must be a whole number, got 'many'; set data.train=1",
    ),
    "fraction for a whole number": (("data.size=8.5",), "data.size must be a whole number, got 8.5; set data.size=1"),
    "two numbers for one": (("data.size=[8,8]",), "data.size must be a whole number, got [8, 8]; set data.size=1"),
    "word for a number of torch's": (
        ("weight_optim.momentum=high",),
        "weight_optim.momentum must be a number, got 'high'; set weight_optim.momentum=0.5",
    ),
    "number for a word or nothing": (
        ("runtime.threads=all",),
        "runtime.threads must be a whole number or null, got 'all'; set runtime.threads=1",
    ),
    "word for a list": (
        ("deriver.exclude=none",),
        "deriver.exclude must be a list, got 'none'; set deriver.exclude=[none]",
    ),
    "operation that is none": (
        ("deriver.exclude=[none,skip]",),
        "deriver.exclude has skip, which no choice has, expected some of none, skip_connect, nor_conv_1x1, "
        "nor_conv_3x3, avg_pool_3x3; set deriver.exclude=[skip_connect]",
    ),
    "seed that is no seed": (
        ("seed=99999999999999999999",),
        "seed must be below 2^63, got 99999999999999999999; set seed=0",
    ),
    "square larger than the images": (
        ("retrain.cutout=9",),
        "cutout 9 is larger than the 8x8 images; set cutout to at most 8, e.g. half of the image; 0 turns it off",
    ),
    "one example for a batch norm": (
        (
            "space=darts",
            "space.cells=3",
            "data.size=32",
            "retrain.accumulation=16",
            "retrain.network={channels:4,cells:3,auxiliary:true}",
        ),
        "retrain.accumulation leaves 1 example for the batch norm of the auxiliary head, expected at least 2; "
        "set retrain.accumulation=8",
    ),
    "no images": (
        ("data.train=0",),
        "data.train must be at least 1, got 0; set data.train=1",
    ),
    "one class": (
        ("data.classes=1",),
        "data.classes must be at least 2, got 1; set data.classes=2",
    ),
    "path that is no setting": (
        ("a.b.c=1",),
        "a.b.c is not a setting; --cfg job shows all settings",
    ),
    "empty folder": (
        ("data=image_folder", "data.root=empty"),
        "empty has 0 class folders (none), expected at least 2; put the images into empty/<class>/, one folder a class",
    ),
    "classes without images": (
        ("data=image_folder", "data.root=hollow"),
        "class folder hollow/a has no images (.avif .bmp .gif .jfif .jpeg .jpg .pbm .pgm .png .pnm .ppm "
        ".tif .tiff .webp); add images to it, or remove it",
    ),
    "one folder": (
        ("data=image_folder", "data.root=one"),
        "one has 1 class folders (cats), expected at least 2; put the images into one/<class>/, one folder a class",
    ),
    "images of two sizes": (
        ("data=image_folder", "data.root=mixed"),
        "images must have one size, got 8x8 (mixed/cats/0.png) and 8x9 (mixed/dogs/2.png); set "
        "data.image_size=32, or another side, to scale and crop them",
    ),
    "image that is cut": (
        ("data=image_folder", "data.root=cut"),
        "cut/dogs/1.png cannot be read as an image (damaged, or none of the formats that are read); "
        "repair it, or remove it; data.damaged=skip leaves such files out",
    ),
    "file for a folder": (
        ("data=image_folder", "data.root=file"),
        "data.root file is a file, expected a folder; unpack it, and set data.root to the folder",
    ),
    "channels": (
        ("data=image_folder", "data.root=mixed", "data.channels=2"),
        "data.channels must be 1, 3 or null, got 2; set data.channels=null to look at the files",
    ),
    "size of images": (
        ("data=image_folder", "data.root=mixed", "data.image_size=0"),
        "data.image_size must be at least 1, got 0; set data.image_size=32",
    ),
    "damaged images": (
        ("data=image_folder", "data.root=one", "data.damaged=no"),
        "data.damaged must be stop or skip, got 'no'; set data.damaged=stop",
    ),
    "a teacher of a space without an original": (
        ("teacher=original",),
        "teacher=original is the network that nas.insert has put choices into, but the choice at cell/0-1 was not put "
        "there, as no candidate is called 'keep'; give the teacher: nas.adapt.Teacher(network=...), or teacher=custom "
        "teacher.factory=...",
    ),
    "benchmark without a table": (
        ("benchmark=nas_bench_201",),
        "benchmark.table is not set, and has no default; add benchmark.table=...",
    ),
    "table that is not there": (
        ("benchmark=nas_bench_201", "benchmark.table=nowhere.csv"),
        "the benchmark table nowhere.csv cannot be read (No such file or directory); set benchmark.table "
        "to the path of the CSV",
    ),
    "table without columns": (
        ("benchmark=nas_bench_201", "benchmark.table=bad.csv"),
        "the benchmark table bad.csv has the columns index, foo; expected index, arch_str and accuracies "
        "such as cifar10_test_200, each once; write it in the form "
        "index,arch_str,<dataset>_<train|valid|test>_<epochs>,...",
    ),
    "unknown format": (
        ("formats=[weights,tflite]",),
        "formats=tflite is not an option of formats; expected one of bfloat16, onnx, program, standalone, weights",
    ),
    "null for a number": (
        ("search.epochs=null",),
        "search.epochs cannot be null, expected a value; give it one (see --cfg job)",
    ),
    "name that climbs": (
        ("name=../../x",),
        "name must be a part of a file name, got '../../x'; set name=my_run",
    ),
    "quote that is open": (
        ("'unclosed",),
        '"\'unclosed" is not of the form key=value; write e.g. search.epochs=10, quoted where a shell needs it',
    ),
    "no space": (
        ("~space",),
        "a group that names no _target_ cannot be built, got channels, cells; choose one of its options, see --help",
    ),
    "space twice": (
        ("+space=darts",),
        "space is chosen already; write space=... without the +",
    ),
    "no sampler": (
        ("~sampler",),
        "sampler is not set, and has no default; add sampler=...",
    ),
    "no data": (
        ("~data",),
        "data.train is not a setting; did you mean data.test_fraction or data.crop_padding?",
    ),
    "no operations": (
        ("space.ops={}",),
        "a Choice needs at least 2 candidates, got 0 (none); add candidates, or use the module itself "
        "where there is nothing to choose",
    ),
    "no option at all": (
        ("sampler=null",),
        "sampler=null is not an option of a group that has to be there; see --help for its options",
    ),
    "empty option": (
        ("data=",),
        "data= is not an option of data; expected one of {options}",
    ),
    "setting that was taken out": (
        ("~lock",),
        "lock was taken out, but is needed; leave out what does so, as ~lock or lock={{...}} do",
    ),
    "no option of a group that may be empty": (
        ("benchmark=null",),
        "benchmark=null is not an option of benchmark; write ~benchmark for none",
    ),
}


def make_files(directory: Path) -> None:
    """What the mistakes refer to."""
    (directory / "file").touch()
    for number in range(4):
        for folder in ("mixed/cats", "mixed/dogs", "one/cats", "cut/cats", "cut/dogs"):
            image(directory / folder / f"{number}.png", (8, 9) if (folder, number) == ("mixed/dogs", 2) else (8, 8))
    cut = directory / "cut" / "dogs" / "1.png"
    cut.write_bytes(cut.read_bytes()[:40])
    for folder in ("empty", "hollow/a", "hollow/b"):
        (directory / folder).mkdir(parents=True)
    genotype = {"format": "nas-genotype", "version": 1, "space": "nas_bench_201", "choices": {"cell/0-1": "none"}}
    (directory / "keys.json").write_text(json.dumps(genotype))
    (directory / "version.json").write_text(json.dumps(genotype | {"version": 2}))
    (directory / "bad.csv").write_text("index,foo\n0,1\n")


def contents(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_told_in_one_line_and_leaves_nothing(case: str, nas: Nas, tmp_path: Path) -> None:
    from nas.runtime.runtime import available_devices
    from nas.settings import configuration

    overrides, message = MISTAKES[case]
    options = sorted(path.stem for path in (configuration.directory() / overrides[0].split("=")[0]).glob("*.yaml"))
    make_files(tmp_path)
    before = contents(tmp_path)
    # The made-up images have settings that other data sets do not know.
    tiny = [o for o in TINY if not (overrides[0].startswith("data=") and o.startswith("data."))]
    outcome = nas("run", *tiny, *overrides)
    expected = message.format(options=", ".join(options), devices=", ".join(available_devices()))
    assert outcome.err.replace(f"{tmp_path}/", "") == f"error: {expected}\n"  # paths are told whole
    assert outcome.code == 2
    assert contents(tmp_path) == before


def image(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size[1], size[0], 3), dtype=np.uint8)).save(path)


def test_a_second_run_does_not_overwrite_the_first(nas: Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    outcome = nas("search", *TINY, "hydra.run.dir=mine")
    assert outcome.err == (
        f"error: the output directory {tmp_path}/mine is not empty, expected a new one; set hydra.run.dir to another, "
        "or move thesis.txt away\n"
    )
    assert outcome.code == 2
    assert contents(tmp_path) == {"mine", "mine/thesis.txt"}
    (tmp_path / "mine" / "manifest.json").touch()
    monkeypatch.setattr(Synthetic, "load", lambda data: pytest.fail("work is done for nothing"))
    assert nas("search", *TINY, "hydra.run.dir=mine").err == (
        f"error: the output directory {tmp_path}/mine holds a run, expected a new directory; set hydra.run.dir to "
        f"another, or go on with that run: resume={tmp_path}/mine\n"
    )


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("retrain", (), "genotype is not set, and has no default; add genotype=..."),
        (
            "retrain",
            ("genotype=DARTS_V2",),
            "the genotype is of the space 'darts', expected 'nas_bench_201'; add space=darts",
        ),
        (
            "retrain",
            ("genotype=nowhere.json",),
            "no genotype can be read at nowhere.json (no such file); give the path of a genotype.json",
        ),
        (
            "evaluate",
            (),
            "nas-evaluate needs either a checkpoint to score or a genotype to look up, got neither; set "
            "checkpoint=..., or genotype=... benchmark=nas_bench_201 benchmark.table=<csv>",
        ),
        (
            "evaluate",
            ("checkpoint=file", "latency.batches=[1,0]"),
            "latency.batches must be at least 1, got 0; set latency.batches=1",
        ),
        ("export", (), "checkpoint is not set, and has no default; add checkpoint=..."),
        (
            "evaluate",
            ("checkpoint=nowhere.pt",),
            "no checkpoint at nowhere.pt; give a checkpoint.pt that the retrain stage wrote",
        ),
        (
            "retrain",
            ("genotype=keys.json",),
            "the genotype lacks cell/0-2, cell/0-3, cell/1-2, cell/1-3, cell/2-3, expected exactly the 6 "
            "choices of the space; use the space and size that the genotype was derived in",
        ),
        (
            "retrain",
            ("genotype=version.json",),
            "version.json has version 2, expected 1; read it with the release of this project that wrote it",
        ),
        (
            "retrain",
            ("genotype=file",),
            "file is malformed at line 1, column 1: expected '{' (JSON) or 'Genotype(' or '|', got the "
            "end; write it as Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), "
            "reduce=[...], reduce_concat=range(2, 6)) or as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|",
        ),
        (
            "retrain",
            ("genotype=5",),
            "the genotype 5 is a benchmark index, but no benchmark table was given; add "
            "benchmark=nas_bench_201 benchmark.table=<csv>",
        ),
        (
            "retrain",
            ("genotype=DARTS_V9",),
            "'DARTS_V9' is neither a file nor a published genotype; give a genotype.json, a genotype's "
            "text, or one of DARTS_V1, DARTS_V2, GDAS_V1, PCDARTS",
        ),
        (
            "retrain",
            ('genotype="|none~0|+|none~0|"',),
            "the genotype is malformed at line 1, column 18: expected an operation, got the end; write it "
            "as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|",
        ),
        (
            "evaluate",
            ("genotype=DARTS_V2",),
            "a genotype alone has no accuracy, expected a benchmark to look it up in; add "
            "benchmark=nas_bench_201 benchmark.table=<csv>, or train its network with nas-retrain",
        ),
        (
            "evaluate",
            ("checkpoint=file", "genotype=DARTS_V2"),
            "nas-evaluate needs either a checkpoint to score or a genotype to look up, got both; set "
            "checkpoint=..., or genotype=... benchmark=nas_bench_201 benchmark.table=<csv>",
        ),
        (
            "export",
            ("checkpoint=empty",),
            "empty is a directory, expected a file; give a checkpoint.pt that the retrain stage wrote",
        ),
        (
            "search",
            ("resume=file",),
            "there is no run in file that could be resumed, expected its manifest.json; give the "
            "directory that a run left, e.g. resume=runs/my_run",
        ),
        ("evaluate", ("checkpoint=",), "checkpoint is empty, expected a path; set checkpoint=..., or leave it out"),
        ("predict", ("export=x", "images=null"), "images is None, expected files or folders; set images=my_folder"),
        ("predict", ("export=x", "images=[]"), "images is [], expected files or folders; set images=my_folder"),
        ("predict", ("export=x", "images=3"), "3 does not exist; give a file, or a folder of images"),
        (
            "draw",
            ("genotype=DARTS_V2", "out=/proc/x.svg"),
            "/proc/x.svg cannot be written (No such file or directory); free some space, or set out elsewhere",
        ),
        (
            "export",
            ("checkpoint=file",),
            "file is damaged, or not a checkpoint of this project; give a checkpoint.pt that the retrain stage wrote",
        ),
    ],
)
def test_mistakes_of_the_other_commands(
    command: str, arguments: tuple[str, ...], message: str, nas: Nas, tmp_path: Path
) -> None:
    make_files(tmp_path)
    before = contents(tmp_path)
    outcome = nas(command, *(TINY if command in ("search", "retrain") else ()), *arguments)
    assert outcome.err.replace(f"{tmp_path}/", "") == f"error: {message}\n"
    assert outcome.code == 2
    assert contents(tmp_path) == before


def test_debug_shows_the_traceback(nas: Nas) -> None:
    from nas.errors import ConfigError

    with pytest.raises(ConfigError, match=r"search\.epochs must be at least 1"):
        nas("search", *TINY, "search.epochs=0", "--debug")


@pytest.mark.long
def test_help_shows_groups_and_examples(nas: Nas) -> None:
    for command in ("run", "search", "retrain", "evaluate", "export"):
        text = nas(command, "--help").out
        assert text.count(f"  nas-{command} ") == 3  # examples
        assert "data: cifar10, cifar100, cifar10_16x16, custom, digits" in text
        assert "--debug" in text
