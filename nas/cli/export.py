"""nas-export: writes a retrained network as files that run without this project."""

from pathlib import Path

from omegaconf import DictConfig

from nas.cli.command import command


def run(cfg: DictConfig, directory: Path) -> None:
    from nas.cli.report import show_data, show_export, show_result
    from nas.cli.stages.export import build_formats
    from nas.cli.stages.scored_data import open_trained
    from nas.data.survey import facts
    from nas.formats.export_trained import export_trained
    from nas.storage.run_directory import check_new
    from nas.training.trained import check_finite, final_result

    formats = build_formats(cfg, allow=list(cfg.allow_targets))
    check_new(directory)
    trained, loader, data = open_trained(cfg)
    show_data(facts(data, scored=True))
    result = final_result(trained, loader, data.spec)
    check_finite(result)
    run = Path(cfg.checkpoint).resolve().parent.parent
    exported = export_trained(trained, loader, formats=formats, result=result, run=run, directory=directory)
    show_result(result)
    show_export(exported)


def main() -> None:
    command("export", run)


if __name__ == "__main__":
    main()
