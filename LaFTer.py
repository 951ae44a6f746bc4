"""LaFTer with staged prompts: flags → config → data → model → objective → training → results.

    python LaFTer.py --dataset-config-file demo --trainer MultiLayerLaFTer
"""

from __future__ import annotations

import json
import logging
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

import clip
from clip.model import CLIP
from trainers.build import build_student, build_training, count_parameters
from trainers.engine import evaluate, fit, load_tuned, predict
from trainers.objective import Objective
from trainers.plain import plain_features
from trainers.speed import prepare_blocks
from trainers.text_classifier import train_text_classifier
from trainers.texts import text_features
from utils.checkpoint import find_checkpoint, load_checkpoint
from utils.config import image_size, load_config, resolve_path
from utils.data import Splits, ViewLoader, build_loader, load_splits
from utils.datasets import load_dataset
from utils.errors import InputError, TrainingError
from utils.flags import Flags, parse_flags
from utils.image_cache import ImageCache
from utils.logs import collect_logs, start_logging
from utils.metrics import score
from utils.pictures import choose_items, draw_predictions
from utils.record import Run, run_folder, write_text
from utils.results import format_summary
from utils.transforms import build_views
from utils.utils import Tunable

log = logging.getLogger("LaFTer")


def main(argv: list[str] | None = None) -> dict:
    """Run what the command line asks for; returns the content of final.json, or of an evaluation's file."""
    flags = parse_flags(argv)
    cfg = configure(flags)
    with collect_logs() as messages:  # the run's folder, where they belong, is named after the data set
        splits = load_dataset(cfg)
    if flags.eval_only:
        return evaluate_run(cfg, splits, flags)
    run = Run(run_folder(cfg, splits.name), resume=bool(cfg.RESUME))
    run.check_settings(cfg)
    with start_logging(Path(cfg.LOG_DIR) if cfg.LOG_DIR else run.folder, messages):
        if run.finished:
            log.info("%s is finished already; choose another --exp-name, or delete it to run it again", run.folder)
            log.info(format_summary(run.result()))
            return run.result()
        run.start(cfg, splits)
        start = time.perf_counter()
        result = run_phases(cfg, splits, run)
        result["seconds"] = time.perf_counter() - start
        run.finish(result)
        log.info(format_summary(result))
        log.info("the run's record is %s", run.folder)
    return result


def configure(flags: Flags) -> CfgNode:
    """The configuration; for --eval-only, the evaluated run's own is what the flags change."""
    trainer_file = flags.config_file
    if flags.eval_only and not trainer_file:
        trainer_file = str(Path(flags.model_dir) / "config.yaml")
    if flags.eval_only and flags.dataset_config_file:  # the run's YAML names its own data set: the flag's comes after
        return load_config(trainer_file, flags.dataset_config_file, flags.values, flags.options)
    return load_config(flags.dataset_config_file, trainer_file, flags.values, flags.options)


def run_phases(cfg: CfgNode, splits: Splits, run: Run) -> dict:
    """Zero-shot, the text classifier, the tuned model; each is scored on every split."""
    clip_model = load_clip(cfg)
    loaders = build_loaders(cfg, splits, clip_model.visual.input_resolution, clip_model.visual.proj.device)
    evaluation = {split: loaders[split] for split in ("val", "test") if split in loaders}
    result = {"dataset": splits.name, "trainer": cfg.TRAINER.NAME, "backbone": cfg.MODEL.BACKBONE.NAME,
              "seed": cfg.SEED, "supervision": cfg.TRAIN.SUPERVISION, "classnames": splits.classnames,
              "environment": environment(clip_model), "splits": {split: {} for split in evaluation}}
    classifier = None
    if not cfg.TEXT.SKIP:
        classifier = text_phase(cfg, splits, clip_model, evaluation, result)
    if cfg.TRAIN.SKIP:
        return result

    model = build_student(cfg, clip_model, classifier, len(splits.classnames), loaders["plain"])
    result["parameters"] = count_parameters(model)
    log.info("trained parameters: %s", ", ".join(f"{kind} {count:,}" for kind, count in result["parameters"].items()))
    identity = {"trainer": cfg.TRAINER.NAME, "clip_hash": clip.weights_hash(clip_model),
                "classnames": splits.classnames}
    prepare_blocks(clip_model, cfg, len(splits.train) * cfg.OPTIM.MAX_EPOCH)
    training, criterion = build_training(cfg, clip_model, model, classifier, identity)
    if cfg.RESUME:
        resume(cfg, training, run)
    if training.teacher and not training.epoch:
        training.teacher.prepare(loaders["plain"])
    rows = fit(training, Objective(criterion, cfg, splits.classnames), loaders["train"], evaluation, cfg, run)
    for split in evaluation:
        result["splits"][split] |= {name: row[split] for name, row in rows.items()}
    if cfg.PICTURES and "test" in loaders:
        draw_examples(splits, model, loaders["test"], cfg.SEED, run.folder / "predictions.png")
    return result | {"epochs": training.epoch, "best_epoch": rows["best"]["epoch"]}


