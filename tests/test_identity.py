"""A run answers only for its own inputs: whoever opens its folder with others is told what differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import LaFTer
from tests.tiny_run import arguments, make_inputs, run_folder
from utils.config import default_config, flatten
from utils.errors import InputError
from utils.runs.identity import BY_CONTENT, HARMLESS, identify, read_identity
from utils.runs.record import Run

QUICK = ("--epochs", "1", "--scheduler", "none", "TEXT.EPOCHS", "5")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the inputs of a run, whose texts name a fourth class too, and the finished run, `trial`."""
    folder = tmp_path_factory.mktemp("finished")
    make_inputs(folder, train=3, test=2)
    data = dict(np.load(folder / "texts.npz"))
    np.savez(folder / "texts.npz", features=data["features"][[0, 1, 2, 2]], classnames=[*data["classnames"], "rose"])
    LaFTer.main([*arguments(folder, "trial"), *QUICK])
    return folder


@pytest.fixture
def place(finished, tmp_path):
    """A copy of `finished` that a test may change: the same content in another place."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def start(place: Path, *more: str) -> dict:
    """Ask for the run once more."""
    return LaFTer.main([*arguments(place, "trial"), *QUICK, *more])


def evaluate(place: Path, *more: str) -> dict:
    return LaFTer.main(["--eval-only", "--model-dir", str(run_folder(place, "trial")), "--root", str(place / "data"),
                        "--backbone", str(place / "clip.pt"), "DATALOADER.CACHE_DIR", str(place / "cache"), *more])


def unfinish(place: Path) -> None:
    (run_folder(place, "trial") / "final.json").unlink()


def add_image(place: Path) -> None:
    Image.new("RGB", (32, 32)).save(place / "data" / "test" / "red" / "9.png")


def enlarge_image(place: Path) -> None:
    path = place / "data" / "test" / "red" / "1.png"
    path.write_bytes(path.read_bytes() + b"\0")  # Pillow does not mind


def remove_image(place: Path) -> None:
    (place / "data" / "test" / "red" / "1.png").unlink()


def rename_class(place: Path) -> None:
    for split in ("train", "test"):
        (place / "data" / split / "red").rename(place / "data" / split / "rose")


def change_texts(place: Path) -> None:
    data = dict(np.load(place / "texts.npz"))
    np.savez(place / "texts.npz", **data | {"features": -data["features"]})


def change_weights(place: Path) -> None:
    state = torch.load(place / "clip.pt", weights_only=True)
    torch.save(state | {"logit_scale": state["logit_scale"] + 1}, place / "clip.pt")


CHANGES = {
    add_image: "image test/red/9.png of the test split is new;",
    enlarge_image: r"image test/red/1.png of the test split has \d+ bytes there and \d+ here;",
    remove_image: "image test/red/1.png of the test split is gone;",
    rename_class: "class 'rose' is new; class 'red' is gone",
    change_texts: "the file of DATASET.TEXT_FEATURES has another content;",
    change_weights: "the backbone's weights have SHA-256 .* there and .* here;",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("left", ["finished", "unfinished", "other folder"])
def test_other_inputs_are_named(place, change, left):
    change(place)
    if left != "finished":
        unfinish(place)
    arrived = {"finished": (), "unfinished": ("--resume", "auto"),
               "other folder": ("--exp-name", "second", "--resume", str(run_folder(place, "trial")))}[left]
    with pytest.raises(InputError, match=f"trial holds another run: .*{CHANGES[change]}") as told:
        start(place, *arrived)
    assert str(told.value).endswith("choose another --exp-name, or delete the folder") and "\n" not in str(told.value)


def test_the_same_inputs_elsewhere_are_the_same(finished, place):
    """Another root, another path of the backbone and of the texts, names in a list, the splits in a file."""
    told = json.loads((run_folder(finished, "trial") / "final.json").read_text(encoding="utf-8"))
    assert start(place) == told
    (place / "clip.pt").rename(place / "moved.pt")
    shutil.copy(run_folder(place, "trial") / "split.json", place / "split.json")
    moved = ("--backbone", str(place / "moved.pt"), "DATASET.CLASSNAMES", "[blue, green, red]",
             "DATASET.SPLIT_FILE", str(place / "split.json"), "MODEL.BACKBONE.QUICK_GELU", "True")
    (place / "runs" / "data" / "LaFTer" / "clip").rename(place / "runs" / "data" / "LaFTer" / "moved")
    assert start(place, *moved) == told


def test_labels_distributions_and_order_are_compared(tmp_path, make_cfg, root):
    """By what a run's files say, without a run."""
    cfg = make_cfg({"DATASET.ROOT": str(root)})
    splits = LaFTer.load_dataset(cfg)
    first = identify(cfg, splits)
    train = splits.train
    replace = LaFTer.dataclasses.replace

    def difference(changed):
        return list(first.differences(identify(cfg, replace(splits, train=changed))))

    assert difference(train) == []
    name = train[0].path.relative_to(root).as_posix()
    assert difference([replace(train[0], label=1, classname="green"), *train[1:]]) == [
        f"image {name} of the train split is of class 'blue' there and 'green' here"]
    assert difference([replace(item, distribution=(1.0, 0.0, 0.0)) for item in train[:2]] + train[2:]) == [
        f"image {name} of the train split has another distribution (2 such images)"]
    assert difference([*train[1:], train[0]]) == ["the images are in another order"]
    assert difference(train[1:]) == [f"image {name} of the train split is gone"]
    for changed in (replace(splits, train=train[1:], val=[*splits.val, train[0]]),
                    replace(splits, val=[*splits.val, train[0]])):
        assert list(first.differences(identify(cfg, changed))) == [f"image {name} is in another split"]


