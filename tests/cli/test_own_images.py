"""A network trained on the user's own images, and which images it may be scored on when they have changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli.conftest import TINY, Outcome
from PIL import Image

Nas = Callable[..., Outcome]

CELL = "|skip_connect~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|skip_connect~2|"
CHECKPOINT = "checkpoint=trained/retrain/checkpoint.pt"
QUICK = ("latency.batches=[]", "runtime.device=cpu")


def make(root: Path, folders: str, *, count: int, side: int = 8, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for folder in folders.split():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(random.integers(0, 256, (side, side), dtype=np.uint8)).save(root / folder / f"{number}.png")


@pytest.fixture
def trained(nas: Nas, tmp_path: Path) -> Path:
    """The directory of a network of pets/<class>, of which a fifth is held out."""
    make(tmp_path / "pets", "cat dog", count=20)
    settings = [one for one in TINY if not one.startswith("data")]
    data = ("data=image_folder", "data.root=pets")
    outcome = nas("retrain", *settings, *data, f"genotype='{CELL}'", "hydra.run.dir=trained")
    assert (outcome.code, outcome.err) == (0, "")
    return tmp_path / "trained"


def test_what_is_held_out_may_have_been_seen_once_images_are_added(trained: Path, nas: Nas, tmp_path: Path) -> None:
    assert nas("evaluate", CHECKPOINT, *QUICK, "hydra.run.dir=before").code == 0
    make(tmp_path, "others/train/cat others/train/dog others/test/cat others/test/dog", count=2)
    shutil.copy("pets/cat/0.png", "pets/cat/new.png")
    for command, settings in (
        ("evaluate", QUICK),
        ("export", ("formats=[]",)),
        ("evaluate", (*QUICK, "data=image_folder", "data.root=pets")),
    ):
        outcome = nas(command, CHECKPOINT, *settings, "hydra.run.dir=after")
        assert outcome.code == 2
        assert outcome.err.startswith("error: 'pets' is not what it was when the network was trained: what is held out")
        assert outcome.err.count("\n") == 1
        assert not Path("after").exists()
    others = nas("evaluate", CHECKPOINT, *QUICK, "data=image_folder", "data.root=others", "hydra.run.dir=after")
    assert others.code == 0
    assert others.err.startswith(
        "warning: 3 of the 4 images to score are copies of images that the network was trained"
    )
    assert json.loads(Path("after/result.json").read_text())["data"] == "others"


def test_a_run_goes_on_with_the_images_it_began_with(trained: Path, nas: Nas) -> None:
    manifest = trained / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"finished"', '"running"'))
    shutil.copy("pets/cat/0.png", "pets/cat/new.png")
    outcome = nas("retrain", "resume=trained")
    assert outcome.code == 2
    assert outcome.err == (
        "error: 'pets' has other training examples than when trained/retrain/checkpoint.pt was written; "
        "put them back as they were, or allow it: 'may_change=[data]'\n"
    )
    Path("pets/cat/new.png").unlink()
    assert nas("retrain", "resume=trained").code == 0


def test_images_of_another_set_and_size(trained: Path, nas: Nas, tmp_path: Path) -> None:
    make(tmp_path / "large", "train/cat train/dog test/cat test/dog", count=2, side=16)
    data = ("data=image_folder", "data.root=large")
    evaluated = nas("evaluate", CHECKPOINT, *QUICK, *data, "hydra.run.dir=evaluated")
    assert evaluated.code == 0
    assert evaluated.err == "warning: 'large' has inputs of shape (1, 16, 16), the network was trained on (1, 8, 8)\n"
    small, large = (json.loads(Path(name, "result.json").read_text()) for name in ("trained", "evaluated"))
    assert (large["data"], large["test_examples"]) == ("large", 4)
    assert large["macs"] > 3 * small["macs"]
    assert nas("export", CHECKPOINT, *data, "formats=[]", "hydra.run.dir=exported").code == 0
    card = Path("exported/MODEL_CARD.md").read_text()
    assert "On the test split of `large`, another data set than `pets`, which it was trained on:" in card


def test_nothing_is_written_over(trained: Path, nas: Nas) -> None:
    before = (trained / "result.json").read_bytes()
    for command, settings in (("evaluate", QUICK), ("export", ("formats=[]",))):
        outcome = nas(command, CHECKPOINT, *settings, "hydra.run.dir=trained")
        assert outcome.code == 2
        assert outcome.err.startswith("error: the output directory ")
        assert outcome.err.count("\n") == 1
    assert (trained / "result.json").read_bytes() == before


def test_all_images_of_another_folder_are_scored(trained: Path, nas: Nas, tmp_path: Path) -> None:
    make(tmp_path / "new", "cat dog", count=7, seed=1)
    make(tmp_path / "only/test", "dog", count=3, seed=2)
    for number, (settings, examples) in enumerate(
        (
            (("data=image_folder", "data.root=new"), 14),
            (("data.root=new",), 14),
            (("data.root=only",), 3),
        )
    ):
        outcome = nas("evaluate", CHECKPOINT, *QUICK, *settings, f"hydra.run.dir=scored{number}")
        assert (outcome.code, outcome.err) == (0, "")
        result = json.loads(Path(f"scored{number}", "result.json").read_text())
        assert (result["test_examples"], result["data_found"]["test"]) == (examples, examples)
        assert f"{examples} images to score" in outcome.out


def test_a_folder_that_was_moved_is_the_one_of_the_training(
    trained: Path, nas: Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another directory, too: what was held out is scored, and the run goes on."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    checkpoint = "checkpoint=../trained/retrain/checkpoint.pt"
    assert nas("evaluate", checkpoint, *QUICK, "hydra.run.dir=there").code == 0
    (tmp_path / "pets").rename(tmp_path / "elsewhere" / "animals")
    gone = nas("evaluate", checkpoint, *QUICK)
    assert gone.err == f"error: data.root {tmp_path}/pets does not exist; set data.root to the folder with the images\n"
    for settings in (("data.root=animals",), ("data=image_folder", "data.root=animals")):
        outcome = nas("evaluate", checkpoint, *QUICK, *settings, f"hydra.run.dir=moved{len(settings)}")
        assert (outcome.code, outcome.err) == (0, "")
        assert json.loads(Path(f"moved{len(settings)}/result.json").read_text())["test_examples"] == 8
    unknown = nas("evaluate", checkpoint, *QUICK, "data.rooot=animals")
    assert unknown.err.startswith("error: data.rooot is not a setting of the data that the network was trained on, exp")
    manifest = trained / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"finished"', '"running"'))
    assert nas("retrain", "resume=../trained", "data.root=animals").code == 0
    record = json.loads(manifest.read_text())
    assert (record["data"]["train"], record["data"]["root"]) == (32, str(tmp_path / "elsewhere" / "animals"))
    assert record["retrain_epoch"] == {"examples": 32, "batches": 2, "left_out": 0}
