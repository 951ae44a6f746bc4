"""The command line: LaFTer's and its forks' flags; each sets configuration keys or is refused with the reason."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from .config import CHOICES, IMAGE_PHASE
from .errors import InputError

CALIBRATIONS = tuple(mode for mode in CHOICES["PSEUDO_LABEL.CALIBRATION"] if mode not in ("auto", "none"))
REFUSED = {
    "--source-domains": "the data sets here have no domains; choose the data with --dataset-config-file",
    "--target-domains": "the data sets here have no domains; choose the data with --dataset-config-file",
    "--head": "the head is always the text-trained linear classifier; choose its texts with --txt_cls",
}
# flags that take a value: (key, type, help)
VALUES = {
    "--root": ("DATASET.ROOT", str, "folder that holds the data sets"),
    "--output-dir": ("OUTPUT_DIR", str, "folder for the runs"),
    "--logfolder": ("LOG_DIR", str, "folder for log.txt instead of the run's"),
    "--exp-name": ("EXP_NAME", str, "name of the run's folder instead of its mode and seed"),
    "--resume": ("RESUME", str, "'auto' (this run's last checkpoint, if any), a run folder or a checkpoint"),
    "--seed": ("SEED", int, "seed of the split, the prompts, the order and the augmentations"),
    "--device": ("DEVICE", str, "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps"),
    "--backbone": ("MODEL.BACKBONE.NAME", str, "ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px, or a checkpoint's path"),
    "--arch": ("MODEL.BACKBONE.NAME", str, "the same as --backbone"),
    "--txt_cls": ("TEXT.MODE", CHOICES["TEXT.MODE"], "texts that the classifier learns from"),
    "--txt_epochs": ("TEXT.EPOCHS", int, "steps of the text phase"),
    "--batch_size": ("DATALOADER.TRAIN_X.BATCH_SIZE", int, "training batch"),
    "--workers": ("DATALOADER.NUM_WORKERS", int, "loader processes; 0 loads in the main one"),
    "--lr": ("OPTIM.LR", float, "learning rate of the image phase alone; the text phase has TEXT.LR"),
    "--epochs": ("OPTIM.MAX_EPOCH", int, "epochs of the image phase"),
    "--weight-decay": ("OPTIM.WEIGHT_DECAY", float, "weight decay of matrices (OPTIM.DECAY_LAYERNORM: LayerNorms too)"),
    "--acc-batches": ("OPTIM.ACCUMULATE", int, "batches whose gradients make one step"),
    "--max-grad-norm": ("OPTIM.MAX_GRAD_NORM", float, "scale the gradients of a step down to this norm; 0: never"),
    "--keep": ("TRAIN.KEEP", int, "checkpoints of how many last epochs to keep, beside the best one's; 0: all"),
    "--scheduler": ("OPTIM.LR_SCHEDULER", str, "cosine, multistep, warmup: constant after a warm-up; coslr: decays; "
                                               "anything else, such as none: constant"),
    "--scheduler-gamma": ("OPTIM.GAMMA", float, "factor at each of --scheduler-epochs (multistep)"),
    "--print_freq": ("TRAIN.PRINT_FREQ", int, "batches between updates of the shown loss"),
    "--lambda_weight": ("DUAL_TASK.LAMBDA", float, "weight of the distribution in the dual task"),
}
LISTS = {
    "--scheduler-epochs": ("OPTIM.STEPSIZE", int, "epochs at which multistep lowers the rate"),
    "--transforms": ("INPUT.TRANSFORMS", str, "parts of the strong view, in order"),
}
# flags that stand alone: what they set, help
SWITCHES = {
    "--zero_shot": ({"TEXT.MODE": "zero_shot", "TRAIN.SKIP": True}, "score CLIP's zero-shot classifier, train nothing"),
    "--no-train": ({"TEXT.MODE": "zero_shot", "TRAIN.SKIP": True}, "the same: train nothing"),
    "--gpt_prompts": ({"TEXT.MODE": "lafter"}, "the same as --txt_cls lafter"),
    "--text_prompts": ({"TEXT.MODE": "templates_only"}, "the same as --txt_cls templates_only"),
    "--skip_finetune": ({"TRAIN.SKIP": True}, "stop after the text classifier"),
    "--multi_layer_prompt": ({"TRAINER.NAME": "MultiLayerLaFTer"}, "the same as --trainer MultiLayerLaFTer"),
    "--dual_task": ({"DUAL_TASK.ENABLED": True}, "learn the emotion distribution with the class"),
    "--direct_dualtask": ({"DUAL_TASK.ENABLED": True, "TEXT.SKIP": True, "TRAIN.SUPERVISION": "labels"},
                          "dual task on true labels without the text phase"),
    "--enable_augmentation": ({"TRAIN.AUGMENT": True}, "supervised: train on the strong view"),
    "--use_two_crops": ({"TRAIN.AUGMENT": True, "TRAIN.TWO_CROPS": True}, "supervised: train on two strong views"),
}


class Flags(NamedTuple):
    """A parsed command line: `values` maps configuration keys to what the given flags set."""

    values: dict[str, object]
    options: list[str]
    dataset_config_file: str
    config_file: str
    eval_only: bool
    model_dir: str
    load_epoch: int | None
    predict: str
    predict_out: str
    calibrate: str
    list_datasets: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise InputError(f"{message} (see python LaFTer.py --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser; a flag that is not given leaves no trace."""
    parser = _Parser(prog="LaFTer.py", argument_default=argparse.SUPPRESS, allow_abbrev=False,
                     description="Label-free tuning of CLIP with staged prompts. Trailing KEY VALUE pairs set any "
                                 "configuration key.")
    parser.add_argument("--dataset-config-file", default="",
                        help="YAML of the data set, or its name in configs/datasets")
    parser.add_argument("--config-file", default="", help="YAML above the trainer's own in configs/trainers: a run's "
                        "config.yaml repeats that run, configs/trainers/LaFTer/published.yaml has the paper's settings")
    parser.add_argument("--trainer", choices=CHOICES["TRAINER.NAME"], help="the method")
    parser.add_argument("--eval-only", action="store_true", default=False, help="score the run in --model-dir")
    parser.add_argument("--model-dir", default="", help="a run's folder, for --eval-only and --predict")
    parser.add_argument("--load-epoch", type=int, default=None, help="which of its epochs (default: the last)")
    parser.add_argument("--predict", default="", metavar="PATH",
                        help="an image, a folder of them or a .txt list: the --model-dir run's predictions of them")
    parser.add_argument("--predict-out", default="", metavar="FOLDER",
                        help="folder for predictions.csv, .jsonl and .html (default: the run's)")
    parser.add_argument("--calibrate", default="", choices=CALIBRATIONS,
                        help="correct --predict's classes by these images' own statistics, at least 100 images; "
                             "rest suits unequal classes too; balance: equal ones, or as PSEUDO_LABEL.PRIOR says")
    parser.add_argument("--list", dest="list_datasets", action="store_true", default=False,
                        help="show the known data sets, which are under --root, and where to get the others")
    for flag, (key, kind, text) in VALUES.items():
        choices = kind if isinstance(kind, tuple) else None
        parser.add_argument(flag, type=str if choices else kind, choices=choices, help=f"{text} ({key})")
    for flag, (key, kind, text) in LISTS.items():
        parser.add_argument(flag, type=kind, nargs="+", help=f"{text} ({key})")
    for flag, (_, text) in SWITCHES.items():
        parser.add_argument(flag, action="store_true", help=text)
    for flag in REFUSED:
        parser.add_argument(flag, nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*", metavar="KEY VALUE", help="any configuration keys")
    return parser


def parse_flags(argv: list[str] | None = None) -> Flags:
    """Parse a command line. Raises InputError for an unknown, a refused or a contradicting flag."""
    argv, parser = sys.argv[1:] if argv is None else argv, build_parser()
    _check_names(argv, [name for action in parser._actions for name in action.option_strings])
    given = vars(parser.parse_intermixed_args(argv))
    values: dict[str, object] = {}

    def put(flag: str, settings: dict[str, object]) -> None:
        for key, value in settings.items():
            if values.get(key, value) != value:
                raise InputError(f"{flag} sets {key} to {value!r}, but another flag set it to {values[key]!r}")
            values[key] = value

    for flag, reason in REFUSED.items():
        if _name(flag) in given:
            raise InputError(f"{flag} is not served: {reason}")
    if "trainer" in given:
        put("--trainer", {"TRAINER.NAME": given["trainer"]})
    for flag, (key, *_) in {**VALUES, **LISTS}.items():
        if _name(flag) in given:
            put(flag, {key: given[_name(flag)]})
    for flag, (settings, _) in SWITCHES.items():
        if _name(flag) in given:
            put(flag, settings)
    if given["calibrate"]:  # the prior of the images that trained is not these images'
        put("--calibrate", {"PSEUDO_LABEL.CALIBRATION": given["calibrate"], "PSEUDO_LABEL.PRIOR": []})
    for name in ("model_dir", "predict", "predict_out"):
        given[name] = os.path.expanduser(given[name])
    flags = Flags(values, given.get("options", []), *(given[name] for name in Flags._fields[2:]))
    if flags.eval_only and flags.predict:
        raise InputError("--eval-only scores labelled data, --predict tells of any images: give one of them")
    if (flags.eval_only or flags.predict) and not flags.model_dir:
        raise InputError(f"{'--eval-only' if flags.eval_only else '--predict'} needs --model-dir RUN")
    if not (flags.eval_only or flags.predict) and (flags.model_dir or flags.load_epoch is not None):
        raise InputError("--model-dir and --load-epoch need --eval-only or --predict")
    useless = [key for key in (*IMAGE_PHASE, "TEXT.MODE", "TEXT.EPOCHS") if key in values]
    if (flags.eval_only or flags.predict) and useless:
        raise InputError(f"--eval-only and --predict train nothing: leave out the flag that sets {useless[0]}")
    for name in ("predict_out", "calibrate"):
        if getattr(flags, name) and not flags.predict:
            raise InputError(f"--{name.replace('_', '-')} needs --predict PATH")
    return flags


def _check_names(argv: Sequence[str], known: Sequence[str]) -> None:
    """InputError for a flag that is not known, with the near ones."""
    for word in argv[:argv.index("--")] if "--" in argv else argv:
        name = word.split("=")[0]
        if not re.match(r"--?[A-Za-z]", word) or " " in word or name in known:
            continue  # a value, such as -1 or "- {}"
        names = {flag.lstrip("-"): flag for flag in known}
        near = [names[match] for match in difflib.get_close_matches(name.lstrip("-").lower(), names, n=2)]
        raise InputError(f"unknown flag {name}" + (f"; did you mean {' or '.join(near)}?" if near else "")
                         + " (see python LaFTer.py --help)")


def _name(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")