def test_every_kind_of_value_is_compared(make_cfg):
    """Lists too; `auto` is whatever the run has, and only here, not there."""
    first = identify(make_cfg({"MODEL.PRECISION": "bf16"}))
    other = identify(make_cfg({"MODEL.PRECISION": "auto", "PSEUDO_LABEL.CALIBRATION": "auto", "OPTIM.LR": 0.25,
                               "INPUT.TRANSFORMS": ["random_flip"], "DATASET.NUM_SHOTS": [3, 4]}))
    shown = [text.split(" is ")[0] for text in first.differences(other)]
    assert shown == ["DATASET.NUM_SHOTS", "INPUT.TRANSFORMS", "OPTIM.LR"]
    assert "MODEL.PRECISION is 'auto' there and 'bf16' here" in list(other.differences(first))


def test_another_description_is_named(place):
    texts = {name: [f"something {name}"] for name in ("blue", "green", "red")}
    (place / "d.json").write_text(json.dumps(texts), encoding="utf-8")
    cfg = default_config()
    cfg.merge_from_list(["DATASET.DESCRIPTIONS", str(place / "d.json")])
    before = identify(cfg)
    (place / "d.json").write_text(json.dumps({**texts, "red": ["something pink"]}), encoding="utf-8")
    assert list(before.differences(identify(cfg))) == ["the file of DATASET.DESCRIPTIONS has another content"]
    cfg.TEXT.MODE = "templates_only"  # does not read it
    assert identify(cfg).texts == {}


def test_the_activation_counts_however_it_was_found(place):
    with pytest.raises(InputError, match="the backbone has QuickGELU there and the plain GELU here"):
        start(place, "MODEL.BACKBONE.QUICK_GELU", "False")
    with pytest.raises(InputError, match="with MODEL.BACKBONE.QUICK_GELU True, and .*clip.pt is used with False"):
        evaluate(place, "MODEL.BACKBONE.QUICK_GELU", "False")


def test_a_run_of_an_earlier_version_is_refused_by_name(place):
    (run_folder(place, "trial") / "identity.json").unlink()
    for action in (start, evaluate):
        with pytest.raises(InputError, match="trial holds a run of an earlier version.*no identity.json.*--exp-name"):
            action(place)
    (run_folder(place, "trial") / "identity.json").write_text('{"weights": "a"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"identity.json is damaged .*restore it, or delete the folder"):
        start(place)


@pytest.mark.parametrize("change", [add_image, enlarge_image, remove_image], ids=lambda change: change.__name__)
def test_an_evaluation_of_changed_images_is_refused(place, change):
    change(place)
    words = CHANGES[change].rstrip(";").replace(" of the test split", ".*")  # a new image is in no split of the run's
    with pytest.raises(InputError, match=f"data is not the data that .*trial was trained on: {words}"):
        evaluate(place)


def test_a_few_shot_run_is_scored_on_its_own_data(place):
    """Most training images are in none of its splits, and not new."""
    result = LaFTer.main([*arguments(place, "few"), *QUICK, "DATASET.NUM_SHOTS", "1"])
    again = LaFTer.main(["--eval-only", "--model-dir", str(run_folder(place, "few")), "--seed", "3"])
    assert again["splits"]["test"]["tuned"] == result["splits"]["test"]["last"] and result["data"]["train"] == 3


def test_an_evaluation_elsewhere_repeats_the_figures_and_another_precision_is_told(place):
    result = json.loads((run_folder(place, "trial") / "final.json").read_text(encoding="utf-8"))
    first = evaluate(place)
    assert first["splits"]["test"]["tuned"] == result["splits"]["test"]["last"] and first["changed"] == {}
    second = evaluate(place, "MODEL.PRECISION", "bf16", "INPUT.SIZE", "[48, 48]")
    assert second["changed"] == {"MODEL.PRECISION": ["fp32", "bf16"], "INPUT.SIZE": [None, [48, 48]]}
    run = run_folder(place, "trial")
    assert json.loads((run / "eval_data_epoch1.json").read_text(encoding="utf-8")) == first
    assert json.loads((run / "eval_data_epoch1_precision_bf16_size_48_48.json").read_text(encoding="utf-8")) == second


def test_another_model_than_the_runs_is_refused(place):
    photo = str(place / "data" / "test" / "red" / "0.png")
    for option in (("PROMPT_NUM", "5"), ("INPUT.INTERPOLATION", "bilinear"), ("MULTI_LAYER_PROMPT.MODE", "append")):
        with pytest.raises(InputError, match=f"{option[0]} is .* in the run and .* here, which makes another model"):
            evaluate(place, *option)
        with pytest.raises(InputError, match=f"{option[0]} is .* in the run"):
            LaFTer.main(["--predict", photo, "--model-dir", str(run_folder(place, "trial")), *option])
    change_weights(place)
    with pytest.raises(InputError, match="trained on another backbone than .*clip.pt"):
        LaFTer.main(["--predict", photo, "--model-dir", str(run_folder(place, "trial")), "--backbone",
                     str(place / "clip.pt")])


def test_the_keys_that_are_not_compared_exist():
    assert not (HARMLESS | BY_CONTENT) - set(dict(flatten(default_config())))


def test_what_is_written_comes_back(finished):
    identity = read_identity(run_folder(finished, "trial"))
    assert {split: len(sizes) for split, sizes in identity.sizes.items()} == {"train": 9, "val": 0, "test": 6}
    assert identity.sizes["test"][0] == (finished / "data" / "test" / "blue" / "0.png").stat().st_size
    assert identity.quick_gelu is True and len(identity.weights) == 64
    Run(run_folder(finished, "trial")).check(identity)
