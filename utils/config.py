"""Configuration: defaults < data-set YAML < trainer's YAML < --config-file < flags given < trailing KEY VALUE options.

Keys keep the names of Dassl and CoOp where those have one, so that their YAML files merge.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from yacs.config import CfgNode as CN

from .errors import InputError
from .files import read_yaml
from .values import coerce, divide_names, expand_home, parse_options, similar_keys

PROJECT = Path(__file__).resolve().parent.parent
PATHS = ("OUTPUT_DIR", "LOG_DIR", "RESUME", "MODEL.BACKBONE.NAME", "MODEL.DOWNLOAD_ROOT", "DATASET.ROOT",
         "DATASET.SPLIT_FILE", "DATASET.DESCRIPTIONS", "DATASET.TEXT_FEATURES", "TEXT.CACHE_DIR",
         "DATALOADER.CACHE_DIR", "DATASET.CLASSNAMES")  # ~ is the user's home in them
CHOICES = {
    "TRAINER.NAME": ("LaFTer", "MultiLayerLaFTer"),
    "MODEL.PRECISION": ("fp32", "fp16", "bf16", "auto"),
    "MODEL.COMPILE": ("auto", "on", "off"),
    "TEXT.MODE": ("lafter", "templates_only", "cls_only", "zero_shot"),
    "TRAIN.CUDA_GRAPH": ("auto", "on", "off"),
    "TRAIN.SUPERVISION": ("pseudo", "labels"),
    "PSEUDO_LABEL.TEACHER": ("shared", "frozen", "ema"),
    "PSEUDO_LABEL.CALIBRATION": ("auto", "none", "mean", "std", "rest", "balance"),
    "PSEUDO_LABEL.WEIGHT": ("none", "confidence", "neighbours"),
    "PROMPT_INIT": ("uniform", "tokens"),
    "MULTI_LAYER_PROMPT.MODE": ("append", "replace"),
    "MULTI_LAYER_PROMPT.NGA": ("gaussian", "uniform", "last"),
    "MULTI_LAYER_PROMPT.FUSION": ("learned", "confidence"),
    "MULTI_LAYER_PROMPT.ALIGN": ("none", "linear"),
    "DATASET.LABEL_SOURCE": ("votes", "keyword"),
    "DATASET.NEUTRAL": ("drop", "keep"),
    "DATASET.SUBSAMPLE_CLASSES": ("all", "base", "new"),
    "DATASET.TEST_IMAGES": ("held_out", "all"),
    "DATASET.DISTRIBUTION_STRATEGY": ("strategy1", "annotated", "json"),
    "OPTIM.NAME": ("adamw", "adam", "sgd"),
    "OPTIM.WARMUP_TYPE": ("linear", "constant"),
    "INPUT.INTERPOLATION": ("bicubic", "bilinear"),
    "INPUT.EXIF": ("auto", "apply", "ignore"),
    "INPUT.CROP_INTERPOLATION": ("bicubic", "bilinear"),
    "TRAINER.SETTINGS": ("tuned", "published"),
    "DATALOADER.ON_ERROR": ("raise", "skip"),
}
RANGES = {  # what a number must do
    "be above 0": (lambda value: value > 0, (
        "OPTIM.LR", "TEXT.LR", "DATASET.SIGMA_CONF", "MULTI_LAYER_PROMPT.SIGMA", "DUAL_TASK.TEMPERATURE",
        "MULTI_LAYER_PROMPT.ALIGN_RIDGE")),
    "be at least 1": (lambda value: value >= 1, (
        "OPTIM.MAX_EPOCH", "OPTIM.ACCUMULATE", "DATALOADER.TRAIN_X.BATCH_SIZE", "DATALOADER.TEST.BATCH_SIZE",
        "PROMPT_NUM", "MULTI_LAYER_PROMPT.NUM", "PROMPT_INIT_IMAGES", "TRAIN.PRINT_FREQ", "INPUT.MAX_PIXELS",
        "INPUT.SOURCE_SCALE", "PSEUDO_LABEL.NEIGHBOURS")),
    "lie in [0, 1]": (lambda value: 0 <= value <= 1, (
        "DUAL_TASK.LAMBDA", "DATASET.TEST_FRACTION", "DATASET.VAL_FRACTION", "PSEUDO_LABEL.EMA_DECAY",
        "OPTIM.LABEL_SMOOTHING", "TEXT.LABEL_SMOOTHING", "INPUT.BLUR_PROB", "PSEUDO_LABEL.SHARE")),
    "lie between 0 and 1": (lambda value: 0 < value < 1, ("MULTI_LAYER_PROMPT.FUSION_START",)),
    "not be negative": (lambda value: value >= 0, (
        "TEXT.EPOCHS", "DATALOADER.NUM_WORKERS", "OPTIM.WARMUP_EPOCH", "MULTI_LAYER_PROMPT.WARMUP_EPOCHS",
        "MULTI_LAYER_PROMPT.PROGRESSIVE_EPOCHS", "OPTIM.WEIGHT_DECAY", "TEXT.NOISE_STD", "DATASET.EPSILON",
        "MULTI_LAYER_PROMPT.CONSISTENCY", "SEED", "TRAIN.KEEP", "OPTIM.MAX_GRAD_NORM", "DATALOADER.CACHE_GB",
        "DATALOADER.TRAIN_X.MICRO_BATCH", "PROMPT_INIT_PATCH", "DATALOADER.TIMEOUT", "PSEUDO_LABEL.FAIRNESS")),
}
LISTS_OF_TEXTS = ("DATASET.CLASSNAMES", "DATASET.CIRCLE", "DATASET.TEMPLATES", "INPUT.TRANSFORMS")
LISTS_OF_NAMES = ("DATASET.CLASSNAMES", "DATASET.CIRCLE", "INPUT.TRANSFORMS")  # commas divide one text into them
LISTS_OF_INTS = ("DATASET.NUM_SHOTS", "OPTIM.STEPSIZE")
LISTS_OF_NUMBERS = ("INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD", "PSEUDO_LABEL.PRIOR", *LISTS_OF_INTS)


def default_config() -> CN:
    """Every key with its default; what is not here is no key."""
    cfg = CN()
    cfg.SEED = 1
    cfg.OUTPUT_DIR = "output"
    cfg.EXP_NAME = ""  # "": seed<SEED>
    cfg.LOG_DIR = ""  # where log.txt goes; "": the run's folder
    cfg.LOG = CN(dict(TENSORBOARD=False))  # True: metrics.jsonl also for TensorBoard, in the run's folder
    cfg.PICTURES = True  # predictions.png: a dozen test images and what the model says of them
    cfg.RESUME = ""  # auto, a run folder or a checkpoint file
    cfg.DEVICE = "auto"  # CUDA, else MPS, else CPU
    cfg.MODEL = CN(dict(
        BACKBONE=CN(dict(NAME="ViT-B/32",
                         QUICK_GELU=None)),  # False: plain GELU; None: as the checkpoint tells, else QuickGELU
        PRECISION="fp32",  # auto: bf16 where the device multiplies it fast, else fp32; config.yaml then says which
        TF32=True,  # CUDA, fp32: products of inputs rounded to TF32, several times as fast; False: all 24 bits
        DOWNLOAD_ROOT="",
        COMPILE="auto",  # the image tower's blocks; auto: where a run is long enough for it to pay
        CHECKPOINT_GRADIENTS=False))  # less memory for a third more time
    cfg.DATASET = CN(dict(
        NAME="", ROOT="data", DOWNLOAD=True, SPLIT_FILE="", TEST_FRACTION=0.3, VAL_FRACTION=0.1,
        NUM_SHOTS=[-1],  # images of each class that train: one number, or one for each class; below 1: all
        SUBSAMPLE_CLASSES="all",  # base: the first half of the classes; new: the second
        PARTIAL=False,  # True: a part of a published data set is meant, its classes need not all be there
        TEST_IMAGES="held_out",  # all: the images that train, without labels, are scored too
        CLASSNAMES=[],  # a list of names, names with commas between them, or one text file with a name per line
        LABEL_SOURCE="votes", NEUTRAL="drop",
        DISTRIBUTION_STRATEGY="annotated", SIGMA_CONF=1.0, EPSILON=0.1, CIRCLE=[],
        TEMPLATES=["a photo of a {}."], DESCRIPTIONS="", TEXT_FEATURES="", TEXT_FEATURES_TEMPLATE=""))
    cfg.INPUT = CN(dict(
        SIZE=None,  # None: the checkpoint's; an int or a pair of equal ints
        EXIF="auto",  # turn photographs as their EXIF orientation says; auto: those of `folder` and --predict
        MAX_PIXELS=178_956_970,  # larger images are refused: a small file may hold a huge one
        INTERPOLATION="bicubic",  # of the weak view
        CROP_INTERPOLATION="bilinear",  # of the strong view's crop
        SOURCE_SCALE=2.3,  # that crop is cut from the image reduced to this many times SIZE on its short side
        BLUR_PROB=1.0,  # share of the strong views that gaussian_blur blurs
        PIXEL_MEAN=[0.48145466, 0.4578275, 0.40821073], PIXEL_STD=[0.26862954, 0.26130258, 0.27577711],
        TRANSFORMS=["random_resized_crop", "random_flip", "color_jitter", "random_grayscale", "gaussian_blur"]))
    cfg.DATALOADER = CN(dict(
        NUM_WORKERS=2, TRAIN_X=CN(dict(BATCH_SIZE=50, MICRO_BATCH=0)), TEST=CN(dict(BATCH_SIZE=100)),
        TIMEOUT=600,  # seconds without a batch after which the loader processes count as hung; 0: none
        ON_ERROR="raise",  # or skip: images that cannot be read are left out
        CACHE_GB=10.0, CACHE_DIR=""))  # decoded images, kept between runs; 0: none. "": OUTPUT_DIR/cache
    cfg.OPTIM = CN(dict(
        NAME="adamw", LR=5e-4, WEIGHT_DECAY=0.01, MOMENTUM=0.9, MAX_EPOCH=50, ADAPTER_LR_SCALE=5.0, FUSION_LR_SCALE=0.1,
        DECAY_LAYERNORM=False,  # True: the weights of LayerNorms are decayed too, as LaFTer's code does
        LR_SCHEDULER="cosine", WARMUP_EPOCH=3, WARMUP_TYPE="linear",
        WARMUP_CONS_LR=None,  # rate of every group at the start; None: a tenth of each group's own
        STEPSIZE=[], GAMMA=0.1, ACCUMULATE=1, LABEL_SMOOTHING=0.1,
        MAX_GRAD_NORM=0.0))  # gradients of a step are scaled down to this norm; 0: they are not
    cfg.TEXT = CN(dict(MODE="lafter", EPOCHS=500, LR=1e-3, NOISE_STD=0.1, LABEL_SMOOTHING=0.1, CACHE_DIR="cache",
                       TEMPLATES=[],  # of templates_only; []: DATASET.TEMPLATES
                       SKIP=False, ZERO_SHOT_TEMPLATE="a photo of a {}",
                       TRUNCATE=True))  # texts of over 77 tokens are cut; False: refused
    cfg.TRAIN = CN(dict(
        SUPERVISION="pseudo", PRINT_FREQ=10, SKIP=False, AUGMENT=False, TWO_CROPS=False, KEEP=1,
        CUDA_GRAPH="auto"))  # record a step and replay it; auto: on a GPU. Never in fp16 or by several processes
    cfg.PSEUDO_LABEL = CN(dict(
        TEACHER="shared", EMA_DECAY=0.999,
        CALIBRATION="auto",  # of the logits, by all training images; auto: std from 100 of them on, else none
        PRIOR=[],  # of balance: shares by class, in the classes' order; []: uniform
        WEIGHT="none", NEIGHBOURS=10,  # an image counts by the teacher's confidence, or by its neighbours' agreement
        SHARE=1.0,  # of each class's images the first epoch learns from the surest alone, the last from all
        FAIRNESS=0.0,  # weight of a term that makes the mean prediction uniform
        SOFT=False))  # dual task: the distribution of the teacher's probabilities, not of its label alone
    cfg.PROMPT_INIT = "uniform"
    cfg.PROMPT_INIT_PATCH = 0  # patch size in the bound of `uniform`; 0: the backbone's own. LaFTer's code has 16
    cfg.PROMPT_INIT_IMAGES = 64  # unlabelled training images that `tokens` draws prompts from
    cfg.PROMPT_NUM = 50  # LaFTer's; MultiLayerLaFTer has MULTI_LAYER_PROMPT.NUM per stage
    cfg.MULTI_LAYER_PROMPT = CN(dict(
        MODE="replace", NUM=16, STAGES=[], NGA="gaussian", SIGMA=1.0, FUSION_START=0.97, CONSISTENCY=0.1,
        FUSION="learned",  # confidence: for each image also by each stage's own confidence
        ALIGN="none", ALIGN_RIDGE=0.1,  # linear: a fixed map of each stage's features to the final ones
        PROGRESSIVE_TRAINING=False, WARMUP_EPOCHS=2, PROGRESSIVE_EPOCHS=3))  # True: stages join from deep to shallow
    cfg.DUAL_TASK = CN(dict(ENABLED=False, LAMBDA=0.8, TEMPERATURE=1.0))
    cfg.TRAINER = CN(dict(NAME="LaFTer", SETTINGS="tuned"))  # published: configs/trainers/LaFTer/published.yaml
    return cfg


def load_config(dataset_file: str = "", trainer_file: str = "", flags: dict[str, object] | None = None,
                options: Sequence[str] = (), run_file: str = "") -> CN:
    """Merge all sources in order, check the values and freeze.

    The order: defaults, the data set's YAML, the trainer's `default.yaml` and its file for the backbone in
    configs/trainers, `trainer_file`, `flags` (which map keys to the values of the flags that were given), `options`.
    A `run_file`, the config.yaml of a run, holds every key: it stands before the others, in the defaults' place.
    Raises InputError for an unknown key (with near matches), a wrong type or an invalid choice; FileNotFoundError
    for a missing YAML.
    """
    cfg = default_config()
    options = parse_options(options, {key for key, default in flatten(cfg) if isinstance(default, str)})
    dataset = [find_config(dataset_file)] if dataset_file else []
    own = [find_config(trainer_file, "trainers/LaFTer")] if trainer_file else []
    if run_file:
        defaults, dataset = [], [find_config(run_file), *dataset]
    else:
        preview = default_config()  # of what names the trainer and the backbone
        for path in (*dataset, *own):
            _merge_file(preview, path)
        _merge_values(preview, {**(flags or {}), **options}, "command line")
        defaults = trainer_files(preview.TRAINER.NAME, preview.MODEL.BACKBONE.NAME)
    for path in (*dataset, *defaults, *own):
        _merge_file(cfg, path)
    _merge_values(cfg, flags or {}, "flags")
    _merge_values(cfg, options, "options")
    check_flags(flags or {}, cfg)
    check_config(cfg)
    _merge_values(cfg, {key: expand_home(value) for key, value in flatten(cfg) if key in PATHS}, "~")
    cfg.freeze()
    return cfg


def find_config(name: str, folder: str = "datasets") -> Path:
    """A YAML by its path, from here or from the project's folder, or by the bare name of one in configs/<folder>."""
    place, name = PROJECT / "configs" / folder, os.path.expanduser(name)
    for path in (Path(name), PROJECT / name, place / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in place.glob("*.yaml")))
    raise FileNotFoundError(f"no configuration file {name}; {folder} known by name: {known}")


