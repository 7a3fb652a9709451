"""nas-search: search for an architecture and write its genotype."""

from pathlib import Path

from omegaconf import DictConfig

from nas.cli.command import command


def run(cfg: DictConfig, directory: Path) -> None:
    from nas.cli.report import show_search, show_standings
    from nas.stages.search import SearchStage
    from nas.stages.setup import Setup

    setup = Setup.from_config(cfg)
    search = SearchStage(setup)
    with setup.open(directory) as out, setup.track(out) as tracker:
        genotype = search.run(out, tracker)
    show_search(genotype, search.derived_parameters(genotype))
    if setup.benchmark is not None:
        show_standings(setup.benchmark.report(genotype))
    print(f"\nEverything is in {directory}")


def main() -> None:
    command("search", run)


if __name__ == "__main__":
    main()
