"""Collects facts about a data set for the record of a run, and writes them as lines of text."""

import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nas.data.bundle import DataBundle, Split
from nas.data.class_folders import Account, digest_of_file
from nas.data.image_file import Header
from nas.data.spec import ImageSpec
from nas.data.split import TensorSplit
from nas.untrusted.escaping import printable

NAMED = 5  # files, folders or extensions that a line lists
PER_CLASS = 100  # classes whose numbers of examples are recorded one by one
COMPARED_FILES = 20_000  # that are read to find copies; more would take minutes


def facts(bundle: DataBundle, *, scored: bool = False, compared: bool = True) -> dict[str, Any]:
    """Returns what manifest.json records about a data set, as plain values. scored: only its test split is used.
    compared: whether test images are read to find copies of training images."""
    spec, images = bundle.spec, isinstance(bundle.spec, ImageSpec)
    known: dict[str, Any] = {
        "name": spec.name,
        "examples": "images" if images else "examples",
        **({} if scored else {"train": len(bundle.train)}),
        "test": len(bundle.test),
        "input_shapes": [list(shape) for shape in spec.input_shapes],
        **({} if scored else {"test_held_out": bundle.held_out}),
        **bundle.found,
    }
    if spec.class_names:
        known |= _classes(bundle, scored=scored)
    if images and compared and not scored and not known.get("copies"):
        known |= copied_pixels(bundle.train, bundle.test)
    return known


def lines(known: Mapping[str, Any]) -> Iterator[str]:
    """Yields the facts as lines of text, one line for each kind of fact. Escapes names for printing."""
    what, test, train = known["examples"], known["test"], known.get("train")
    classes = f"{known['classes']:,} classes, " if "classes" in known else ""
    where = _sources(known.get("test_from"), test)
    if train is None:
        line = f"{classes}{test:,} {what} to score{where}"
    else:
        line = f"{classes}{train:,} {what} for training{_sources(known.get('train_from'), train)}"
        if known["test_held_out"]:
            line += f", {test:,} held out of them for the final score"
        elif test:
            line += f", {test:,} for the final score{where}"
    yield f"{printable(known['name'])}: {line}{_spread(known)}"
    if "sizes" in known or "turned" in known:
        yield f"  {_pixels(known)}"
    if passed := known.get("passed_over"):
        total = sum(passed.values())
        yield f"  passed over: {total:,} other file{'s' * (total > 1)} ({_extensions(passed)})"
    if beside := known.get("beside"):
        yield f"  passed over: {beside:,} image{'s' * (beside > 1)} that lie beside the class folders"
    if unused := known.get("unused_folders"):
        yield f"  not used: {listed(unused)}"
    if known.get("validation"):
        yield (
            f"  the images of {printable(known['validation'])} are for training; a search takes the images for the "
            "architecture out of the training images; the test images are for the final score only"
        )
    if known.get("copies", 0) is None:
        yield "  not checked: whether test images are exact copies of training images, because there are too many files"
    if (copies := known.get("copies")) and "root" not in known:
        yield f"  {_copies(known, copies)}"


def warnings(known: Mapping[str, Any]) -> Iterator[str]:
    """Yields warnings about likely mistakes in a user's folder."""
    for names in known.get("alike", ()):
        yield f"the class names {listed(names)} differ only in case, spaces or forms of letters, but are of two classes"
    if nested := known.get("nested"):
        inner = sorted({folder for folders in nested.values() for folder in folders})
        yield (
            f"the images of {listed(list(nested))} lie in folders of their own ({listed(inner)}), which are not "
            "classes: a class is everything below one class folder"
        )
    for what in ("train", "test"):
        if lacking := known.get(f"lacking_{what}"):
            more = lacking["classes"] - len(lacking["names"])
            names = listed(lacking["names"]) + (f", and {more:,} more" if more else "")
            some = f"{lacking['classes']:,} of the {known['classes']:,} classes"
            yield f"no {what} {known['examples']} for {some}: {names}"
    if (copies := known.get("copies")) and "root" in known:
        yield _copies(known, copies)


def of_folder(account: Account, class_names: Sequence[str], root: Path) -> dict[str, Any]:
    """Returns the facts about class folders."""
    cases: dict[str, list[str]] = {}
    for name in class_names:
        cases.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    kinds = _most(account.passed_over, 2 * NAMED)
    rest = sum(account.passed_over.values()) - sum(count for _, count in kinds)
    known = {
        "root": str(root.resolve()),
        "train_from": account.train_from,
        "test_from": account.test_from,
        "passed_over": {printable(kind): count for kind, count in kinds} | ({"others": rest} if rest else {}),
        "beside": account.beside,
        "unused_folders": account.unused[: 2 * NAMED],
        "nested": {name: inner[:NAMED] for name, inner in list(account.nested.items())[:NAMED]},
        "alike": [names for names in cases.values() if len(names) > 1][:NAMED],
        "validation": list(account.train_from)[1] if len(account.train_from) > 1 else "",
    }
    return {name: value for name, value in known.items() if value}


def of_headers(headers: Sequence[Header], *, files: int, scaled_to: int | None) -> dict[str, Any]:
    """Returns the facts about image files. files: the number of all files; `headers` may be those of a part."""
    by_area = sorted({(header.width * header.height, header.width, header.height) for header in headers})
    return {
        "sizes": [list(by_area[0][1:]), list(by_area[-1][1:])],  # (width, height) of the smallest and the largest
        "scaled_to": scaled_to,
        "turned": sum(header.turned for header in headers),
        "transparent": sum(header.alpha for header in headers),
        "deep": sum(header.deep for header in headers),
        "animated": sum(header.animated for header in headers),
        "grey": sum(header.grey for header in headers),
        "looked_at": len(headers),
        "files": files,
    }