def trainer_files(trainer: str, backbone: str) -> list[Path]:
    """configs/trainers/<trainer>/default.yaml, then <backbone>.yaml (ViT-B/32 → vit_b32) where there is one."""
    folder = PROJECT / "configs" / "trainers" / trainer
    stem = Path(backbone).stem if Path(backbone).suffix else backbone
    names = ("default", stem.lower().replace("-", "_").replace("/", "").replace("@", "_"))
    return [folder / f"{name}.yaml" for name in names if (folder / f"{name}.yaml").is_file()]


def resolve_path(name: str) -> Path:
    """A path that a configuration names: from the working folder, or else from the project's."""
    name = os.path.expanduser(name)
    return Path(name) if os.path.exists(name) or not os.path.exists(PROJECT / name) else PROJECT / name


def _merge_file(cfg: CN, path: Path) -> None:
    _merge_values(cfg, dict(flatten(read_yaml(path))), str(path))


def flatten(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) pairs of a configuration tree."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _merge_values(cfg: CN, values: dict[str, object], source: str) -> None:
    known = dict(flatten(default_config()))
    for key, value in values.items():
        if key not in known:
            raise InputError(f"unknown key {key} ({source}); valid: {', '.join(similar_keys(key, known))}")
        if key in LISTS_OF_TEXTS and not isinstance(value, (list, tuple, str)):
            value = [value]  # for check_config to say why it is no text
        if key in LISTS_OF_NAMES and isinstance(value, str) and not os.path.isfile(resolve_path(value)):
            value = divide_names(value)
        *parents, leaf = key.split(".")
        node = cfg
        for parent in parents:
            node = node[parent]
        node[leaf] = coerce(key, value, known[key], source)


