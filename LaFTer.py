"""LaFTer with staged prompts: flags → config → data → model → objective → training → results.

    python LaFTer.py --dataset-config-file demo --trainer MultiLayerLaFTer
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
import time
from pathlib import Path

from yacs.config import CfgNode

import clip
from clip.model import CLIP
from trainers import distributed
from trainers.build import (
    build_loaders,
    build_student,
    build_training,
    count_parameters,
    environment,
    load_clip,
    prepare_blocks,
)
from trainers.calibration import settle_calibration
from trainers.checks import check_inputs, check_labels, check_training
from trainers.evaluation import predict, score_split
from trainers.objective import Objective, generated_distributions
from trainers.pages import show_files, show_split
from trainers.precision import settle_precision, suggest_precision
from trainers.predict import check_calibrated, find_files, predict_files, read_run, restore, write_predictions
from trainers.program import exit_with_message
from trainers.state import Training
from trainers.text_classifier import TextPhase, text_phase
from trainers.texts import check_text_tower
from trainers.training import fit
from utils.config import default_config, load_config
from utils.data.items import Splits, order_classes
from utils.data.loader import ViewLoader, build_loader
from utils.datasets.catalogue import format_datasets, list_datasets
from utils.datasets.table import load_dataset
from utils.errors import InputError
from utils.flags import Flags, parse_flags
from utils.report.pictures import choose_items, draw_predictions
from utils.results import format_metrics, format_summary
from utils.runs.checkpoint import drop_later, find_checkpoint, find_latest, keep_best
from utils.runs.identity import Identity, changed_settings, describe_data, identify, read_identity, recorded_splits
from utils.runs.logs import collect_logs, start_logging
from utils.runs.random_state import seed_generators
from utils.runs.record import Run, backbone_label, run_folder, write_text
from utils.runs.settings import settings_label
from utils.runs.signals import Interrupts
from utils.utils import Tunable

log = logging.getLogger("LaFTer")


GO_ON = "the same command with --resume auto goes on"


def main(argv: list[str] | None = None) -> dict:
    """Run what the command line asks for; returns the content of final.json, or an evaluation's or prediction's."""
    flags = parse_flags(argv)
    if flags.list_datasets:
        return show_datasets(flags)
    with distributed.one_speaks():
        cfg = configure(flags)
    if flags.predict:
        with Interrupts():
            return predict_run(cfg, flags)
    if flags.eval_only:
        with Interrupts(), distributed.process_group(cfg.DEVICE):
            return evaluate_run(cfg, flags)
    with Interrupts(GO_ON) as interrupts, distributed.process_group(cfg.DEVICE):
        return train_run(cfg, interrupts)


def show_datasets(flags: Flags) -> dict:
    """Write on the screen which data sets are known and present."""
    root = Path(flags.values.get("DATASET.ROOT", default_config().DATASET.ROOT)).expanduser()
    sys.stdout.write(format_datasets(list_datasets(root)) + "\n")
    return {}


def configure(flags: Flags) -> CfgNode:
    """The configuration; for --eval-only and --predict, the run's own, which the data set's YAML and flags change."""
    if not flags.model_dir:
        return load_config(flags.dataset_config_file, flags.config_file, flags.values, flags.options)
    run_file = flags.config_file or str(Path(flags.model_dir) / "config.yaml")
    if not flags.config_file and not Path(run_file).is_file():
        raise FileNotFoundError(f"--model-dir {flags.model_dir} is no run's folder: it has no config.yaml")
    return load_config(flags.dataset_config_file, "", flags.values, flags.options, run_file)


def train_run(cfg: CfgNode, interrupts: Interrupts) -> dict:
    """A run from its data to final.json, in a folder that no other process may write to meanwhile."""
    check_inputs(cfg)
    check_training(cfg)
    with collect_logs() as messages, distributed.one_first():  # the run's folder is named after the data set
        splits = load_dataset(cfg)
        cfg = settle_calibration(cfg, splits)
    check_labels(cfg, splits)
    run = Run(run_folder(cfg, splits.name), resume=bool(cfg.RESUME), passive=not distributed.is_main())
    try:
        run.lock()
        source = run.folder if cfg.RESUME in ("", "auto") else find_checkpoint(Path(cfg.RESUME)).parent.parent
        cfg = settle_precision(cfg, source)
        identity = identify(cfg, splits)
        run.check(identity)  # settings were compared before the images were read, the weights are when they are
        with start_logging(Path(cfg.LOG_DIR or run.folder), messages, distributed.is_main()):
            return record_run(cfg, splits, run, interrupts, identity)
    except RuntimeError:  # so it looks where a signal to the whole group ended the loader's or other processes first
        interrupts.act(interrupts.signal)
        raise
    finally:
        run.unlock()


def record_run(cfg: CfgNode, splits: Splits, run: Run, interrupts: Interrupts, identity: Identity) -> dict:
    """The run's record around its phases; one that has its final.json already is not trained again."""
    seed_generators(cfg.SEED)
    with distributed.one_first():
        clip_model = load_clip(cfg)
    identity = dataclasses.replace(identity, weights=clip.weights_hash(clip_model), quick_gelu=clip_model.quick_gelu)
    run.check(identity)
    if finished := distributed.broadcast(run.result() if run.finished else None):
        log.info("%s is finished already; choose another --exp-name, or delete it to run it again", run.folder)
        log.info(format_summary(finished))
        return finished
    run.start(cfg, identity)
    start = time.perf_counter()
    result = run_phases(cfg, splits, run, interrupts, clip_model, identity)
    earlier = result.get("seconds", 0)  # of the starts before this one
    result |= {"data": describe_data(splits), "weights": identity.weights, "official": clip_model.source.official,
               "seconds": earlier + time.perf_counter() - start}
    run.finish(result)
    log.info(format_summary(result))
    log.info("the run's record is %s", run.folder)
    return result


