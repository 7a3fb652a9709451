"""Compares the ranks that a supernet gives to cells with the ranks in a benchmark's table."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nas.cli import paths
from nas.report.run_files import mapping, number
from nas.storage import atomic
from nas.studies.collected import Run
from nas.studies.parts import NORMS, TAUS
from nas.studies.plan import Plan

SUPERNET = "supernet.json"  # keeps the result, in the job's directory


def composed(plan: Plan, method: str) -> DictConfig:
    """Returns the configuration that the study's settings give for a method."""
    from hydra import compose, initialize_config_dir

    from nas.settings import configuration

    where = [word for word in plan.engine if word.startswith("hydra.searchpath=")]
    with initialize_config_dir(version_base="1.3", config_dir=str(configuration.directory())):
        return paths.anchored(compose(plan.command, [*where, *plan.of_all(), *plan.methods[method]]))


def whole(found: Mapping[str, Any]) -> bool:
    """Says whether a file has what a report shows. Anybody may have written it."""
    of = [mapping(found.get(norms)) for norms in NORMS]
    values = [one.get(name, "") for one in of for name in TAUS]
    values += [value for one in of for value in mapping(one.get("precision_at")).values()]
    return all("cells" in one and isinstance(one.get("precision_at"), dict) for one in of) and all(
        value is None or number(value) is not None for value in values
    )


def supernet_agreement(plan: Plan, run: Run, baselines: Any) -> dict[str, Any]:
    """Compares how a run's supernet ranks sampled cells with how the benchmark ranks them.

    Keeps the result in the run.
    """
    from nas.cli.stages.search import SearchStage
    from nas.cli.stages.setup import Setup
    from nas.cli.task import look_here
    from nas.settings.allowed_targets import trusted_by
    from nas.settings.configuration import read_yaml
    from nas.settings.dotted import PLACES
    from nas.storage import checkpoint_file
    from nas.studies.statistics import rank_agreement
    from nas.untrusted.plain_data import dict_in

    assert plan.supernet is not None
    directory = run.directory
    kept = directory / SUPERNET
    if whole(found := dict_in(kept)):
        return found
    cfg = read_yaml(directory / "config.yaml")
    given = composed(plan, run.method)
    # As of a run that is resumed: its own config.yaml may be anybody's, so what it names is not trusted.
    cfg.allow_targets, cfg.resume = trusted_by(given), str(directory)
    look_here(cfg)
    for place in PLACES:
        if (now := OmegaConf.select(given, place)) is not None:
            OmegaConf.update(cfg, place, now)
    stage = SearchStage(Setup.from_config(cfg))
    path = directory / "search" / "checkpoint.pt"
    stage.state.load_state_dict(checkpoint_file.load(path, "search"), source=path)
    judge = stage.judge(plan.supernet.batches)
    rows = baselines.sampled(plan.supernet.cells)
    truths = baselines.all_cells()[rows].tolist()
    agreement: dict[str, Any] = {}
    for name, recalibrated in zip(NORMS, (True, False), strict=True):
        scores = [
            -judge.decided(baselines.table.cell(row).choices, recalibrated=recalibrated).loss for row in rows.tolist()
        ]
        agreement[name] = rank_agreement(scores, truths)
    atomic.write_json(kept, agreement)
    return agreement
