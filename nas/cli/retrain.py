"""nas-retrain: trains the network of a genotype and scores it."""

import functools
from pathlib import Path

from omegaconf import DictConfig

from nas.cli.command import command


def run(cfg: DictConfig, directory: Path) -> float | list[float] | None:
    from nas.cli.report import show_result
    from nas.cli.resume import resolved_again
    from nas.cli.stages.final_score import FinalScore
    from nas.cli.stages.objective import Objective
    from nas.cli.stages.retrain import RetrainStage
    from nas.cli.stages.setup import Setup
    from nas.spaces.published import resolve
    from nas.storage import atomic
    from nas.training.inheritance import SupernetWeights, checkpoint_beside

    setup = Setup.from_config(cfg, directory)
    objective = Objective.from_config(cfg, setup.task.metric)
    genotype = resolve(cfg.genotype, benchmark=setup.benchmark) if cfg.resume is None else resolved_again(cfg, setup)
    retrain = RetrainStage(setup)
    supernet = None
    if retrain.options.inherits:
        checkpoint = checkpoint_beside(cfg.genotype, resumes=cfg.resume is not None)
        supernet = functools.partial(SupernetWeights.load, checkpoint)
    retrain.check(genotype)
    if cfg.dry_run:
        print("everything fits; nothing was trained")
        return None
    with setup.open(directory) as out, setup.track(out) as tracker:
        if out.writes:
            atomic.write_text(out.path / "genotype.json", genotype.to_json())
        trained = retrain.run(genotype, out, tracker, supernet=supernet)
        if not out.writes:
            return None  # of several processes the first does the rest
        final = FinalScore(setup, retrain, trained, objective, out)
        final.finish(tracker, genotype, final.result)
    show_result(final.result)
    print(f"\nEverything is in {directory}")
    return None if objective is None else objective.value(final.measured)


def main() -> None:
    command("retrain", run, shared=True)


if __name__ == "__main__":
    main()