def copied_pixels(train: Split, test: Split) -> dict[str, Any]:
    """Returns how many test images equal a training image in every pixel; nothing unless both splits are in memory."""
    if not (isinstance(train, TensorSplit) and isinstance(test, TensorSplit)):
        return {}
    seen = {zlib.crc32(row) for row in train.contents()}
    suspects = [row for row in test.contents() if zlib.crc32(row) in seen]
    if suspects:  # a checksum has 32 bits: some may be equal by chance
        wanted = set(suspects)
        known = {row for row in train.contents() if row in wanted}
        suspects = [row for row in suspects if row in known]
    return {"copies": len(suspects)}


def copied_files(train: Sequence[Path], test: Sequence[Path]) -> dict[str, Any]:
    """Returns how many test files have the contents of a training file, and an example.

    The number is None if too many files would have to be read. Raises DataError if a file cannot be read.
    """
    by_size: dict[int, list[Path]] = {}
    for path in test:
        by_size.setdefault(path.stat().st_size, []).append(path)
    candidates = [path for path in train if path.stat().st_size in by_size]
    sizes = {path.stat().st_size for path in candidates}
    suspects = [path for size in sizes for path in by_size[size]]
    if len(candidates) + len(suspects) > COMPARED_FILES:
        return {"copies": None}
    seen = {digest_of_file(path): path for path in candidates}
    pairs = [(path, seen[mark]) for path in suspects if (mark := digest_of_file(path)) in seen]
    return {"copies": len(pairs), **({"copy": [str(path) for path in pairs[0]]} if pairs else {})}


def listed(names: Sequence[str]) -> str:
    shown = [printable(name) for name in names[:NAMED]]
    return ", ".join([*shown, f"and {len(names) - NAMED} more"] if len(names) > NAMED else shown)


def _classes(bundle: DataBundle, *, scored: bool) -> dict[str, Any]:
    names = bundle.spec.class_names
    known: dict[str, Any] = {"classes": len(names)}
    for what, split in (("train", bundle.train), ("test", bundle.test)):
        if split.labels is None or (scored and what == "train"):
            continue
        counted = torch.bincount(split.labels, minlength=len(names)).tolist()
        if len(names) <= PER_CLASS:
            known.setdefault("per_class", {})[what] = dict(zip(names, counted, strict=True))
        known[f"class_sizes_{what}"] = [min(counted), max(counted)]
        lacking = [name for name, count in zip(names, counted, strict=True) if not count]
        if lacking and len(split) and not scored:
            known[f"lacking_{what}"] = {"classes": len(lacking), "names": lacking[:NAMED]}
    return known


def _copies(known: Mapping[str, Any], copies: int) -> str:
    example = ", e.g. {} and {}".format(*map(printable, known["copy"])) if "copy" in known else ""
    are = "are exact copies" if copies > 1 else "is an exact copy"
    return (
        f"{copies:,} of the {known['test']:,} test images {are} of training images{example}: the score is better than "
        "it would be on new ones"
    )


def _sources(folders: Mapping[str, int] | None, total: int) -> str:
    if not folders or set(folders) == {"."}:
        return ""
    named = (f"{printable(name)}/" + (f" {count:,}" if count != total else "") for name, count in folders.items())
    return f" ({', '.join(named)})"


def _spread(known: Mapping[str, Any]) -> str:
    sizes = known.get("class_sizes_train") or known.get("class_sizes_test")
    if sizes is None:
        return ""
    least, most = sizes
    return f"; {least:,} of each class" if least == most else f"; {least:,} to {most:,} of a class"


def _pixels(known: Mapping[str, Any]) -> str:
    (width, height), (widest, highest) = known["sizes"]
    size = f"{width}x{height}" + (f" to {widest}x{highest}" if known["sizes"][0] != known["sizes"][1] else "")
    channels = known["input_shapes"][0][0]
    parts = [f"{size} pixels (width x height), read as {'grey' if channels == 1 else 'colour'}"]
    if known["scaled_to"] is not None:
        parts[0] += f", scaled and cropped to {known['scaled_to']}x{known['scaled_to']}"
    for name, said in (
        ("turned", "{} turned upright by their EXIF orientation"),
        ("transparent", "{} with transparency, laid over white"),
        ("deep", "{} of 16 bits a channel, of which the upper 8 are kept"),
        ("animated", "{} of several frames or pages, of which the first is read"),
    ):
        if known.get(name):  # a record of an earlier release may lack it
            parts.append(said.format(f"{known[name]:,}"))
    if channels == 3 and 0 < known["grey"] < known["looked_at"]:
        parts.append(f"{known['grey']:,} grey")
    if known["looked_at"] < known["files"]:
        parts.append(f"as {known['looked_at']:,} of the {known['files']:,} files say")
    return "; ".join(parts)


def _most(counted: Mapping[str, int], names: int) -> list[tuple[str, int]]:
    return sorted(counted.items(), key=lambda one: (-one[1], one[0]))[:names]


def _extensions(passed: Mapping[str, int]) -> str:
    most = _most(passed, NAMED)
    rest = sum(passed.values()) - sum(count for _, count in most)
    return ", ".join([*(f"{kind} {count:,}" for kind, count in most), *([f"others {rest:,}"] if rest else [])])