# what flags set for the image phase alone
IMAGE_PHASE = ("OPTIM.LR", "OPTIM.MAX_EPOCH", "OPTIM.ACCUMULATE", "OPTIM.MAX_GRAD_NORM", "OPTIM.STEPSIZE",
               "OPTIM.GAMMA", "DATALOADER.TRAIN_X.BATCH_SIZE", "TRAIN.KEEP", "TRAIN.PRINT_FREQ", "TRAIN.AUGMENT",
               "TRAIN.TWO_CROPS", "INPUT.TRANSFORMS", "DUAL_TASK.ENABLED", "DUAL_TASK.LAMBDA")
BOTH_PHASES = ("OPTIM.WEIGHT_DECAY", "OPTIM.LR_SCHEDULER")  # what they set for the text phase too


def check_flags(flags: dict[str, object], cfg: CN) -> None:
    """InputError for a flag that would be ignored."""
    multistep = cfg.OPTIM.LR_SCHEDULER == "multistep"
    strong = cfg.TRAIN.SUPERVISION == "pseudo" or cfg.TRAIN.AUGMENT
    trains = not cfg.TRAIN.SKIP or cfg.TEXT.MODE != "zero_shot" and not cfg.TEXT.SKIP
    for keys, serves, needs in (
            (IMAGE_PHASE, not cfg.TRAIN.SKIP, "the image phase, which --zero_shot, --no-train, --skip_finetune skip"),
            (BOTH_PHASES, trains, "a phase that trains"),
            (["TEXT.MODE", "TEXT.EPOCHS"], not cfg.TEXT.SKIP, "the text phase, which --direct_dualtask skips"),
            (["TEXT.EPOCHS"], cfg.TEXT.MODE != "zero_shot", "a text classifier, which zero-shot has not"),
            (["OPTIM.STEPSIZE", "OPTIM.GAMMA"], multistep, "--scheduler multistep"),
            (["DUAL_TASK.LAMBDA"], cfg.DUAL_TASK.ENABLED, "--dual_task or --direct_dualtask"),
            (["INPUT.TRANSFORMS"], strong, "a strong view: add --enable_augmentation")):
        useless = [key for key in keys if key in flags and not serves]
        if useless:
            raise InputError(f"the flag that sets {useless[0]} does nothing without {needs}")


