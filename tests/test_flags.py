"""Every flag of LaFTer and its forks changes the configuration as documented, or is refused with the reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import LaFTer
from utils.config import PROJECT, load_config
from utils.errors import InputError
from utils.flags import build_parser, parse_flags

NAMES = """--root --output-dir --resume --seed --print_freq --source-domains --target-domains --transforms --config-file
--dataset-config-file --trainer --backbone --head --eval-only --model-dir --load-epoch --no-train --exp-name
--scheduler --scheduler-epochs --scheduler-gamma --weight-decay --acc-batches --arch --gpt_prompts --text_prompts
--zero_shot --device --txt_cls --batch_size --workers --lr --epochs --txt_epochs --logfolder --skip_finetune
--dual_task --lambda_weight --direct_dualtask --multi_layer_prompt --enable_augmentation --use_two_crops
 --keep --max-grad-norm --predict --predict-out --calibrate --list"""
ALL = NAMES.split()

# flag: (what follows it on the command line, the keys that it sets)
SETS = {
    "--root": (["D:\\data"], {"DATASET.ROOT": "D:\\data"}),
    "--output-dir": (["runs"], {"OUTPUT_DIR": "runs"}),
    "--resume": (["auto"], {"RESUME": "auto"}),
    "--seed": (["7"], {"SEED": 7}),
    "--print_freq": (["3"], {"TRAIN.PRINT_FREQ": 3}),
    "--transforms": (["random_flip", "gaussian_blur"], {"INPUT.TRANSFORMS": ["random_flip", "gaussian_blur"]}),
    "--trainer": (["MultiLayerLaFTer"], {"TRAINER.NAME": "MultiLayerLaFTer"}),
    "--backbone": (["ViT-B/16"], {"MODEL.BACKBONE.NAME": "ViT-B/16"}),
    "--no-train": ([], {"TEXT.MODE": "zero_shot", "TRAIN.SKIP": True}),
    "--exp-name": (["trial"], {"EXP_NAME": "trial"}),
    "--scheduler": (["none"], {"OPTIM.LR_SCHEDULER": "none"}),
    "--scheduler-epochs": (["20", "40"], {"OPTIM.STEPSIZE": [20, 40]}),
    "--scheduler-gamma": (["0.5"], {"OPTIM.GAMMA": 0.5}),
    "--weight-decay": (["0.3"], {"OPTIM.WEIGHT_DECAY": 0.3}),
    "--acc-batches": (["4"], {"OPTIM.ACCUMULATE": 4}),
    "--arch": (["ViT-B/16"], {"MODEL.BACKBONE.NAME": "ViT-B/16"}),
    "--gpt_prompts": ([], {"TEXT.MODE": "lafter"}),
    "--text_prompts": ([], {"TEXT.MODE": "templates_only"}),
    "--zero_shot": ([], {"TEXT.MODE": "zero_shot", "TRAIN.SKIP": True}),
    "--device": (["cuda:1"], {"DEVICE": "cuda:1"}),
    "--txt_cls": (["cls_only"], {"TEXT.MODE": "cls_only"}),
    "--batch_size": (["8"], {"DATALOADER.TRAIN_X.BATCH_SIZE": 8}),
    "--workers": (["0"], {"DATALOADER.NUM_WORKERS": 0}),
    "--lr": (["1e-5"], {"OPTIM.LR": 1e-5}),
    "--epochs": (["3"], {"OPTIM.MAX_EPOCH": 3}),
    "--txt_epochs": (["11"], {"TEXT.EPOCHS": 11}),
    "--logfolder": (["logs"], {"LOG_DIR": "logs"}),
    "--skip_finetune": ([], {"TRAIN.SKIP": True}),
    "--keep": (["3"], {"TRAIN.KEEP": 3}),
    "--max-grad-norm": (["2.5"], {"OPTIM.MAX_GRAD_NORM": 2.5}),
    "--dual_task": ([], {"DUAL_TASK.ENABLED": True}),
    "--lambda_weight": (["0.25"], {"DUAL_TASK.LAMBDA": 0.25}),
    "--direct_dualtask": ([], {"DUAL_TASK.ENABLED": True, "TEXT.SKIP": True, "TRAIN.SUPERVISION": "labels"}),
    "--multi_layer_prompt": ([], {"TRAINER.NAME": "MultiLayerLaFTer"}),
    "--enable_augmentation": ([], {"TRAIN.AUGMENT": True}),
    "--use_two_crops": ([], {"TRAIN.AUGMENT": True, "TRAIN.TWO_CROPS": True}),
}
REFUSED = ("--source-domains", "--target-domains", "--head")
OTHERS = ("--config-file", "--dataset-config-file", "--eval-only", "--model-dir", "--load-epoch", "--predict",
          "--predict-out", "--calibrate", "--list")  # tests of their own


def refusal(*argv: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_flags(list(argv))
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def test_the_list_is_complete():
    assert sorted([*SETS, *REFUSED, *OTHERS]) == sorted(ALL)
    known = {option for action in build_parser()._actions for option in action.option_strings}
    assert known - {"-h", "--help"} == set(ALL)


@pytest.mark.parametrize("flag", SETS)
def test_the_flag_sets_its_keys_and_nothing_else(flag):
    given, expected = SETS[flag]
    flags = parse_flags([flag, *given])
    assert flags.values == expected and flags.options == []
    base = ["TRAIN.SUPERVISION", "labels"] if "TRAIN.AUGMENT" in expected else []
    if "OPTIM.STEPSIZE" in expected or "OPTIM.GAMMA" in expected:
        base += ["OPTIM.LR_SCHEDULER", "multistep"]
    if "DUAL_TASK.LAMBDA" in expected:
        base += ["DUAL_TASK.ENABLED", "True"]
    if base[:1] != ["TRAIN.SUPERVISION"] and base:  # without what it belongs to, the flag would do nothing
        with pytest.raises(InputError, match="does nothing without"):
            load_config("demo", flags=flags.values)
    if "TRAINER.NAME" in expected:  # its own default file sets more
        base += ["TRAINER.NAME", expected["TRAINER.NAME"]]
    before = flatten(load_config("demo", options=base))
    after = flatten(load_config("demo", flags=flags.values, options=base))
    assert {key: after[key] for key in expected} == expected
    assert {key for key in after if after[key] != before[key]} <= set(expected)


def flatten(node, prefix: str = "") -> dict[str, object]:
    values = {}
    for key, value in node.items():
        values |= flatten(value, f"{prefix}{key}.") if hasattr(value, "items") else {prefix + key: value}
    return values


def test_no_flag_sets_nothing():
    flags = parse_flags([])
    assert flags == ({}, [], "", "", False, "", None, "", "", "", False)


def test_a_flag_that_is_not_given_leaves_the_yaml_alone(tmp_path):
    path = tmp_path / "set.yaml"
    path.write_text("DATASET: {NAME: demo}\nOPTIM: {LR: 0.25, MAX_EPOCH: 4}\nTRAIN: {KEEP: 3}\n", encoding="utf-8")
    flags = parse_flags(["--dataset-config-file", str(path), "--epochs", "6"])
    cfg = LaFTer.configure(flags)
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.TRAIN.KEEP) == (0.25, 6, 3)


@pytest.mark.parametrize("argv, words", [
    (["--zero_shot", "--lr", "1"], "OPTIM.LR does nothing without the image phase"),
    (["--zero_shot", "--scheduler", "none"], "OPTIM.LR_SCHEDULER does nothing without a phase that trains"),
    (["--skip_finetune", "--dual_task"], "DUAL_TASK.ENABLED does nothing without the image phase"),
    (["--zero_shot", "--txt_epochs", "7"], "TEXT.EPOCHS does nothing without a text classifier"),
    (["--direct_dualtask", "--txt_cls", "cls_only"], "TEXT.MODE does nothing without the text phase"),
    (["--direct_dualtask", "--transforms", "random_flip"], "INPUT.TRANSFORMS does nothing without a strong view"),
])
def test_a_flag_that_would_do_nothing_is_refused(argv, words):
    flags = parse_flags(argv)
    with pytest.raises(InputError, match=words):
        load_config("demo", flags=flags.values)


def test_flags_that_serve_the_text_phase_too_are_taken_without_an_image_phase():
    flags = parse_flags(["--skip_finetune", "--scheduler", "none", "--weight-decay", "0"])
    cfg = load_config("demo", flags=flags.values)
    assert (cfg.OPTIM.LR_SCHEDULER, cfg.OPTIM.WEIGHT_DECAY) == ("none", 0.0)


def test_the_two_config_files_arrive(tmp_path):
    path = tmp_path / "trainer.yaml"
    path.write_text("PROMPT_NUM: 5\n", encoding="utf-8")
    flags = parse_flags(["--dataset-config-file", "demo", "--config-file", str(path)])
    assert (flags.dataset_config_file, flags.config_file) == ("demo", str(path))
    cfg = LaFTer.configure(flags)
    assert (cfg.DATASET.NAME, cfg.PROMPT_NUM) == ("demo", 5)


@pytest.mark.parametrize("flag", REFUSED)
@pytest.mark.parametrize("values", [[], ["x"], ["x", "y"]])
def test_what_is_not_served_is_refused_with_the_reason(flag, values):
    message = refusal(flag, *values)
    assert flag in message and len(message.split(":", 1)[1]) > 20


@pytest.mark.parametrize("argv, words", [
    (["--backbone", "ViT-B/32", "--arch", "ViT-B/16"], ("--arch", "ViT-B/16", "ViT-B/32")),
    (["--trainer", "LaFTer", "--multi_layer_prompt"], ("--multi_layer_prompt", "LaFTer")),
    (["--txt_cls", "cls_only", "--gpt_prompts"], ("--gpt_prompts", "cls_only")),
    (["--gpt_prompts", "--text_prompts"], ("--text_prompts", "lafter")),
    (["--zero_shot", "--txt_cls", "lafter"], ("--zero_shot", "lafter")),
    (["--eval-only"], ("--model-dir",)),
    (["--model-dir", "runs/x"], ("--eval-only",)),
    (["--load-epoch", "3"], ("--eval-only",)),
    (["--predict", "photos"], ("--model-dir",)),
    (["--predict", "photos", "--eval-only", "--model-dir", "runs/x"], ("--eval-only", "--predict")),
    (["--predict-out", "there"], ("--predict",)),
    (["--calibrate", "std"], ("--predict PATH",)),
    (["--predict", "x.jpg", "--model-dir", "run", "--calibrate", "none"], ("mean", "std", "rest", "balance")),
    (["--eval-only", "--model-dir", "runs/x", "--lr", "1"], ("--eval-only", "OPTIM.LR")),
    (["--predict", "photos", "--model-dir", "runs/x", "--gpt_prompts"], ("--predict", "TEXT.MODE")),
    (["--colour", "red"], ("--colour",)),
    (["--epoch", "3"], ("--epoch",)),  # no guessing from a beginning
    (["--trainer", "CoOp"], ("CoOp", "LaFTer", "MultiLayerLaFTer")),
    (["--txt_cls", "gpt"], ("gpt", "lafter", "templates_only", "cls_only", "zero_shot")),
    (["--epochs", "many"], ("--epochs", "many", "int")),
    (["--lr", "fast"], ("--lr", "fast", "float")),
    (["--scheduler-epochs", "10", "x"], ("--scheduler-epochs", "x")),
    (["--seed"], ("--seed",)),
])
def test_contradictions_and_mistakes_are_refused(argv, words):
    message = refusal(*argv)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("argv, near", [
    (["--batch-size", "8"], "--batch_size"), (["--txt-cls=lafter"], "--txt_cls"), (["--epoch", "3"], "--epochs"),
    (["--Root", "x"], "--root"), (["OPTIM.LR", "1", "-root", "x"], "--root"), (["--dataset-config", "x"], "--dataset"),
])
def test_an_unknown_flag_gets_its_near_ones(argv, near):
    message = refusal(*argv)
    name = next(word for word in argv if word.startswith("-")).split("=")[0]
    assert message.startswith(f"unknown flag {name}; did you mean --") and near in message and len(message) < 150


def test_what_is_far_from_all_flags_gets_no_guess():
    assert "did you mean" not in refusal("--colour", "red")


def test_home_is_expanded_in_the_flags_that_are_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    flags = parse_flags(["--predict", "~/x.jpg", "--predict-out", "~/out", "--model-dir", "~/run"])
    assert (flags.predict, flags.predict_out, flags.model_dir) == ("/home/me/x.jpg", "/home/me/out", "/home/me/run")


@pytest.mark.parametrize("argv", [
    ["--backbone", "ViT-B/16", "--arch", "ViT-B/16"], ["--trainer", "MultiLayerLaFTer", "--multi_layer_prompt"],
    ["--dual_task", "--direct_dualtask"], ["--zero_shot", "--no-train"], ["--txt_cls", "lafter", "--gpt_prompts"],
])
def test_flags_that_agree_may_stand_together(argv):
    assert parse_flags(argv).values


OPTIONS = ["OPTIM.LR", "0.1", "DATASET.NUM_SHOTS", "-1"]


@pytest.mark.parametrize("argv", [
    ["--epochs", "3", "--dual_task", *OPTIONS], [*OPTIONS, "--epochs", "3", "--dual_task"],
    [*OPTIONS[:2], "--epochs", "3", *OPTIONS[2:], "--dual_task"], ["--dual_task", *OPTIONS, "--epochs", "3"],
    ["--dual_task", "--epochs", "3", "--", *OPTIONS],
])
def test_options_stand_before_between_or_after_flags(argv):
    flags = parse_flags(argv)
    assert flags.options == OPTIONS
    assert flags.values == {"OPTIM.MAX_EPOCH": 3, "DUAL_TASK.ENABLED": True}


def test_an_option_comes_after_the_flag_of_the_same_key():
    flags = parse_flags(["OPTIM.LR", "0.5", "--lr", "0.1"])
    assert load_config("demo", flags=flags.values, options=flags.options).OPTIM.LR == 0.5


def test_the_help_names_every_served_flag():
    text = build_parser().format_help()
    assert all(flag in text for flag in ALL if flag not in REFUSED)


def test_main_refuses_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv in (["--head", "x"], ["--nonsense"], ["--dataset-config-file", "demo", "OPTIM.LRR", "1"]):
        with pytest.raises(InputError):
            LaFTer.main(argv)
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_starts_from_the_runs_own_configuration(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(load_config("demo", flags={"OPTIM.LR": 0.125}).dump(), encoding="utf-8")
    argv = ["--eval-only", "--model-dir", str(run), "--load-epoch", "2"]
    flags = parse_flags(argv)
    assert (flags.eval_only, flags.model_dir, flags.load_epoch) == (True, str(run), 2)
    cfg = LaFTer.configure(flags)
    assert (cfg.OPTIM.LR, cfg.DATASET.NAME) == (0.125, "demo")
    cfg = LaFTer.configure(parse_flags([*argv, "--root", "elsewhere"]))
    assert (cfg.OPTIM.LR, cfg.DATASET.ROOT) == (0.125, "elsewhere")


@pytest.mark.parametrize("name", ["folder", str(Path("configs") / "datasets" / "folder.yaml")])
def test_an_evaluation_takes_another_data_set_by_any_name(tmp_path, name):
    (tmp_path / "config.yaml").write_text(load_config("demo", flags={"OPTIM.LR": 0.125}).dump(), encoding="utf-8")
    cfg = LaFTer.configure(parse_flags(["--eval-only", "--model-dir", str(tmp_path), "--dataset-config-file", name]))
    assert (cfg.OPTIM.LR, cfg.DATASET.NAME) == (0.125, "folder")


def test_help_imports_only_what_it_needs():
    """torchvision alone takes a second, and matplotlib another."""
    code = "import sys, LaFTer; print(*{'torchvision', 'matplotlib', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
