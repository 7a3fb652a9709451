"""What a mistake gets: one line on standard error, exit code 2, nothing on disk, a traceback only with --debug."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli.conftest import TINY, Outcome
from PIL import Image

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
    "mistyped group": (("spcae=darts",), "spcae is not a setting; did you mean space?"),
    "mistyped option": (
        ("space=dart",),
        "space=dart is not an option of space; expected one of {options}",
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
    "no epochs": (("search.epochs=0",), "search.epochs must be at least 1, got 0; set search.epochs=1"),
    "no retraining epochs": (
        ("retrain.epochs=0",),
        "retrain.epochs must be at least 1, got 0; set retrain.epochs=1",
    ),
    "negative temperature": (
        ("temperature.end=-1",),
        "temperature must be > 0 throughout, got -1; set it to e.g. 0.1, as temperature.end=0.1",
    ),
    "temperature of zero": (
        ("temperature=constant", "temperature.value=0"),
        "temperature must be > 0 throughout, got 0; set it to e.g. 0.1, as temperature.end=0.1",
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
        "set any of ops, partial_channels, edge_normalisation, channels, cells, nodes",
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
        "_target_ 'os.system' is outside of the packages that may be built (nas, torch.optim, torch.nn.functional); "
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
}


def contents(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_told_in_one_line_and_leaves_nothing(case: str, nas: Nas, tmp_path: Path) -> None:
    from nas import config
    from nas.runtime import available_devices

    overrides, message = MISTAKES[case]
    options = sorted(path.stem for path in (config.directory() / overrides[0].split("=")[0]).glob("*.yaml"))
    (tmp_path / "file").touch()
    before = contents(tmp_path)
    # The made-up images have settings that other data sets do not know.
    tiny = [o for o in TINY if not (overrides[0].startswith("data=") and o.startswith("data."))]
    outcome = nas("run", *tiny, *overrides)
    expected = message.format(options=", ".join(options), devices=", ".join(available_devices()))
    assert outcome.err == f"error: {expected}\n"
    assert outcome.code == 2
    assert contents(tmp_path) == before


def image(path: Path, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size[1], size[0], 3), dtype=np.uint8)).save(path)


def test_folder_with_one_class(nas: Nas, tmp_path: Path) -> None:
    image(tmp_path / "mine" / "cats" / "a.png")
    outcome = nas("run", *TINY[:1], "data=image_folder", "data.root=mine")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "cats" in outcome.err
    assert contents(tmp_path) == {"mine", "mine/cats", "mine/cats/a.png"}


def test_images_of_mixed_sizes(nas: Nas, tmp_path: Path) -> None:
    for index in range(4):
        image(tmp_path / "mine" / "cats" / f"{index}.png")
        image(tmp_path / "mine" / "dogs" / f"{index}.png", (8, 9) if index == 2 else (8, 8))
    outcome = nas("run", *TINY[:1], "data=image_folder", "data.root=mine")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "data.image_size=" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_a_second_run_does_not_overwrite_the_first(nas: Nas, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    outcome = nas("search", *TINY, "hydra.run.dir=mine")
    assert outcome.err == (
        f"error: the output directory {tmp_path}/mine is not empty, expected a new one; set hydra.run.dir to another\n"
    )
    assert outcome.code == 2
    assert contents(tmp_path) == {"mine", "mine/thesis.txt"}
    (tmp_path / "mine" / "manifest.json").touch()
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
            "export",
            ("checkpoint=file",),
            "file is damaged, or not a checkpoint of this project; give a checkpoint.pt that the retrain stage wrote",
        ),
    ],
)
def test_mistakes_of_the_other_commands(
    command: str, arguments: tuple[str, ...], message: str, nas: Nas, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"\x80\x02 not a checkpoint")
    outcome = nas(command, *(TINY if command == "retrain" else ()), *arguments)
    assert outcome.err == f"error: {message}\n"
    assert outcome.code == 2
    assert contents(tmp_path) == {"file"}


def test_debug_shows_the_traceback(nas: Nas) -> None:
    from nas.errors import ConfigError

    with pytest.raises(ConfigError, match=r"search\.epochs must be at least 1"):
        nas("search", *TINY, "search.epochs=0", "--debug")


def test_help_shows_groups_and_examples(nas: Nas) -> None:
    for command in ("run", "search", "retrain", "evaluate", "export"):
        text = nas(command, "--help").out
        assert text.count(f"  nas-{command} ") == 3  # examples
        assert "data: cifar10, cifar100, custom, digits" in text
        assert "--debug" in text
