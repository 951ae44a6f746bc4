"""From a folder of unlabelled images to a table of predictions; and a run's model on other data."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import LaFTer
from tests.browser import PageSource
from trainers.pages import show_files
from trainers.predict import ImageFiles, find_files, write_predictions
from trainers.program import exit_with_message
from utils.data.images import Decoding
from utils.data.items import Item, Splits, order_classes
from utils.data.loader import ViewLoader, build_loader
from utils.data.views import build_views
from utils.demo.faces import draw_dataset
from utils.errors import InputError
from utils.runs.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from utils.runs.record import read_rows

CLASSES = ["joy", "anger", "disgust", "fear", "sadness", "surprise"]
QUICK = ("--epochs", "1", "--workers", "0", "--batch_size", "12", "PICTURES", "False", "TEXT.EPOCHS", "20")


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Drawn faces as a pile of unlabelled photos, `photos/train`, and as labelled folders, `labelled/{train,test}`."""
    folder = tmp_path_factory.mktemp("own")
    draw_dataset(folder / "demo", train_per_class=3, test_per_class=2)
    rows = json.loads((folder / "demo" / "annotations.json").read_text(encoding="utf-8"))
    for number, row in enumerate(rows["items"]):
        source = folder / "demo" / row["file"]
        name = row["label"] if isinstance(row["label"], str) else rows["emotions"][row["label"]]
        for target in (folder / "labelled" / row["split"] / name, *([folder / "photos" / "train"] * (number % 2))):
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / f"{number}{source.suffix}")
    return folder


@pytest.fixture(scope="module")
def start(place):
    def run(*arguments: str) -> tuple[Path, dict]:
        before = set(place.rglob("final.json"))
        result = LaFTer.main([*arguments, *QUICK, "--output-dir", str(place / "out"), "TEXT.CACHE_DIR",
                              str(place / "cache")])
        (final,) = set(place.rglob("final.json")) - before
        return final.parent, result

    return run


@pytest.fixture(scope="module")
def unlabelled(place, start):
    return start("--dataset-config-file", "folder", "--root", str(place / "photos"), "--backbone",
                 "configs/demo/demo_clip.pt", "--trainer", "MultiLayerLaFTer", "DATASET.CLASSNAMES", str(CLASSES))


def test_without_labels_a_run_tells_agreement_and_confidence(unlabelled):
    folder, result = unlabelled
    methods = result["splits"]["test"]
    assert set(methods) == {"zero_shot", "text_classifier", "untrained", "last", "best"}
    for name, metrics in methods.items():
        of_stages = {"stage_agreement", "stage_cka"} if name in ("untrained", "last", "best") else set()
        agreement = {"agreement"} if name != "text_classifier" else set()
        assert set(metrics) == {"confidence", "predicted"} | agreement | of_stages
        assert all(0 <= metrics[measure] <= 1 for measure in set(metrics) - of_stages - {"predicted"})
        assert len(metrics["predicted"]) == len(result["classnames"]) and sum(metrics["predicted"]) == 15
    assert result["test_in_train"] == 15
    rows = read_rows(folder / "metrics.jsonl")
    assert rows[-1]["test"] == methods["last"] and "pseudo_label_accuracy" not in rows[-1]
    log = (folder / "log.txt").read_text(encoding="utf-8")
    assert "has no labels" in log and "there is no accuracy" in log and "test agreement" in log and "top-1" not in log
    assert "15 of the test images are training images" in log and "predicted, test, tuned, last epoch: " in log


def test_zero_shot_alone_does_not_agree_with_itself(place):
    result = LaFTer.main(["--dataset-config-file", "folder", "--root", str(place / "photos"), "--zero_shot",
                          "--backbone", "configs/demo/demo_clip.pt", "--workers", "0", "--output-dir",
                          str(place / "zero"), "DATASET.CLASSNAMES", str(CLASSES)])
    assert set(result["splits"]["test"]["zero_shot"]) == {"confidence", "predicted"}


