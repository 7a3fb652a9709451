"""nas-draw: draws a genotype as a picture."""

from pathlib import Path

from omegaconf import DictConfig

from nas.cli.command import command

KINDS = (".svg", ".png")
THEMES = ("auto", "light", "dark")


def run(cfg: DictConfig, directory: Path) -> None:
    from nas.cli.report import show_cells
    from nas.cli.stages.setup import open_benchmark
    from nas.drawing.architecture import parted
    from nas.drawing.architecture_picture import draw_architecture
    from nas.drawing.png import to_png
    from nas.drawing.svg import to_svg
    from nas.spaces.published import PUBLISHED, resolve
    from nas.storage import atomic
    from nas.untrusted.escaping import printable

    check(cfg)
    genotype = resolve(cfg.genotype, benchmark=open_benchmark(cfg))
    title = f"{cfg.genotype} ({genotype.space})" if cfg.genotype in PUBLISHED else genotype.space
    picture = draw_architecture(genotype.choices, title=title, stacked=cfg.stacked)
    out = Path(cfg.out)
    if out.suffix.lower() == ".svg":
        atomic.write_text(out, to_svg(picture, theme=cfg.theme), setting="out")
    else:
        content, *_ = to_png(picture, theme="dark" if cfg.theme == "dark" else "light", colours=256)
        atomic.write(out, lambda stream: stream.write(content), setting="out")
    cells, _ = parted(genotype.choices)
    if cells:
        show_cells(cells, title=title)
    print(f"drawn to {printable(out)}")


def check(cfg: DictConfig) -> None:
    """Raises ConfigError if the theme is unknown, the format cannot be written, or the directory does not exist."""
    from nas.errors import ConfigError

    if cfg.theme not in THEMES:
        raise ConfigError(
            f"theme must be one of {', '.join(THEMES)}, got {cfg.theme!r}", fix="set theme=auto, or leave it out"
        )
    if Path(cfg.out).suffix.lower() not in KINDS:
        raise ConfigError(f"out must end in {' or '.join(KINDS)}, got {cfg.out!r}", fix="set out=cell.svg")
    if not Path(cfg.out).parent.is_dir():
        raise ConfigError(f"there is no directory {Path(cfg.out).parent} for out", fix="make it, or set out=cell.svg")


def main() -> None:
    command("draw", run)


if __name__ == "__main__":
    main()
