"""The real program on the demo's drawings with the demo's CLIP: every mode, from the command line to its record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import LaFTer
from trainers.program import exit_with_message
from utils.demo.faces import draw_dataset
from utils.errors import InputError
from utils.runs.record import read_rows

QUICK = ("--epochs", "2", "--batch_size", "6", "--lr", "0.001", "PROMPT_NUM", "8", "MULTI_LAYER_PROMPT.NUM", "2")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with a small demo in it."""
    folder = tmp_path_factory.mktemp("data")
    draw_dataset(folder / "demo", train_per_class=3, test_per_class=2)
    return folder


@pytest.fixture
def run(root, tmp_path):
    """Run the program on the small demo; the run's folder and what `main` returned."""

    def start(*arguments: str, pictures: bool = False) -> tuple[Path, dict]:
        before = set(tmp_path.rglob("final.json"))
        untuned = {"--zero_shot", "--no-train", "--skip_finetune"} & set(arguments)
        quick = () if untuned else QUICK  # its flags would be refused
        places = ["--root", str(root), "--output-dir", str(tmp_path / "out"), "TEXT.CACHE_DIR", str(tmp_path / "cache")]
        result = LaFTer.main(["--dataset-config-file", "demo", *quick, *arguments, *places,
                              "DATASET.VAL_FRACTION", "0.34", "PICTURES", str(pictures),
                              "TEXT.EPOCHS", "20", "DATALOADER.NUM_WORKERS", "0"])
        (final,) = set(tmp_path.rglob("final.json")) - before
        return final.parent, result

    return start


def numbers(folder: Path) -> tuple[dict, list[dict]]:
    """final.json and metrics.jsonl without what differs between equal runs."""
    final = json.loads((folder / "final.json").read_text(encoding="utf-8"))
    rows = read_rows(folder / "metrics.jsonl")
    return ({key: value for key, value in final.items() if key not in ("seconds", "environment")},
            [{key: value for key, value in row.items() if key != "train_seconds"} for row in rows])


MODES = {
    "label-free": (),
    "frozen teacher": ("PSEUDO_LABEL.TEACHER", "frozen"),
    "moving teacher": ("PSEUDO_LABEL.TEACHER", "ema"),
    "aligned stages": ("MULTI_LAYER_PROMPT.ALIGN", "linear"),
    "templates": ("--txt_cls", "templates_only"),
    "names": ("--txt_cls", "cls_only"),
    "zero-shot labels": ("--txt_cls", "zero_shot"),
    "supervised": ("--enable_augmentation", "TRAIN.SUPERVISION", "labels"),
    "two crops": ("--use_two_crops", "TRAIN.SUPERVISION", "labels"),
    "no text phase": ("TRAIN.SUPERVISION", "labels", "TEXT.SKIP", "True"),
    "dual task": ("--dual_task", "TRAIN.SUPERVISION", "labels"),
    "dual task, generated": ("--dual_task", "TRAIN.SUPERVISION", "labels",
                             "DATASET.DISTRIBUTION_STRATEGY", "strategy1"),
    "dual task, label-free": ("--dual_task",),
    "direct dual task": ("--direct_dualtask", "--scheduler", "none", "--lambda_weight", "0.5"),
    "accumulated": ("--acc-batches", "2", "--scheduler", "coslr"),
}


