"""nas-retrain: train the network of a genotype from scratch and score it."""

from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from nas.cli.command import command


def run(cfg: DictConfig, directory: Path) -> float | None:
    from nas.cli.report import show_result
    from nas.cli.resume import resolved_again
    from nas.cli.stages.retrain import RetrainStage
    from nas.cli.stages.setup import Setup
    from nas.cli.stages.tracked import genotype_texts, scores
    from nas.spaces.published import resolve
    from nas.storage import atomic
    from nas.training.trained import check_finite, final_result, objective, scoring_loader

    setup = Setup.from_config(cfg)
    genotype = resolve(cfg.genotype, benchmark=setup.benchmark) if cfg.resume is None else resolved_again(cfg, setup)
    retrain = RetrainStage(setup)
    retrain.check(genotype)
    with setup.open(directory) as out, setup.track(out) as tracker:
        if out.writes:
            atomic.write_text(out.path / "genotype.json", genotype.to_json())
        trained = retrain.run(genotype, out, tracker)
        if not out.writes:
            return None  # of several processes the first does the rest
        loader = scoring_loader(trained, setup.data, setup.runtime)
        result = final_result(
            trained, loader, setup.data.spec, write=partial(atomic.write_json, out.path / "result.json")
        )
        tracker.finish(scores(result), texts=genotype_texts(genotype))
        check_finite(result)
    show_result(result)
    print(f"\nEverything is in {directory}")
    return objective(result)


def main() -> None:
    command("retrain", run, shared=True)


if __name__ == "__main__":
    main()
