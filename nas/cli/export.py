"""nas-export: write a retrained network as files that run without this project."""

from pathlib import Path

from omegaconf import DictConfig

from nas.cli.command import command


def run(cfg: DictConfig, directory: Path) -> None:
    from nas.cli.report import show_result
    from nas.stages.trained import export_trained, final_result, open_trained

    trained, loader = open_trained(cfg)
    result = final_result(trained, loader)
    paths = export_trained(trained, loader, directory, result)
    show_result(result)
    print("\n".join(["", *(f"wrote {path}" for path in paths.values())]))


def main() -> None:
    command("export", run)


if __name__ == "__main__":
    main()