@pytest.mark.parametrize("trainer", ["LaFTer", "MultiLayerLaFTer"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_ends_with_its_record(run, trainer, mode):
    folder, result = run("--trainer", trainer, *MODES[mode])
    assert folder.parts[-4:-1] == ("demo", trainer, "demo_clip") and folder.name.endswith("seed1")
    assert {"config.yaml", "split.json", "metrics.jsonl", "log.txt", "final.json"} <= {p.name for p in folder.iterdir()}
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert json.loads((folder / "final.json").read_text(encoding="utf-8")) == result
    test = result["splits"]["test"]
    baselines = {"no text phase": 0, "direct dual task": 0, "zero-shot labels": 1}.get(mode, 2)
    assert set(test) == {*("zero_shot", "text_classifier")[:baselines], "untrained", "last", "best"}
    assert test["last"] == rows[-1]["test"]
    losses = {"consistency", "dual_task" if "dual" in mode else "cross_entropy"}
    if trainer == "LaFTer":
        losses.discard("consistency")
    parts = {name for row in rows[1:] for name in row if name in ("consistency", "dual_task", "cross_entropy")}
    assert parts == losses
    assert ("pseudo_label_accuracy" in rows[1]) == (result["supervision"] == "pseudo")


def test_all_stages_join_and_their_consistency_is_trained_and_recorded(run):
    folder, _ = run("--trainer", "MultiLayerLaFTer", "--epochs", "6", "MULTI_LAYER_PROMPT.PROGRESSIVE_TRAINING", "True",
                    pictures=True)
    assert (folder / "predictions.png").read_bytes().startswith(b"\x89PNG")
    rows = read_rows(folder / "metrics.jsonl")[1:]
    assert [row["active_stages"] for row in rows] == [[3], [3], [2, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert all(("consistency" in row) == (len(row["active_stages"]) > 1) for row in rows)
    for row in rows:
        assert row["loss"] == pytest.approx(row["cross_entropy"] + row.get("consistency", 0), abs=1e-5)
    assert rows[-1]["sigma"] != rows[0]["sigma"] and rows[-1]["stage_weights"] != rows[0]["stage_weights"]
    for row in rows:  # the monitors: only what is active has gradients
        trained = [norm is not None and norm > 0 for norm in row["gradient_norms"]["prompts"]]
        assert trained == [stage in row["active_stages"] for stage in range(4)]
        assert all(length > 0 for length in row["prompt_norms"]) and len(row["prompt_norms"]) == 4
        lengths = {key: len(row["test"][key]) for key in ("stage_top1", "stage_agreement", "stage_cka")}
        assert lengths == {"stage_top1": 4, "stage_agreement": 3, "stage_cka": 4}


@pytest.mark.parametrize("trainer", ["LaFTer", "MultiLayerLaFTer"])
def test_the_dumped_configuration_repeats_every_number(run, trainer, tmp_path):
    first, _ = run("--trainer", trainer, "--seed", "3", "MULTI_LAYER_PROMPT.MODE", "replace")
    LaFTer.main(["--config-file", str(first / "config.yaml"), "--exp-name", "again"])
    second = first.parent / "again"
    assert numbers(second) == numbers(first)
    state, again = (torch.load(folder / "checkpoints" / "best.pt", weights_only=True) for folder in (first, second))
    assert all(torch.equal(state["model"][name], again["model"][name]) for name in state["model"])


def test_a_folder_with_other_settings_is_not_taken_for_this_run(run):
    folder, _ = run("--exp-name", "mine")
    with pytest.raises(InputError, match="OPTIM.LR is 0.001 there and 0.002 here.*--exp-name"):
        run("--exp-name", "mine", "--lr", "0.002")
    assert run("--zero_shot")[0].name == "zero_shot-seed1" and run("--skip_finetune")[0].name == "text-seed1"


def test_another_seed_gives_other_numbers(run):
    first, second = (numbers(run("--seed", seed)[0])[1] for seed in ("1", "2"))
    assert first[1]["loss"] != second[1]["loss"]


@pytest.mark.parametrize("flag, methods", [
    ("--zero_shot", {"zero_shot"}), ("--no-train", {"zero_shot"}),
    ("--skip_finetune", {"zero_shot", "text_classifier"})])
def test_runs_that_tune_nothing(run, flag, methods):
    folder, result = run(flag)
    assert set(result["splits"]["test"]) == methods and not (folder / "checkpoints").exists()
    assert len(list((folder.parents[3] / "cache").glob("images_*.npy"))) == 2  # val and test: no training image is read


def test_evaluation_repeats_the_runs_figures(run):
    folder, result = run("--trainer", "MultiLayerLaFTer", "TRAIN.KEEP", "0")
    for epoch in ("2", "1"):
        again = LaFTer.main(["--eval-only", "--model-dir", str(folder), "--load-epoch", epoch])
        row = read_rows(folder / "metrics.jsonl")[int(epoch)]
        assert {split: again["splits"][split]["tuned"] for split in again["splits"]} == {
            split: row[split] for split in ("val", "test")}
        assert (folder / f"eval_demo_epoch{epoch}.json").is_file()
    with pytest.raises(FileNotFoundError, match="epoch 7.*kept epochs: 1, 2"):
        LaFTer.main(["--eval-only", "--model-dir", str(folder), "--load-epoch", "7"])


def test_an_evaluation_keeps_to_what_was_held_out(run):
    """Another seed on the command line would draw another split, with training images in it."""
    folder, result = run()
    again = LaFTer.main(["--eval-only", "--model-dir", str(folder), "--seed", "9"])
    assert again["splits"]["test"]["tuned"] == result["splits"]["test"]["last"]
    assert again["splits"]["val"]["tuned"] == result["splits"]["val"]["last"]


def test_an_evaluation_with_other_labels_than_the_runs_is_refused(run):
    folder, _ = run("TRAIN.SUPERVISION", "labels", "TEXT.SKIP", "True", "--epochs", "1")
    for option in (("DATASET.SUBSAMPLE_CLASSES", "base"), ("DATASET.CLASSNAMES", "[a, b]")):
        with pytest.raises(InputError, match=f"{option[0]} is .* in .*scored on its own splits of demo"):
            LaFTer.main(["--eval-only", "--model-dir", str(folder), *option])


def test_a_run_that_failed_at_once_does_not_stand_in_the_way(run):
    with pytest.raises(ValueError, match="65"):
        run("INPUT.SIZE", "65")
    folder, _ = run("INPUT.SIZE", "64")
    assert "6 classes" in (folder / "log.txt").read_text(encoding="utf-8")  # what the reader said is there too


def test_another_runs_checkpoint_needs_its_settings(run):
    folder, _ = run("--exp-name", "first")
    with pytest.raises(InputError, match="OPTIM.LR is 0.001 there and 0.002 here"):
        run("--exp-name", "second", "--lr", "0.002", "--resume", str(folder))


@pytest.mark.parametrize("epoch", ["1", "2"])
def test_a_run_that_goes_on_from_anothers_checkpoint_has_its_whole_record(run, epoch):
    first, _ = run("--exp-name", "first", "--epochs", "3", "--keep", "0")
    second, result = run("--exp-name", "second", "--epochs", "3", "--keep", "0",
                         "--resume", str(first / "checkpoints" / f"epoch000{epoch}.pt"))
    assert numbers(second) == numbers(first)
    best = str(result["best_epoch"])
    scored = LaFTer.main(["--eval-only", "--model-dir", str(second), "--load-epoch", best])
    assert scored["splits"]["val"]["tuned"] == result["splits"]["val"]["best"]


def test_a_finished_run_is_not_trained_again(run, caplog):
    folder, result = run()
    changed = (folder / "metrics.jsonl").stat().st_mtime_ns
    again = LaFTer.main(["--config-file", str(folder / "config.yaml")])
    assert again == result and (folder / "metrics.jsonl").stat().st_mtime_ns == changed


@pytest.mark.parametrize("trainer", ["LaFTer", "MultiLayerLaFTer"])
def test_an_interrupted_run_goes_on_to_the_same_numbers(run, trainer, monkeypatch, root):
    whole, _ = run("--trainer", trainer, "--exp-name", "whole", "--epochs", "4")
    scored = []

    def stop_after_two_epochs(model, loaders, references, original=LaFTer.fit.__globals__["evaluate"]):
        scored.append(1)
        if len(scored) > 3:
            raise KeyboardInterrupt
        return original(model, loaders, references)

    monkeypatch.setitem(LaFTer.fit.__globals__, "evaluate", stop_after_two_epochs)
    with pytest.raises(KeyboardInterrupt):
        run("--trainer", trainer, "--exp-name", "cut", "--epochs", "4")
    monkeypatch.undo()
    cut = whole.parent / "cut"
    assert [row["epoch"] for row in read_rows(cut / "metrics.jsonl")] == [0, 1, 2] and not (cut / "final.json").exists()
    with pytest.raises(InputError, match="--resume auto"):
        run("--trainer", trainer, "--exp-name", "cut", "--epochs", "4")
    run("--trainer", trainer, "--exp-name", "cut", "--epochs", "4", "--resume", "auto")
    assert numbers(cut) == numbers(whole)


@pytest.mark.parametrize("arguments, words", [
    (["--dataset-config-file", "demo", "--epocs", "3"], ["--epocs"]),
    (["--dataset-config-file", "demo", "OPTIM.LRR", "1"], ["OPTIM.LRR", "OPTIM.LR"]),
    (["--dataset-config-file", "nothing"], ["nothing", "emotion6"]),
    (["--dataset-config-file", "emotion6", "--root", "nowhere"], ["nowhere", "--root"]),
    (["--dataset-config-file", "demo", "--head", "mlp"], ["--head", "--txt_cls"]),
    (["--dataset-config-file", "demo", "--backbone", "ViT-B/64"], ["ViT-B/64", "ViT-B/32"]),
    (["--dataset-config-file", "demo", "--backbone", "weights/none.pt"], ["none.pt"]),
    (["--dataset-config-file", "demo", "--device", "toaster"], ["toaster", "cpu"]),
    (["--dataset-config-file", "demo", "MULTI_LAYER_PROMPT.STAGES", "[[0,1],[3]]"], ["stages", "12 layers"]),
    (["--dataset-config-file", "demo", "INPUT.SIZE", "65"], ["65", "8"]),
    (["--dataset-config-file", "demo", "--dual_task", "--lambda_weight", "1.5"], ["LAMBDA", "1.5"]),
    (["--direct_dualtask", "--dataset-config-file", "demo", "TRAIN.SUPERVISION", "pseudo"], ["TRAIN.SUPERVISION"]),
])
def test_bad_input_is_answered_by_one_line(root, tmp_path, arguments, words):
    rooted = [] if "--root" in arguments else ["--root", str(root)]
    options = ["--output-dir", str(tmp_path), "TEXT.CACHE_DIR", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        exit_with_message(lambda: LaFTer.main([*arguments, *rooted, *options]))
    message = caught.value.code
    assert message.startswith("error: ") and "\n" not in message and all(word in message for word in words), message


def test_a_broken_image_in_a_loaders_process_is_named_on_the_last_line(root, tmp_path, launch):
    """As a user sees it: exit status 1, one line, no traceback."""
    shutil.copytree(root / "demo", tmp_path / "demo")
    victim = sorted((tmp_path / "demo" / "images" / "train").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:60])
    broken = launch("--dataset-config-file", "demo", "--root", str(tmp_path), "--output-dir", str(tmp_path / "out"),
                    "--workers", "1", "--epochs", "1", "TEXT.SKIP", "True", "TRAIN.SUPERVISION", "labels",
                    "DATASET.VAL_FRACTION", "0")
    _, said = broken.communicate()
    message = said.strip().splitlines()[-1]
    assert broken.returncode == 1 and message.startswith("error: 1 image cannot be read: ") and victim.name in message
    assert "Traceback" not in said