def run_phases(cfg: CfgNode, splits: Splits, run: Run, interrupts: Interrupts, clip_model: CLIP,
               identity: Identity) -> dict:
    """Zero-shot, the text classifier, the tuned model; each is scored on every split."""
    check_text_tower(clip_model, cfg)  # what is wrong is told before hours of work
    generated_distributions(cfg, splits.classnames)
    read = dataclasses.replace(splits, train=[]) if cfg.TRAIN.SKIP else splits  # then no training image is needed
    with distributed.one_first():
        loaders = build_loaders(cfg, read, clip_model.visual.input_resolution, clip_model.visual.proj.device)
    evaluation = {split: loaders[split] for split in ("val", "test") if split in loaders}
    log.info("settings: %s", settings_label(cfg))
    text = TextPhase() if cfg.TEXT.SKIP else text_phase(cfg, splits, clip_model, evaluation)
    result = {"dataset": splits.name, "trainer": cfg.TRAINER.NAME, "backbone": cfg.MODEL.BACKBONE.NAME,
              "seed": cfg.SEED, "supervision": cfg.TRAIN.SUPERVISION, "settings": settings_label(cfg),
              "classnames": splits.classnames, "environment": environment(clip_model),
              "splits": {split: text.metrics.get(split, {}) for split in evaluation}}
    if shared := len({item.path for item in splits.test} & {item.path for item in splits.train}):
        result["test_in_train"] = shared
    if cfg.TRAIN.SKIP:
        return result | ({"unreadable": text.unreadable} if text.unreadable else {})

    model = build_student(cfg, clip_model, text.classifier, len(splits.classnames), loaders["plain"])
    result["parameters"] = count_parameters(model)
    agreed = {"trainer": cfg.TRAINER.NAME, "clip_hash": identity.weights, "quick_gelu": identity.quick_gelu,
              "classnames": splits.classnames, "dataset": identity.dataset}
    images = len(splits.train) * cfg.OPTIM.MAX_EPOCH
    suggest_precision(clip_model, cfg, images)
    training, criterion = build_training(cfg, clip_model, model, text, agreed, interrupts)
    prepare_blocks(clip_model, cfg, images, loaders["train"])
    if cfg.RESUME:
        resume(cfg, training, run, identity)
    training.share()
    if training.teacher and not training.rows:
        training.teacher.prepare(loaders["plain"])
    rows = fit(training, Objective(criterion, cfg, splits.classnames), loaders["train"], evaluation, cfg, run)
    for split in evaluation:
        result["splits"][split] |= {name: row[split] for name, row in rows.items()}
    if cfg.PICTURES and "test" in loaders:
        draw_examples(cfg, splits, model, loaders["test"], run.folder / "predictions.png")
    if training.unreadable:
        log.warning("images that could not be read and were left out: %d", len(training.unreadable))
        result["unreadable"] = training.unreadable
    return result | {"epochs": training.epoch, "best_epoch": rows["best"]["epoch"], "seconds": training.seconds}


def draw_examples(cfg: CfgNode, splits: Splits, model: Tunable, loader: ViewLoader, path: Path) -> None:
    """A picture of a dozen test images with their annotated distributions and the model's."""
    items = [splits.test[index] for index in choose_items(splits.test, 12, cfg.SEED)]
    chosen = build_loader(items, loader.dataset.views, cfg.DATALOADER.TEST.BATCH_SIZE, workers=0,
                          shard=distributed.shard(), on_error=cfg.DATALOADER.ON_ERROR, device=loader.device,
                          decoding=loader.dataset.decoding)
    outputs = predict(model, chosen, "picture")
    if distributed.is_main():
        draw_predictions([items[index] for index in outputs["index"]], outputs["probabilities"], splits.classnames,
                         path)


def resume(cfg: CfgNode, training: Training, run: Run, identity: Identity) -> None:
    """Continue from RESUME: `auto` is where this run stopped last, or a fresh start where it saved nothing yet.

    Of several processes the first reads; `Training.share` gives the others what it found. Raises InputError where the
    run that the checkpoint is of answers for other inputs than `identity`.
    """
    if not distributed.is_main():
        return
    path = find_latest(run.folder) if cfg.RESUME == "auto" else find_checkpoint(Path(cfg.RESUME))
    if path is None:
        run.rewind(-1)
        return log.info("nothing to resume in %s: starting", run.folder)
    source = Run(path.parent.parent, resume=True)  # --resume may name another run
    source.check(identity)
    training.load(path)
    drop_later(run.checkpoints, path, training.epoch)
    run.rewind(training.epoch, [*training.rows.values(), *source.rows()])
    if "best" in training.rows and source.folder.resolve() != run.folder.resolve():
        keep_best(run.folder, source.folder, training.rows["best"]["epoch"])
    log.info("resumed after epoch %d, step %d, from %s", training.epoch, training.progress.step, path)


