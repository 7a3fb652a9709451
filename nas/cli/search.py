"""nas-search: search for an architecture and write its genotype."""

from pathlib import Path

from omegaconf import DictConfig

from nas.cli.command import command


def run(cfg: DictConfig, directory: Path) -> None:
    from nas.cli.report import show_gap, show_search, show_standings
    from nas.cli.stages.search import SearchStage
    from nas.cli.stages.setup import Setup
    from nas.storage import atomic
    from nas.training.records import genotype_texts

    setup = Setup.from_config(cfg)
    search = SearchStage(setup)
    search.try_derived(auxiliary_weight=search.auxiliary_weight)
    with setup.open(directory) as out, setup.track(out) as tracker:
        genotype = search.run(out, tracker)
        if not out.writes:
            return  # of several processes the first does the rest
        result = search.result(genotype)
        atomic.write_json(out.path / "result.json", result)
        tracker.finish({}, texts=genotype_texts(genotype))
    show_search(genotype, search.derived_parameters(genotype))
    if setup.benchmark is not None:
        show_standings(setup.benchmark.report(genotype))
    show_gap(result)
    print(f"\nEverything is in {directory}")


def main() -> None:
    command("search", run, shared=True)


if __name__ == "__main__":
    main()
