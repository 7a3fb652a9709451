"""nas-evaluate: score a retrained network on the test split."""

from pathlib import Path

from omegaconf import DictConfig

from nas.cli.command import command


def run(cfg: DictConfig, directory: Path) -> float:
    from nas import atomic
    from nas.cli.report import show_result
    from nas.pipeline import final_result, objective, open_trained

    trained, loader = open_trained(cfg)
    result = final_result(trained, loader)
    atomic.write_json(directory / "result.json", result)
    show_result(result)
    print(f"\nEverything is in {directory}")
    return objective(result)


def main() -> None:
    command("evaluate", run)


if __name__ == "__main__":
    main()