def test_two_commands_lead_from_unlabelled_images_to_a_table(unlabelled, place):
    folder, result = unlabelled
    told = LaFTer.main(["--predict", str(place / "photos"), "--model-dir", str(folder), "--workers", "1"])
    photos = sorted((place / "photos" / "train").iterdir())
    with (folder / "predictions.csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    lines = read_lines(folder / "predictions.jsonl")
    assert told["images"] == len(photos) == len(table) == len(lines) and told["unreadable"] == 0
    for photo, row, line in zip(photos, table, lines):
        shares = {name: float(row[f"p({name})"]) for name in CLASSES}
        assert row["file"] == line["file"] == str(photo) and row["error"] == ""
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5) and shares == pytest.approx(
            line["probabilities"], abs=1e-6)
        assert row["prediction"] == line["prediction"] == max(shares, key=shares.get)
        assert float(row["confidence"]) == pytest.approx(max(shares.values()), abs=1e-6)
        assert "distribution" not in line
    page = PageSource(folder / "predictions.html")
    assert told["files"] == [str(folder / f"predictions.{kind}") for kind in ("csv", "jsonl", "html")]
    predicted = [CLASSES[int(card["data-predicted"])] for card in page.all("article")]
    assert predicted == [row["prediction"] for row in table]
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    assert "MultiLayerLaFTer, demo_clip, epoch 1" in page.texts and "data-label" not in page.all("article")[0]
    confidence = sum(line["confidence"] for line in lines) / len(lines)
    assert confidence == pytest.approx(result["splits"]["test"]["last"]["confidence"], abs=1e-4)


def test_what_cannot_be_read_becomes_a_row_and_the_rest_go_on(unlabelled, place, tmp_path):
    folder, _ = unlabelled
    good = sorted((place / "photos" / "train").iterdir())[0]
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:60])
    (tmp_path / "note.jpg").write_text("no image", encoding="utf-8")
    files = [str(cut), "note.jpg", str(good), "absent.png"]
    (tmp_path / "list.txt").write_text("\n".join(files) + "\n\n", encoding="utf-8")
    told = LaFTer.main(["--predict", str(tmp_path / "list.txt"), "--model-dir", str(folder), "--predict-out",
                        str(tmp_path / "out"), "--workers", "0"])
    rows = read_lines(tmp_path / "out" / "predictions.jsonl")
    assert (told["images"], told["unreadable"]) == (4, 3)
    assert [Path(row["file"]).name for row in rows] == ["cut.png", "note.jpg", good.name, "absent.png"]
    assert ["error" in row for row in rows] == [True, True, False, True]
    assert all("cannot read image" in row["error"] and "\n" not in row["error"] for row in rows if "error" in row)
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["prediction"] == "" for row in table] == [True, True, False, True]
    assert "note.jpg" in table[1]["error"]
    page = PageSource(tmp_path / "out" / "predictions.html")
    assert len(page.all("article")) == 1 and set(page.texts) >= {row["error"] for row in rows if "error" in row}
    assert "1 images predicted with epoch 1, 3 could not be read" in (folder / "log.txt").read_text(encoding="utf-8")


def test_every_file_that_looks_like_an_image_has_a_row(unlabelled, place, tmp_path):
    folder, _ = unlabelled
    good = sorted((place / "photos" / "train").iterdir())[0]
    for name in ("1.jfif", "2", "图/4.ppm"):
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(good) as image:
            image.convert("RGB").save(tmp_path / "own" / name, {"1.jfif": "JPEG", "2": "PNG"}.get(name, "PPM"))
    for name in ("3.NEF", "._1.jfif", "notes.csv", "README", "Thumbs.db"):
        (tmp_path / "own" / name).write_text("no image", encoding="utf-8")
    (tmp_path / "own" / "x.jpg").mkdir()
    told = LaFTer.main(["--predict", str(tmp_path / "own"), "--model-dir", str(folder), "--predict-out",
                        str(tmp_path / "out"), "--workers", "0"])
    rows = {Path(row["file"]).relative_to(tmp_path / "own").as_posix(): row
            for row in read_lines(tmp_path / "out" / "predictions.jsonl")}
    assert list(rows) == ["1.jfif", "2", "3.NEF", "图/4.ppm"] and (told["images"], told["unreadable"]) == (4, 1)
    assert rows["2"]["probabilities"] == pytest.approx(rows["图/4.ppm"]["probabilities"], abs=1e-6)
    assert rows["3.NEF"]["error"].endswith("; convert it to JPEG or PNG")
    assert ("left out: 2 hidden or system, 1 .csv, 1 folders named like an image, 1 without suffix"
            in (folder / "log.txt").read_text(encoding="utf-8"))
    table = (tmp_path / "out" / "predictions.csv").read_bytes()
    assert table.startswith("\ufefffile,prediction".encode()) and "图".encode() in table