def check_config(cfg: CN) -> None:
    """Choices, ranges and what contradicts itself; InputError names the key, the value and what is valid."""
    check_values(dict(flatten(cfg)))
    if cfg.TEXT.SKIP and cfg.TRAIN.SKIP:
        raise InputError("TEXT.SKIP and TRAIN.SKIP (--direct_dualtask with --skip_finetune or --zero_shot) leave "
                         "nothing to do")
    if cfg.TEXT.SKIP and cfg.TRAIN.SUPERVISION == "pseudo":
        raise InputError("without the text phase there is no pseudo-labeller: set TRAIN.SUPERVISION labels")
    if cfg.DATASET.TEST_IMAGES == "all" and cfg.TRAIN.SUPERVISION == "labels":
        raise InputError("DATASET.TEST_IMAGES all would score images on the labels that they were trained with: set it "
                         "to held_out for TRAIN.SUPERVISION labels")
    if cfg.TRAIN.SUPERVISION == "pseudo" and (cfg.TRAIN.AUGMENT or cfg.TRAIN.TWO_CROPS):
        raise InputError("TRAIN.AUGMENT and TRAIN.TWO_CROPS (--enable_augmentation, --use_two_crops) are for "
                         "TRAIN.SUPERVISION labels; label-free training always shows the student the strong view")
    if cfg.TRAIN.TWO_CROPS and not cfg.TRAIN.AUGMENT:
        raise InputError("TRAIN.TWO_CROPS (--use_two_crops) is two strong views: set TRAIN.AUGMENT True too")
    if not cfg.DATASET.NAME:
        raise InputError("no data set was named: give --dataset-config-file, e.g. configs/datasets/demo.yaml")
    image_size(cfg)