def draw_examples(splits: Splits, model: Tunable, loader: ViewLoader, seed: int, path: Path) -> None:
    """A picture of a dozen test images with their annotated distributions and the model's."""
    items = [splits.test[index] for index in choose_items(splits.test, 12, seed)]
    outputs = predict(model, build_loader(items, loader.dataset.views, len(items), workers=0), "picture")
    draw_predictions(items, outputs["probabilities"], splits.classnames, path)


def load_clip(cfg: CfgNode) -> CLIP:
    """The backbone on its device, in its precision, at INPUT.SIZE, with its stages."""
    device = choose_device(cfg.DEVICE)
    backbone = cfg.MODEL.BACKBONE
    name = backbone.NAME if backbone.NAME in clip.available_models() else str(resolve_path(backbone.NAME))
    model, _ = clip.load(name, device, cfg.MODEL.DOWNLOAD_ROOT or None, precision=cfg.MODEL.PRECISION,
                         image_size=image_size(cfg), quick_gelu=backbone.QUICK_GELU,
                         stage_boundaries=cfg.MULTI_LAYER_PROMPT.STAGES or None)
    return model.requires_grad_(False)


def choose_device(name: str) -> torch.device:
    """The device called `name`; auto takes CUDA, else MPS, else the CPU. Raises InputError for one that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises either, depending on how it was built
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}); try --device cpu") from error


def build_loaders(cfg: CfgNode, splits: Splits, size: int, device: torch.device | str = "cpu") -> dict[str, ViewLoader]:
    """`train` (shuffled, the student's and the teacher's views), `plain` (the same images, weak, in order), and
    `val` and `test` where they hold images."""
    weak, strong = build_views(size, cfg.INPUT.TRANSFORMS, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD,
                               cfg.INPUT.INTERPOLATION)
    if cfg.TRAIN.SUPERVISION == "pseudo":
        views = {"strong": strong} if cfg.PSEUDO_LABEL.TEACHER == "frozen" else {"weak": weak, "strong": strong}
    elif cfg.TRAIN.AUGMENT:
        views = {"strong": strong, "strong2": strong} if cfg.TRAIN.TWO_CROPS else {"strong": strong}
    else:
        views = {"weak": weak}
    cache = None
    if cfg.DATALOADER.CACHE_GB:
        folder = Path(cfg.DATALOADER.CACHE_DIR) if cfg.DATALOADER.CACHE_DIR else Path(cfg.OUTPUT_DIR) / "cache"
        cache = ImageCache(folder, int(cfg.DATALOADER.CACHE_GB * 1e9))
    common = {"workers": cfg.DATALOADER.NUM_WORKERS, "cache": cache, "device": device}
    loaders = {"train": build_loader(splits.train, views, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, seed=cfg.SEED,
                                     shuffle=True, **common),
               "plain": build_loader(splits.train, {"weak": weak}, cfg.DATALOADER.TEST.BATCH_SIZE, **common)}
    for split in ("val", "test"):
        items = getattr(splits, split)
        if items:
            loaders[split] = build_loader(items, {"weak": weak}, cfg.DATALOADER.TEST.BATCH_SIZE, **common)
    return loaders


def text_phase(cfg: CfgNode, splits: Splits, clip_model: CLIP, evaluation: dict[str, ViewLoader],
               result: dict) -> Tensor:
    """Score zero-shot and the text classifier on the plain features; returns the classifier [classes, embed_dim]."""
    num_classes = len(splits.classnames)
    device = clip_model.visual.proj.device
    zero_shot = text_features(clip_model, splits.classnames, "zero_shot", cfg)
    classifiers = {"zero_shot": zero_shot.logit_scale * zero_shot.class_means(num_classes)}
    classifier = zero_shot.class_means(num_classes)
    if cfg.TEXT.MODE != "zero_shot":
        texts = text_features(clip_model, splits.classnames, cfg.TEXT.MODE, cfg)
        classifier = classifiers["text_classifier"] = train_text_classifier(texts, num_classes, cfg, device)
    for split, loader in evaluation.items():
        outputs = plain_features(clip_model, loader, split)
        features = outputs.pop("features")
        for name, weight in classifiers.items():
            metrics = score((features @ weight.cpu().t()).softmax(-1), **outputs)
            result["splits"][split][name] = metrics
            if "top1" in metrics:
                log.info("%s, %s: %.1f %%", name.replace("_", " "), split, 100 * metrics["top1"])
    return classifier.to(device)


def resume(cfg: CfgNode, training, run: Run) -> None:
    """Continue from RESUME: `auto` is this run's own last checkpoint, or a fresh start where there is none."""
    if cfg.RESUME == "auto" and not list(run.checkpoints.glob("epoch*.pt")):
        run.rewind(-1)
        return log.info("nothing to resume in %s: starting", run.folder)
    path = find_checkpoint(run.folder if cfg.RESUME == "auto" else Path(cfg.RESUME))
    Run(path.parent.parent, resume=True).check_settings(cfg)  # where --resume names another run
    training.load(path)
    run.rewind(training.epoch)
    log.info("resumed after epoch %d from %s", training.epoch, path)