def test_a_file_name_that_is_no_text_is_written_so_that_it_can_be_read_again(tmp_path):
    rows = [{"file": "caf\udce9/图.png", "prediction": "a", "confidence": 1.0, "probabilities": {"a": 1.0}}]
    write_predictions(rows, ["a"], tmp_path)
    assert read_lines(tmp_path / "predictions.jsonl") == rows
    assert "caf\\udce9/图.png" in (tmp_path / "predictions.csv").read_text(encoding="utf-8-sig")
    show_files(tmp_path / "predictions.html", rows, [b""], ["a"], "x", "y")
    assert "no thumbnail of 图.png" in PageSource(tmp_path / "predictions.html").texts


def test_where_nothing_can_be_read_the_files_are_written_and_the_status_is_1(unlabelled, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.png"):
        (tmp_path / "photos" / name).write_text("no image", encoding="utf-8")
    with pytest.raises(SystemExit, match="none of the 2 images could be read; .*predictions.csv says why.*a.jpg"):
        exit_with_message(lambda: LaFTer.main([
            "--predict", str(tmp_path / "photos"), "--model-dir", str(unlabelled[0]), "--predict-out",
            str(tmp_path / "out"), "--workers", "0"]))
    assert [Path(row["file"]).name for row in read_lines(tmp_path / "out" / "predictions.jsonl")] == ["a.jpg", "b.png"]


def test_another_backbone_is_refused_before_it_is_downloaded(unlabelled, place, tmp_path):
    shutil.copytree(unlabelled[0], tmp_path / "run")
    path = find_checkpoint(tmp_path / "run")
    state = load_checkpoint(path, {})
    predict = ["--predict", str(place / "photos"), "--model-dir", str(tmp_path / "run"), "--backbone", "ViT-B/16",
               "MODEL.DOWNLOAD_ROOT", str(tmp_path / "weights")]
    with pytest.raises(InputError, match="was trained on .*demo_clip.pt, not on ViT-B/16: leave --backbone out"):
        LaFTer.main(predict)  # the run's own checkpoint is still there
    state["config"] = state["config"].replace("configs/demo/demo_clip.pt", "ViT-B/32")
    save_checkpoint(path, state)
    with pytest.raises(InputError, match="was trained on ViT-B/32, not on ViT-B/16: leave --backbone out"):
        LaFTer.main(predict)
    assert not (tmp_path / "weights").exists()


def test_a_dual_task_model_tells_the_distribution(place, start):
    folder, _ = start("--dataset-config-file", "demo", "--root", str(place), "--direct_dualtask", "TRAIN.KEEP", "0",
                      "--exp-name", "dual")
    photo = str(sorted((place / "photos" / "train").iterdir())[0])
    told = LaFTer.main(["--predict", photo, "--model-dir", str(folder), "--load-epoch", "1"])
    (row,) = read_lines(folder / "predictions.jsonl")
    assert told["epoch"] == 1 and row["distribution"] == row["probabilities"]
    assert set(row["distribution"]) == set(CLASSES) and sum(row["distribution"].values()) == pytest.approx(1, abs=1e-5)
    LaFTer.main(["--eval-only", "--model-dir", str(folder), "--workers", "0"])
    page = PageSource(folder / "eval_demo_epoch1.html")
    assert all("--a:" in bar["style"] for bar in page.all("li")) and len(page.all("li")) == 6 * len(page.all("article"))
    with pytest.raises(FileNotFoundError, match="epoch 9"):
        LaFTer.main(["--predict", photo, "--model-dir", str(folder), "--load-epoch", "9"])


def test_a_run_is_scored_on_other_data_of_the_same_classes(unlabelled, place):
    """Whose classes stand in another order: sorted folders, where the run has joy first."""
    folder, _ = unlabelled
    told = LaFTer.main(["--eval-only", "--model-dir", str(folder), "--dataset-config-file", "folder", "--root",
                        str(place / "labelled"), "DATASET.CLASSNAMES", "[]", "--workers", "0"])
    LaFTer.main(["--predict", str(place / "labelled" / "test"), "--model-dir", str(folder), "--workers", "0"])
    rows = read_lines(folder / "predictions.jsonl")
    right = sum(Path(row["file"]).parent.name == row["prediction"] for row in rows)
    assert told["splits"]["test"]["tuned"]["top1"] == pytest.approx(right / len(rows)) and len(rows) == 12
    assert (folder / "eval_labelled_epoch1.json").is_file()
    wrong = len(rows) - right
    for page in (PageSource(folder / "eval_labelled_epoch1.html"), PageSource(folder / "predictions.html")):
        gallery, cards = page.all("article")[:wrong], page.all("article")[wrong:]
        assert len(cards) == len(page.all("img")) - wrong == 12
        assert [card["data-label"] == card["data-predicted"] for card in cards].count(True) == right
        assert all(card["data-label"] != card["data-predicted"] for card in gallery) and wrong > 1
        sure = [float(card["data-confidence"]) for card in gallery]
        assert sure == sorted(sure, reverse=True)
    assert ("The folders are called like classes and are taken as labels: "
            f"{right} of 12 predictions are right.") in page.texts


def test_a_run_is_not_scored_on_other_classes(unlabelled, place, tmp_path):
    shutil.copytree(place / "labelled", tmp_path / "other")
    for split in ("train", "test"):
        (tmp_path / "other" / split / "joy").rename(tmp_path / "other" / split / "envy")
    with pytest.raises(InputError, match="other classes.*does not know 'envy'.*has no 'joy'"):
        LaFTer.main(["--eval-only", "--model-dir", str(unlabelled[0]), "--dataset-config-file", "folder", "--root",
                     str(tmp_path / "other"), "DATASET.CLASSNAMES", "[]"])


@pytest.mark.parametrize("path, model, words", [
    ("nowhere", None, "--predict .*nowhere does not exist"), ("empty", None, "empty names no image"),
    (None, "no-run", "--model-dir .*no-run is no run's folder"),
])
def test_wrong_places_are_named(unlabelled, place, tmp_path, path, model, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises((InputError, FileNotFoundError), match=words):
        LaFTer.main(["--predict", str(tmp_path / path if path else place / "photos"), "--model-dir",
                     str(tmp_path / model if model else unlabelled[0])])


def test_files_are_found_below_folders_and_in_lists(tmp_path):
    for name in ("b/2.JPG", "a.png", "b/c/1.webp", "b/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_files(tmp_path) == [tmp_path / "a.png", tmp_path / "b" / "2.JPG", tmp_path / "b" / "c" / "1.webp"]
    assert find_files(tmp_path / "b" / "notes.md") == [tmp_path / "b" / "notes.md"]
    (tmp_path / "list.txt").write_text("\ufeffa.png\n\n  b/2.JPG  \n", encoding="utf-8")
    assert find_files(tmp_path / "list.txt") == [tmp_path / "a.png", tmp_path / "b" / "2.JPG"]
    (tmp_path / "list.txt").write_text("b/notes.md\nb\n", encoding="utf-8")  # what is named has a row in any case
    assert find_files(tmp_path / "list.txt") == [tmp_path / "b" / "notes.md", tmp_path / "b"]
    (tmp_path / "none").mkdir()
    for name in ("1.csv", "2.csv", ".3.png"):
        (tmp_path / "none" / name).touch()
    with pytest.raises(InputError, match=r"none names no image to predict \(left out: 2 \.csv, 1 hidden or system\)"):
        find_files(tmp_path / "none")


def test_classes_in_another_order_keep_their_images_and_shares(tmp_path):
    items = [Item(tmp_path / "1", 0, "a", (0.6, 0.3, 0.1)), Item(tmp_path / "2", -1, "", (0.5, 0.25, 0.25))]
    ordered = order_classes(Splits("x", tmp_path, ["a", "b", "c"], items, [], items), ["c", "a"])
    assert [(item.label, item.classname) for item in ordered.train] == [(1, "a"), (-1, "")]
    assert torch.tensor(ordered.test[0].distribution).tolist() == pytest.approx([1 / 7, 6 / 7])


def test_files_are_seen_as_in_evaluation(place):
    weak, _ = build_views(48, [], (0.5, 0.4, 0.3), (0.3, 0.2, 0.1))
    files = sorted((place / "photos" / "train").iterdir())
    (seen,) = ViewLoader(ImageFiles([*files, place / "absent.png"], weak, Decoding()), batch_size=len(files) + 1)
    views = build_loader([Item(file, 0, "") for file in files], {"weak": weak}, 5, 0).load(range(len(files)))["weak"]
    assert torch.equal(seen["weak"][:-1], views) and len(views) == len(files) > 5
    assert seen["error"][:-1] == [""] * len(files) and "absent.png" in seen["error"][-1]
