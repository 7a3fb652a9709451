"""nas-search: searches for an architecture and writes its genotype."""

import functools
from pathlib import Path

from omegaconf import DictConfig

from nas.cli.command import command


def run(cfg: DictConfig, directory: Path) -> float | list[float] | None:
    from nas.cli.report import show_cap, show_choices, show_front, show_gap, show_search, show_standings
    from nas.cli.stages.objective import Objective
    from nas.cli.stages.search import SearchStage
    from nas.cli.stages.setup import Setup
    from nas.methods.front import write
    from nas.storage import atomic
    from nas.training.records import genotype_texts
    from nas.training.trained import validation_result

    setup = Setup.from_config(cfg, directory)
    objective = Objective.from_config(cfg, setup.task.metric)
    search = SearchStage(setup)
    search.try_derived(auxiliary_weight=search.auxiliary_weight)
    if cfg.dry_run:
        show_choices(search.state.supernet, search.derived.ranges())
        return None
    with setup.open(directory) as out, setup.track(out) as tracker:
        genotype = search.run(out, tracker)
        validated = search.validated(genotype) if objective is not None and objective.needs_examples else None
        front = search.front(genotype)
        if not out.writes:
            return None  # of several processes the first does the rest
        if front:
            write(front, setup.task.metric, out.path)
        result = search.result(genotype) | validation_result(validated, setup.task.metric)
        if objective is not None:
            network = functools.cache(lambda: search.derived.network(genotype).eval())
            result["objective"] = objective.measured(network, setup.data.spec, validated)
        atomic.write_json(out.path / "result.json", result)
        tracker.finish({}, texts=genotype_texts(genotype))
    show_search(genotype, search.derived.parameters(genotype))
    if setup.benchmark is not None:
        show_standings(setup.benchmark.report(genotype))
    show_cap(result)
    show_front(front, setup.task.metric)
    show_gap(result)
    print(f"\nEverything is in {directory}")
    return None if objective is None else objective.value(result["objective"])


def main() -> None:
    command("search", run, shared=True)


if __name__ == "__main__":
    main()
