"""The names that files use for the parts of a run, and their translation from and to import paths.

Everything that this project writes (checkpoints, metadata.json, config.yaml) names a search space ``darts``, not by its
import path. `TABLE` lists all that such names can stand for. The names stay when modules move, so that old files can be
read. Each must stand for something that only makes an object when it is called with plain values.

A configuration of a command line has ``{_target_: nas.spaces.darts.Darts, cells: 8}`` where a file has ``{_name_:
darts, cells: 8}``. A user's own class has no short name: a file records its import path. Whoever reads the file must
allow this path.
"""

from collections.abc import Mapping
from typing import Any

from nas.errors import ConfigError

NAME, TARGET, PARTIAL = "_name_", "_target_", "_partial_"

# LBFGS is listed, so that the error that says why it cannot be used is raised where an optimiser is made.
OPTIMIZERS = "Adadelta Adafactor Adagrad Adam Adamax AdamW ASGD LBFGS NAdam RAdam RMSprop Rprop SGD SparseAdam"
# The functions of torch.nn.functional that take outputs and targets.
LOSSES = """
    binary_cross_entropy binary_cross_entropy_with_logits cosine_similarity cross_entropy hinge_embedding_loss
    huber_loss kl_div l1_loss mse_loss multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss nll_loss
    pairwise_distance poisson_nll_loss smooth_l1_loss soft_margin_loss
"""
# The modules of torch.nn that take outputs and targets.
LOSS_MODULES = """
    BCELoss BCEWithLogitsLoss CrossEntropyLoss HingeEmbeddingLoss HuberLoss KLDivLoss L1Loss MSELoss
    MultiLabelMarginLoss MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss PoissonNLLLoss SmoothL1Loss SoftMarginLoss
"""

# group -> name -> import path.
TABLE: dict[str, dict[str, str]] = {
    "space": {
        "custom": "nas.spaces.Custom",
        "darts": "nas.spaces.Darts",
        "darts_imagenet": "nas.spaces.DartsImageNet",
        "inserted": "nas.adapt.Inserted",
        "mbconv": "nas.spaces.MBConv",
        "nas_bench_201": "nas.spaces.NasBench201",
    },
    "operation": {
        "avg_pool": "nas.spaces.avg_pool",
        "by_edge": "nas.spaces.EdgeOps",
        "dil_conv": "nas.spaces.DilConv",
        "inverted_residual": "nas.spaces.InvertedResidual",
        "max_pool": "nas.spaces.max_pool",
        "noise": "nas.spaces.Noise",
        "none": "nas.spaces.Zero",
        "relu_conv_bn": "nas.spaces.ReLUConvBN",
        "search_normalised": "nas.spaces.SearchNormalised",
        "sep_conv": "nas.spaces.SepConv",
        "skip_connect": "nas.spaces.skip_connect",
    },
    "task": {
        "classification": "nas.training.Classification",
        "custom": "nas.training.Custom",
        "regression": "nas.training.Regression",
    },
    "teacher": {"original": "nas.adapt.Teacher"},
    "loss": {
        **{name: f"torch.nn.functional.{name}" for name in LOSSES.split()},
        **{name: f"torch.nn.{name}" for name in LOSS_MODULES.split()},
    },
    "data": {
        "cifar10": "nas.data.Cifar10",
        "cifar100": "nas.data.Cifar100",
        "custom": "nas.data.Custom",
        "digits": "nas.data.Digits",
        "fashion_mnist": "nas.data.FashionMnist",
        "image_folder": "nas.data.ImageFolder",
        "svhn": "nas.data.SVHN",
        "synthetic": "nas.data.Synthetic",
    },
    "policy": {
        "rand_augment": "nas.data.RandAugment",
        "trivial_augment": "nas.data.TrivialAugment",
    },
    "sampler": {
        "dirichlet": "nas.methods.Dirichlet",
        "gdas": "nas.methods.GDAS",
        "gumbel_softmax": "nas.methods.GumbelSoftmax",
        "score_function": "nas.methods.ScoreFunction",
        "softmax": "nas.methods.Softmax",
        "straight_through": "nas.methods.StraightThrough",
        "uniform": "nas.methods.Uniform",
    },
    "schedule": {
        "constant": "nas.training.Constant",
        "cosine": "nas.training.Cosine",
        "cosine_by_epoch": "nas.training.CosineByEpoch",
        "exponential": "nas.training.Exponential",
        "linear": "nas.training.Linear",
        "linear_by_epoch": "nas.training.LinearByEpoch",
        "one_cycle": "nas.training.OneCycle",
        "step": "nas.training.Step",
    },
    "searcher": {
        "first_order": "nas.methods.FirstOrder",
        "second_order": "nas.methods.SecondOrder",
    },
    "deriver": {
        "argmax": "nas.methods.Argmax",
        "best_of": "nas.methods.BestOf",
        "perturbation": "nas.methods.Perturbation",
        "top_predecessors": "nas.methods.TopPredecessors",
    },
    "regulariser": {
        "beta_decay": "nas.methods.BetaDecay",
        "entropy": "nas.methods.Entropy",
        "latency": "nas.methods.Latency",
        "macs": "nas.methods.Macs",
        "parameters": "nas.methods.Parameters",
    },
    "monitor": {"collapse": "nas.methods.CollapseMonitor"},
    "optim": {
        **{name.lower(): f"torch.optim.{name}" for name in OPTIMIZERS.split()},
        "exponentiated_gradient": "nas.methods.ExponentiatedGradient",
    },
    "runtime": {"default": "nas.runtime.Runtime"},
    "saving": {"default": "nas.storage.Checkpoints"},
    "tracker": {
        "jsonl": "nas.storage.JsonLines",
        "mlflow": "nas.storage.MLflow",
        "tensorboard": "nas.storage.TensorBoard",
        "trackio": "nas.storage.Trackio",
        "wandb": "nas.storage.WandB",
    },
    "benchmark": {"nas_bench_201": "nas.spaces.NasBench201Table"},
    "format": {
        "bfloat16": "nas.formats.BFloat16",
        "onnx": "nas.formats.Onnx",
        "program": "nas.formats.Program",
        "standalone": "nas.formats.Standalone",
        "weights": "nas.formats.Weights",
    },
}
TARGETS: dict[str, tuple[str, str]] = {
    target: (group, name) for group, names in TABLE.items() for name, target in names.items()
}