def evaluate_run(cfg: CfgNode, flags: Flags) -> dict:
    """Score a run's model on the data set's validation and test splits.

    Writes eval_<dataset>_epoch<N>.json into the run, and a page of the test images beside it; where the model is asked
    with another precision or size than it was trained with, the settings stand in the file and in its name.
    """
    folder = Path(flags.model_dir)
    check_inputs(cfg)
    with collect_logs() as messages, distributed.one_first():
        splits = load_dataset(cfg)
    cfg, run, expected = settle_precision(cfg, folder), read_identity(folder), {}
    if (recorded := recorded_splits(folder, run, splits, cfg)) is not None:
        splits, expected["dataset"] = recorded, run.dataset
    with start_logging(folder, messages, distributed.is_main()):
        state = read_run(folder, flags.load_epoch, cfg, splits.classnames, expected)
        splits = order_classes(splits, state["classnames"])
        changed = changed_settings(run, cfg)
        with distributed.one_first():
            clip_model = load_clip(cfg)
        model = restore(cfg, clip_model, state)
        held_out = dataclasses.replace(splits, train=[])  # no training image is read
        with distributed.one_first():
            loaders = build_loaders(cfg, held_out, clip_model.visual.input_resolution, clip_model.visual.proj.device)
        evaluation = {split: loaders[split] for split in ("val", "test") if split in loaders}
        scored = {split: score_split(model, loader, split) for split, loader in evaluation.items()}
        result = {"dataset": splits.name, "epoch": state["epoch"], "classnames": splits.classnames,
                  "data": describe_data(splits), "weights": state["clip_hash"], "changed": changed,
                  "splits": {split: {"tuned": metrics} for split, (metrics, _) in scored.items()}}
        log.info(format_summary(result))
        if distributed.is_main():
            told = re.findall("[0-9a-z]+", str({key.split(".")[1]: here for key, (_, here) in changed.items()}).lower())
            path = folder / f"{'_'.join(['eval', splits.name, 'epoch' + str(state['epoch']), *told])}.json"
            write_text(path, json.dumps(result, indent=2) + "\n")
            if "test" in scored:
                metrics, outputs = scored["test"]
                show_split(path.with_suffix(".html"), splits, loaders["test"], outputs,
                           f"{describe_run(cfg, state['epoch'])}: {format_metrics(metrics)}")
    return result


def describe_run(cfg: CfgNode, epoch: int) -> str:
    """Which model it is, in a line."""
    return f"{cfg.TRAINER.NAME}, {backbone_label(cfg.MODEL.BACKBONE.NAME)}, epoch {epoch}"


def predict_run(cfg: CfgNode, flags: Flags) -> dict:
    """A run's predictions of one's own images: predictions.csv, .jsonl and .html, in its folder if not in
    --predict-out."""
    folder = Path(flags.model_dir)
    cfg = settle_precision(cfg, folder)
    out = Path(flags.predict_out) if flags.predict_out else folder
    with collect_logs() as messages:
        files = find_files(Path(flags.predict))
    state = read_run(folder, flags.load_epoch, cfg)
    check_calibrated(cfg, len(files), len(state["classnames"]), flags.calibrate)
    with start_logging(folder, messages):
        changed_settings(read_identity(folder), cfg)
        model = restore(cfg, load_clip(cfg), state)
        rows, thumbnails = zip(*predict_files(model, files, state["classnames"], cfg, flags.calibrate))
        failed = sum("error" in row for row in rows)
        paths = [*write_predictions(rows, state["classnames"], out), out / "predictions.html"]
        show_files(paths[-1], rows, thumbnails, state["classnames"], Path(flags.predict).resolve().name,
                   describe_run(cfg, state["epoch"]))
        log.info("%d images predicted with epoch %d, %d could not be read; %s", len(rows) - failed, state["epoch"],
                 failed, ", ".join(map(str, paths)))
        if flags.calibrate:
            log.info("calibrated by these images (%s): %d of them would be of another class otherwise",
                     flags.calibrate, sum(row.get("uncalibrated", row.get("prediction")) != row.get("prediction")
                                          for row in rows))
    if failed == len(rows):
        raise InputError(f"none of the {failed} images could be read; {paths[0]} says why of each. The first: "
                         f"{rows[0]['error']}")
    check_calibrated(cfg, len(rows) - failed, len(state["classnames"]), flags.calibrate)  # with too few they were not
    return {"epoch": state["epoch"], "images": len(rows), "unreadable": failed, "files": [str(path) for path in paths]}


if __name__ == "__main__":
    exit_with_message(main)
