"""nas-evaluate: scores a retrained network on the test split, or looks a genotype up in a benchmark."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nas.cli.command import command


def run(cfg: DictConfig, directory: Path) -> None:
    """Returns nothing: with the test score, a sweeper would choose settings by the test split."""
    from nas.cli.report import show_classes, show_data, show_result, show_standings
    from nas.cli.stages.for_report import write_mistakes
    from nas.cli.stages.scored_data import open_trained
    from nas.cli.stages.setup import open_benchmark
    from nas.data.survey import facts
    from nas.spaces.published import resolve
    from nas.storage import atomic
    from nas.storage.run_directory import check_new
    from nas.training.mistakes import Mistakes
    from nas.training.trained import check_finite, final_result, speed

    check(cfg)
    benchmark = open_benchmark(cfg)
    check_new(directory)
    opened = None if cfg.checkpoint is None else open_trained(cfg)
    genotype = resolve(cfg.genotype, benchmark=benchmark) if opened is None else opened[0].genotype
    result: dict[str, Any] = {"genotype": genotype.to_dict()}
    if benchmark is not None:
        result["benchmark"] = benchmark.report(genotype)
    mistakes = Mistakes()
    if opened is not None:
        trained, loader, data = opened
        result["data_found"] = facts(data, scored=True)
        show_data(result["data_found"])

        def write(found: dict[str, Any]) -> None:
            atomic.write_json(directory / "result.json", result | found)

        result |= final_result(trained, loader, data.spec, look=mistakes.add, write=write)
        result |= speed(trained, loader, batches=cfg.latency.batches, seconds=cfg.latency.seconds)
    atomic.write_json(directory / "result.json", result)
    if opened is not None:
        check_finite(result)
        write_mistakes(mistakes, data, directory)
        show_result(result)
        show_classes(result)
    if benchmark is not None:
        show_standings(result["benchmark"])
    print(f"\nEverything is in {directory}")


def check(cfg: DictConfig) -> None:
    """Raises ConfigError unless there is exactly one thing to evaluate, a way to evaluate it, and no size below 1."""
    from nas.errors import ConfigError
    from nas.training.job import at_least

    if (cfg.checkpoint is None) == (cfg.genotype is None):
        raise ConfigError(
            "nas-evaluate needs either a checkpoint to score or a genotype to look up, got "
            f"{'neither' if cfg.checkpoint is None else 'both'}",
            fix="set checkpoint=..., or genotype=... benchmark=nas_bench_201 benchmark.table=<csv>",
        )
    if cfg.genotype is not None and cfg.benchmark is None:
        raise ConfigError(
            "a genotype alone has no accuracy, expected a benchmark to look it up in",
            fix="add benchmark=nas_bench_201 benchmark.table=<csv>, or train its network with nas-retrain",
        )
    at_least(0, latency__seconds=cfg.latency.seconds)
    for batch in cfg.latency.batches:
        at_least(1, latency__batches=batch)


def main() -> None:
    command("evaluate", run)


if __name__ == "__main__":
    main()
