"""How well the supernet of a study's job ranks cells, by a benchmark's table."""

from collections.abc import Sequence
from typing import Any

from nas.storage import atomic
from nas.studies.collected import Run
from nas.studies.plan import Plan

SUPERNET = "supernet.json"  # keeps the result, in the job's directory


def allowed_by(settings: Sequence[str]) -> list[str]:
    """Returns what the settings of a job allow. A run's own config.yaml may be anybody's."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(settings))
    return next((list(one.value()) for one in reversed(parsed) if one.key_or_group == "allow_targets"), [])  # type: ignore[arg-type]


def supernet_agreement(plan: Plan, run: Run, baselines: Any) -> dict[str, Any]:
    """Compares how a run's supernet ranks sampled cells with how the benchmark ranks them.

    Keeps the result in the run.
    """
    from nas.cli.stages.search import SearchStage
    from nas.cli.stages.setup import Setup
    from nas.settings.configuration import read_yaml
    from nas.storage import checkpoint_file
    from nas.studies.statistics import rank_agreement
    from nas.untrusted.plain_data import dict_in

    assert plan.supernet is not None
    directory = run.directory
    kept = directory / SUPERNET
    if found := dict_in(kept):
        return found
    cfg = read_yaml(directory / "config.yaml")
    cfg.allow_targets, cfg.resume = allowed_by([*plan.common, *plan.methods[run.method]]), None
    stage = SearchStage(Setup.from_config(cfg))
    path = directory / "search" / "checkpoint.pt"
    stage.state.load_state_dict(checkpoint_file.load(path, "search"), source=path)
    judge = stage.judge(plan.supernet.batches)
    rows = baselines.sampled(plan.supernet.cells)
    truths = baselines.all_cells()[rows].tolist()
    agreement: dict[str, Any] = {}
    for name, recalibrated in (("recalibrated", True), ("as trained", False)):
        scores = [
            -judge.decided(baselines.table.cell(row).choices, recalibrated=recalibrated).loss for row in rows.tolist()
        ]
        agreement[name] = rank_agreement(scores, truths)
    atomic.write_json(kept, agreement)
    return agreement