def evaluate_run(cfg: CfgNode, splits: Splits, flags: Flags) -> dict:
    """Score a run's model on the data set's validation and test splits; writes eval_<dataset>_epoch<N>.json into it."""
    folder = Path(flags.model_dir)
    recorded = folder / "split.json"
    if recorded.is_file() and json.loads(recorded.read_text(encoding="utf-8"))["name"] == splits.name:
        splits = load_splits(recorded, splits.root)  # its own data: what was held out then, whatever the seed is now
    with start_logging(folder):
        state = load_checkpoint(find_checkpoint(folder, flags.load_epoch),
                                {"trainer": cfg.TRAINER.NAME, "classnames": splits.classnames})
        clip_model = load_clip(cfg)
        if state["clip_hash"] != clip.weights_hash(clip_model):
            raise InputError(f"{folder} was trained on another backbone than {cfg.MODEL.BACKBONE.NAME}")
        loaders = build_loaders(cfg, splits, clip_model.visual.input_resolution, clip_model.visual.proj.device)
        model = build_student(cfg, clip_model, None, len(splits.classnames), loaders["plain"])
        load_tuned(model, state["model"])
        model.start_epoch(state["epoch"] - 1)
        evaluation = {split: loaders[split] for split in ("val", "test") if split in loaders}
        result = {"dataset": splits.name, "epoch": state["epoch"], "splits": {
            split: {"tuned": metrics} for split, metrics in evaluate(model, evaluation).items()}}
        write_text(folder / f"eval_{splits.name}_epoch{state['epoch']}.json", json.dumps(result, indent=2) + "\n")
        log.info(format_summary(result))
    return result


def environment(clip_model: CLIP) -> dict[str, object]:
    """What a reader needs to repeat the run's numbers."""
    device = clip_model.visual.proj.device
    return {"python": platform.python_version(), "torch": torch.__version__, "system": platform.platform(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads()}


def exit_with_message(program: Callable[[], object]) -> None:
    """Run a program; what the user can mend ends it with one line and exit status 1."""
    try:
        program()
    except (InputError, clip.ClipError, FileNotFoundError, TrainingError) as error:
        # an error from a loader's process arrives with that process's traceback; its last line is the message
        message = str(error).strip().splitlines()[-1]
        sys.exit(f"error: {message.removeprefix('utils.errors.InputError: ')}")


if __name__ == "__main__":
    exit_with_message(main)