# Setting of a run's configuration -> the group of its value.
SETTINGS = {
    **{group: group for group in TABLE if group not in ("operation", "loss", "schedule", "format", "optim", "policy")},
    "ops": "operation",
    "temperature": "schedule",
    "lr": "schedule",
    "formats": "format",
    "weight_optim": "optim",
    "arch_optim": "optim",
    "retrain.optim": "optim",
    "retrain.lr": "schedule",
    "retrain.policy": "policy",
}
# Name of an argument -> the group of its value.
ARGUMENTS = {"ops": "operation", "op": "operation", "weight": "schedule", "loss": "loss", "metric": "loss"}
# Arguments that only the code gives: where a run writes is never read from a file.
GIVEN = {"tracker": {"directory"}, "saving": {"path", "kind", "resume", "writes"}}


def to_names(node: Any, group: str | None = None, *, setting: str = "") -> Any:
    """Returns a plain configuration with names instead of targets. group: of the node; None for a whole run."""
    if isinstance(node, list | tuple):
        return [to_names(child, group, setting=setting) for child in node]
    if not isinstance(node, dict):
        return node
    if TARGET not in node:
        return {
            key: to_names(child, inner, setting=place)
            for key, child in node.items()
            for inner, place in [inside(key, group, setting)]
        }
    target = node[TARGET]
    found, name = TARGETS.get(target, (None, target)) if isinstance(target, str) else (None, target)
    return {
        NAME: name if found in (None, group) else f"{found}/{name}",
        **{key: to_names(child, ARGUMENTS.get(key, "")) for key, child in node.items() if key != TARGET},
    }


def to_targets(node: Any, group: str | None = None, *, source: object, setting: str = "") -> Any:
    """The inverse of `to_names`, for plain data that were read from `source`.

    Import paths are left for `allowed_targets` to check. Raises ConfigError for a name that is not in the table, and
    for anything that this project does not write.
    """
    if isinstance(node, list):
        return [to_targets(child, group, source=source, setting=setting) for child in node]
    if not isinstance(node, dict):
        return node
    check_keys(node, source, setting)
    if NAME not in node:
        return {
            key: to_targets(child, inner, source=source, setting=place)
            for key, child in node.items()
            for inner, place in [inside(key, group, setting)]
        }
    found, target = meant(node[NAME], group, source=source, setting=setting)
    if given := GIVEN.get(found or "", set()) & node.keys():
        raise ConfigError(
            f"{source} sets {setting}.{min(given)}, which no file can set", fix="leave it out of the file"
        )
    rest = {key: child for key, child in node.items() if key != NAME}
    return {
        TARGET: target,
        **{
            key: to_targets(child, ARGUMENTS.get(key, ""), source=source, setting=f"{setting}.{key}")
            for key, child in rest.items()
        },
    }


def inside(key: Any, group: str | None, setting: str) -> tuple[str | None, str]:
    """Returns the group of the value at a key of a node without a name, and the dotted name of its setting."""
    place = f"{setting}.{key}" if setting else str(key)
    return (SETTINGS.get(place) if group is None else group), place


def check_keys(node: Mapping[Any, Any], source: object, setting: str) -> None:
    """Raises ConfigError for keys that have a meaning to the code that builds objects."""
    for key in node:
        if not isinstance(key, str):
            continue  # an ordinary key of a user's own arguments
        if key == TARGET:
            raise ConfigError(
                f"{source} has {setting}.{TARGET}: it was written by release 0.1.0, or is not of this project",
                fix="use it with release 0.1.0, or start the run anew with this one",
            )
        if key.startswith("_") and key.endswith("_") and key not in (NAME, PARTIAL):
            raise ConfigError(f"{source} has the key {setting}.{key}, which no run writes", fix="leave it out")
    if PARTIAL in node and type(node[PARTIAL]) is not bool:
        raise ConfigError(f"{source} has {setting}.{PARTIAL} that is not true or false", fix="leave it out")


def meant(name: Any, group: str | None, *, source: object, setting: str) -> tuple[str | None, str]:
    """Returns the group and the target of a name. An import path has no group."""
    if isinstance(name, str):
        other, slash, short = name.partition("/")
        # Something in an argument that has no known group, e.g. of a user's own class.
        if slash and group == "" and other in TABLE and other not in GIVEN and short in TABLE[other]:
            return other, TABLE[other][short]
        if name in TABLE.get(group or "", {}):
            return group, TABLE[group or ""][name]
        if "." in name and name not in TARGETS:
            return None, name
    options = ", ".join(TABLE.get(group or "", {})) or "none here"
    raise ConfigError(
        f"{source} has the name {str(name)[:60]!r} at {setting}, expected one of {options}",
        fix="use the release of this project that wrote the file",
    )
