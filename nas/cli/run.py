"""nas-run: search, derive, retrain, evaluate and export in one go."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nas.cli.command import command


def run(cfg: DictConfig, directory: Path) -> float | None:
    from nas.cli.report import show_export, show_gap, show_result, show_search, show_standings
    from nas.cli.stages.export import build_formats, export_trained
    from nas.cli.stages.retrain import RetrainStage
    from nas.cli.stages.search import SearchStage
    from nas.cli.stages.setup import Setup
    from nas.cli.stages.tracked import genotype_texts, scores
    from nas.storage import atomic
    from nas.training.trained import check_finite, final_result, objective, scoring_loader

    setup = Setup.from_config(cfg)
    formats = build_formats(cfg, allow=list(cfg.allow_targets))
    search, retrain = SearchStage(setup), RetrainStage(setup)
    retrain.check(search.first)
    with setup.open(directory) as out, setup.track(out) as tracker:
        genotype = search.run(out, tracker)
        show_search(genotype, search.derived_parameters(genotype))
        if setup.benchmark is not None:
            show_standings(setup.benchmark.report(genotype))
        trained = retrain.run(genotype, out, tracker)
        if not out.writes:
            return None  # of several processes the first does the rest

        def write(result: dict[str, Any]) -> None:
            atomic.write_json(out.path / "result.json", result)

        loader = scoring_loader(trained, setup.data, setup.runtime)
        result = {**final_result(trained, loader, setup.data.spec, write=write), **search.ending()}
        complete = result | search.gap_result(retrained_test=objective(result))
        write(complete)  # first: not every network can be exported
        tracker.finish(scores(result), texts=genotype_texts(genotype))
        check_finite(result)
        show_result(result)
        show_gap(complete)
        exported = export_trained(
            trained,
            loader,
            formats=formats,
            result=result,
            run=out.path,
            directory=out.path / "export",
            again=out.resumed,
        )
    show_export(exported)
    print(f"\nEverything is in {directory}")
    return objective(result)


def main() -> None:
    command("run", run, shared=True)


if __name__ == "__main__":
    main()
