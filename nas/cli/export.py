"""nas-export: write a retrained network as files that run without this project."""

from pathlib import Path

from omegaconf import DictConfig

from nas.cli.command import command


def run(cfg: DictConfig, directory: Path) -> None:
    from nas.cli.report import show_export, show_result
    from nas.run_directory import check_new
    from nas.stages.export import build_formats, export_trained
    from nas.stages.trained import check_finite, final_result, open_trained

    formats = build_formats(cfg, allow=list(cfg.allow_targets))
    check_new(directory)
    trained, loader, spec = open_trained(cfg)
    result = final_result(trained, loader, spec)
    check_finite(result)
    run = Path(cfg.checkpoint).resolve().parent.parent
    exported = export_trained(trained, loader, formats=formats, result=result, run=run, directory=directory)
    show_result(result)
    show_export(exported)


def main() -> None:
    command("export", run)


if __name__ == "__main__":
    main()
