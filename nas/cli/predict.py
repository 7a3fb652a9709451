"""nas-predict: prints what a trained network predicts for image files."""

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from nas.cli.command import command

MOST_ROWS = 50  # of the table that is printed


def run(cfg: DictConfig, directory: Path) -> None:
    from nas.cli.report import Shown, show
    from nas.errors import ConfigError, DataError
    from nas.formats.predict import Predictor, images_in, to_csv
    from nas.storage import atomic
    from nas.training.job import at_least
    from nas.untrusted.escaping import printable

    at_least(1, top=cfg.top, batch_size=cfg.batch_size)
    out = None if cfg.out is None else Path(cfg.out)
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"there is no directory {out.parent} for out", fix="make it, or set out=predictions.csv")
    given = cfg.images if OmegaConf.is_list(cfg.images) else [cfg.images]
    if not given or None in given:
        raise ConfigError(f"images is {cfg.images}, expected files or folders", fix="set images=my_folder")
    paths = [path for one in given for path in images_in(Path(str(one)).expanduser())]
    predictor = Predictor.open(cfg.export, allow=list(cfg.allow_targets), device=cfg.device)
    if not predictor.spec.from_files and predictor.size is not None:
        side = predictor.size
        print(f"note: the network was not trained on files; images are scaled to {side}x{side}", file=sys.stderr)
    found = list(predictor.predict(paths, top=cfg.top, batch_size=cfg.batch_size))
    good = [one for one in found if not one.problem]
    for one in found:
        if one.problem:
            print(f"warning: {one.problem}; it is left out", file=sys.stderr)
    top = min(cfg.top, len(predictor.spec.class_names))
    if out is not None:
        atomic.write_text(out, to_csv(found, top=top), setting="out")
    if not good:
        raise DataError(f"none of {len(found)} files could be read as an image", fix="see the warnings above")
    table = Shown("file", "class", "probability", *(["then"] if top > 1 else []))
    for one in good[:MOST_ROWS]:
        (name, probability), *others = one.classes
        then = ", ".join(f"{other} {value:.1%}" for other, value in others)
        table.add_row(one.path, name, f"{probability:.1%}", *([then] if top > 1 else []))
    show(table)
    if len(good) > MOST_ROWS:
        print(f"and {len(good) - MOST_ROWS:,} more" + ("" if out else "; out=predictions.csv writes all of them"))
    if out is not None:
        print(f"written to {printable(out)}")


def main() -> None:
    command("predict", run)


if __name__ == "__main__":
    main()
