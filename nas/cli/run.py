"""nas-run: searches, derives, retrains, evaluates and exports in one command."""

from pathlib import Path

from omegaconf import DictConfig

from nas.cli.command import command


def run(cfg: DictConfig, directory: Path) -> float | list[float] | None:
    from nas.cli.report import show_cap, show_choices, show_export, show_gap, show_result, show_search, show_standings
    from nas.cli.stages.export import build_formats
    from nas.cli.stages.final_score import FinalScore
    from nas.cli.stages.objective import Objective
    from nas.cli.stages.retrain import RetrainStage
    from nas.cli.stages.search import SearchStage, refuse_several_caps
    from nas.cli.stages.setup import Setup
    from nas.formats.export_trained import export_trained
    from nas.settings.configuration import to_plain
    from nas.training.trained import test_score

    setup = Setup.from_config(cfg, directory)
    objective = Objective.from_config(cfg, setup.task.metric)
    formats = build_formats(cfg, allow=list(cfg.allow_targets))
    refuse_several_caps(to_plain(cfg.cap))
    search, retrain = SearchStage(setup), RetrainStage(setup)
    retrain.check(search.first)
    if cfg.dry_run:
        show_choices(search.state.supernet, search.derived.ranges())
        return None
    with setup.open(directory) as out, setup.track(out) as tracker:
        genotype = search.run(out, tracker)
        show_search(genotype, search.derived.parameters(genotype))
        if setup.benchmark is not None:
            show_standings(setup.benchmark.report(genotype))
        trained = retrain.run(genotype, out, tracker, supernet=search.weights)
        if not out.writes:
            return None  # of several processes the first does the rest
        final = FinalScore(setup, retrain, trained, objective, out)
        result = final.result | search.ending()
        result |= search.derived.cap_result(genotype, measured=result)
        complete = result | search.looked_up(genotype) | search.gap_result(retrained_test=test_score(result))
        final.write(complete)  # first: not every network can be exported
        final.finish(tracker, genotype, result)
        show_result(result)
        show_cap(complete)
        show_gap(complete)
        exported = export_trained(
            trained,
            final.loader,
            formats=formats,
            result=result,
            run=out.path,
            directory=out.path / "export",
            again=out.resumed,
        )
    show_export(exported)
    print(f"\nEverything is in {directory}")
    return None if objective is None else objective.value(final.measured)


def main() -> None:
    command("run", run, shared=True)


if __name__ == "__main__":
    main()