def check_values(values: dict[str, object]) -> None:
    """Each key's value by itself; InputError names the key, the value and what is valid."""
    for key, valid in CHOICES.items():
        if values[key] not in valid:
            raise InputError(f"{key} is {values[key]!r}; valid: {', '.join(valid)}")
    for key in LISTS_OF_TEXTS:
        for value in values[key]:
            if not isinstance(value, str):
                raise InputError(f"{key}: YAML reads a word in it as {value!r}, which is no text: put it in quotes, as "
                                 "in ['yes', 'no', '007', '12:30', 'null']")
    for key in LISTS_OF_NUMBERS:
        kind, words = (int, "whole numbers") if key in LISTS_OF_INTS else ((int, float), "numbers")
        if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values[key]):
            raise InputError(f"{key} is {values[key]}; it must be a list of {words}")
        if key.startswith("INPUT.") and len(values[key]) != 3:
            raise InputError(f"{key} is {values[key]}; it needs a value for each of the 3 channels")
    for words, (fits, keys) in RANGES.items():
        for key in keys:
            if not fits(values[key]):
                raise InputError(f"{key} is {values[key]}; it must {words}")
    if (quick := values["MODEL.BACKBONE.QUICK_GELU"]) not in (None, True, False):
        raise InputError(f"MODEL.BACKBONE.QUICK_GELU is {quick!r}; valid: True, False, None (as the checkpoint tells)")
    start = values["OPTIM.WARMUP_CONS_LR"]
    if start is not None and (isinstance(start, bool) or not isinstance(start, (int, float)) or not start >= 0):
        raise InputError(f"OPTIM.WARMUP_CONS_LR is {start!r}; it must be a rate, not negative")


def image_size(cfg: CN) -> int | None:
    """INPUT.SIZE as one int, or None for the checkpoint's own; images are square."""
    size = cfg.INPUT.SIZE
    if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise InputError(f"INPUT.SIZE is {cfg.INPUT.SIZE!r}; it must be a positive int or a pair of equal ones")
    return size
