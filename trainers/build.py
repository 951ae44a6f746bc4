"""From a configuration to the backbone, the loaders, the student, its teacher and the optimiser."""

from __future__ import annotations

import datetime
import difflib
import functools
import logging
import platform
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

import clip
from clip.model import CLIP, VisualTransformer
from utils.config import image_size, resolve_path
from utils.data.cache import ImageCache
from utils.data.images import choose_decoding
from utils.data.items import Splits
from utils.data.loader import CPU_MICRO_BATCH, ViewLoader, build_loader
from utils.data.shared_memory import affordable_workers, batch_bytes
from utils.data.views import build_views
from utils.errors import InputError
from utils.runs.signals import Interrupts
from utils.utils import Tunable, setup_lafter_training_utils

from . import distributed
from .cuda_graph import StepGraphs
from .image_weights import build_weights
from .LaFTer import LaFTer, token_prompts
from .LaFTer_multilayer import MultiLayerLaFTer
from .state import Training
from .statistics import empty_alignment, fit_alignment
from .teacher import Teacher
from .text_classifier import TextPhase
from .training import micro_batch_size

log = logging.getLogger(__name__)


def load_clip(cfg: CfgNode) -> CLIP:
    """The backbone on its device, in its precision, at INPUT.SIZE, with its stages."""
    device = choose_device(cfg.DEVICE)
    backbone = cfg.MODEL.BACKBONE
    name = find_backbone(backbone.NAME)
    if device.type == "cuda":
        allow_tf32(cfg.MODEL.TF32)
    model, _ = clip.load(name, device, cfg.MODEL.DOWNLOAD_ROOT or None, precision=cfg.MODEL.PRECISION,
                         image_size=image_size(cfg), quick_gelu=backbone.QUICK_GELU, fold_gelu=True,
                         stage_boundaries=cfg.MULTI_LAYER_PROMPT.STAGES or None)
    log.info("the backbone computes in %s", model.precision)
    for key, meant in (("PIXEL_MEAN", model.source.pixel_mean), ("PIXEL_STD", model.source.pixel_std)):
        if not np.allclose(cfg.INPUT[key], meant, rtol=0, atol=1e-3):
            log.warning("%s was trained on images of another INPUT.%s than %s: set it to %s", backbone.NAME, key,
                        list(cfg.INPUT[key]), list(meant))
    return model.requires_grad_(False)


def find_backbone(name: str) -> str:
    """What clip.load takes: a model's name, or the path of a checkpoint from here or from the project's folder.

    Raises InputError where `name` is neither; nothing is read or downloaded.
    """
    if name in clip.available_models():
        return name
    path = resolve_path(name)
    if not path.exists():
        near = difflib.get_close_matches(name, clip.available_models(), n=1)
        raise InputError(f"unknown backbone {name!r}: it is none of {', '.join(clip.available_models())}, and there is "
                         f"no checkpoint {path}" + (f"; did you mean {near[0]}?" if near else ""))
    return str(path)


def choose_device(name: str) -> torch.device:
    """The device called `name`; auto takes CUDA, else MPS, else the CPU. Raises InputError for one that is not here."""
    if name == "auto" and distributed.world_size() > 1 and torch.cuda.is_available():
        name = f"cuda:{distributed.local_rank()}"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises either, depending on how it was built
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}); try --device cpu") from error


def allow_tf32(allowed: bool) -> None:
    """Whether CUDA may multiply fp32 matrices, and convolve, with inputs rounded to TF32: 11 bits in place of 24."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def environment(clip_model: CLIP) -> dict[str, object]:
    """What a reader needs to repeat the run's numbers, and when and on what they were made."""
    device = clip_model.visual.proj.device
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"date": now, "python": platform.python_version(), "torch": torch.__version__,
            "system": platform.platform(), "processor": processor(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "precision": clip_model.precision,
            "threads": torch.get_num_threads()}


def processor() -> str:
    """The CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text(encoding="utf-8")) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


# Compiling takes about a minute; it pays beyond so much work, in FLOP. On a CPU it saved nothing measurable (ViT-B/32,
# batch 50, fp32: 6.12 s a step instead of 6.16); the figure for CUDA is an estimate
WORTH_COMPILING = {"cuda": 4e16}


def image_flops(visual: VisualTransformer, prompts: int = 0) -> float:
    """About the floating-point operations of one image's forward pass: 24 width² per token and block, and attention."""
    width, layers = visual.class_embedding.numel(), visual.transformer.layers
    tokens = len(visual.positional_embedding) + prompts
    return layers * tokens * (24 * width ** 2 + 4 * tokens * width)


def prepare_blocks(clip_model: CLIP, cfg: CfgNode, images: int, loader: ViewLoader | None = None) -> None:
    """Set MODEL.CHECKPOINT_GRADIENTS, and compile as MODEL.COMPILE says the image tower's blocks and, on a GPU, what
    makes the views of `loader`'s full batches. Call it once the trained parameters are known: they are compiled in.

    `images` is how many images the run trains on in all, each epoch's counted: `auto` compiles where that much work
    is worth the wait, which depends on the settings and the kind of device alone, so that a run can be repeated. The
    compiled code is kept between runs by torch (TORCHINDUCTOR_CACHE_DIR). Where compiling fails, for want of a
    compiler as a rule, a line says so and all stays as it is.
    """
    visual = clip_model.visual
    visual.transformer.checkpoint = cfg.MODEL.CHECKPOINT_GRADIENTS
    device = visual.proj.device
    work = 3 * images * image_flops(visual)  # the student forwards and backwards, the teacher forwards
    if cfg.MODEL.COMPILE == "off" or cfg.MODEL.COMPILE == "auto" and work < WORTH_COMPILING.get(device.type, torch.inf):
        return
    blocks = visual.transformer.resblocks
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 32)  # with and without gradients
    for block in blocks:
        block.compile()
    try:
        # a first call of the student's shape: another one after it makes sizes variables, and this one stays as it is
        tokens = torch.zeros(student_shape(visual, cfg), device=device, dtype=visual.conv1.weight.dtype)
        torch.autograd.grad(blocks[0](tokens.requires_grad_()).sum(), tokens)
        if loader and device.type == "cuda":
            loader.compile_views(loader.batch_sampler.batch_images(0) // distributed.world_size())
    except RuntimeError as error:  # torch's compile errors are of this kind
        log.info("the blocks are not compiled (%s)", " ".join(str(error).split("\n\n")[0].split()))
        for block in blocks:
            block._compiled_call_impl = None


def student_shape(visual: VisualTransformer, cfg: CfgNode) -> tuple[int, int, int]:
    """[images, tokens, width] of what the first block sees of a full batch, a micro-batch at a time."""
    prompts = cfg.MULTI_LAYER_PROMPT.NUM if cfg.TRAINER.NAME == "MultiLayerLaFTer" else cfg.PROMPT_NUM
    images = micro_batch_size(cfg, visual.proj.device) or CPU_MICRO_BATCH
    return (min(images, images_per_step(cfg)), len(visual.positional_embedding) + prompts,
            visual.class_embedding.numel())


def build_loaders(cfg: CfgNode, splits: Splits, size: int, device: torch.device | str = "cpu") -> dict[str, ViewLoader]:
    """`train` (shuffled, the student's and the teacher's views), `plain` (the same images, weak, in order), and
    `val` and `test` where they hold images."""
    weak, strong = build_views(size, cfg.INPUT.TRANSFORMS, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD,
                               cfg.INPUT.INTERPOLATION, crop_interpolation=cfg.INPUT.CROP_INTERPOLATION,
                               source_scale=cfg.INPUT.SOURCE_SCALE, blur_prob=cfg.INPUT.BLUR_PROB)
    if cfg.TRAIN.SUPERVISION == "pseudo":
        views = {"strong": strong} if cfg.PSEUDO_LABEL.TEACHER == "frozen" else {"weak": weak, "strong": strong}
    elif cfg.TRAIN.AUGMENT:
        views = {"strong": strong, "strong2": strong} if cfg.TRAIN.TWO_CROPS else {"strong": strong}
    else:
        views = {"weak": weak}
    cache = None
    if cfg.DATALOADER.CACHE_GB:
        folder = Path(cfg.DATALOADER.CACHE_DIR) if cfg.DATALOADER.CACHE_DIR else Path(cfg.OUTPUT_DIR) / "cache"
        # of the processes on a machine the first fills the cache, the others take what is there
        cache = ImageCache(folder, 0 if distributed.local_rank() else int(cfg.DATALOADER.CACHE_GB * 1e9))
    train_size, batch_size = images_per_step(cfg), cfg.DATALOADER.TEST.BATCH_SIZE
    needed = max(batch_bytes(views.values(), train_size), batch_bytes([weak], batch_size))
    build = functools.partial(build_loader, workers=affordable_workers(cfg.DATALOADER.NUM_WORKERS, needed),
                              shard=distributed.shard(), on_error=cfg.DATALOADER.ON_ERROR, cache=cache, device=device,
                              decoding=choose_decoding(cfg, own=cfg.DATASET.NAME == "folder"),
                              timeout=cfg.DATALOADER.TIMEOUT)
    loaders = {"train": build(splits.train, views, train_size, seed=cfg.SEED, shuffle=True),
               "plain": build(splits.train, {"weak": weak}, batch_size)}
    for split in ("val", "test"):
        items = getattr(splits, split)
        if items:
            loaders[split] = build(items, {"weak": weak}, batch_size)
    return loaders


def images_per_step(cfg: CfgNode) -> int:
    """How many images a step of the optimiser sees, of all processes together: a batch of the training images."""
    return cfg.DATALOADER.TRAIN_X.BATCH_SIZE * cfg.OPTIM.ACCUMULATE


TRAINERS = {"LaFTer": LaFTer, "MultiLayerLaFTer": MultiLayerLaFTer}


def build_student(cfg: CfgNode, clip_model: CLIP, classifier: Tensor | None, num_classes: int,
                  plain_loader: ViewLoader | None) -> Tunable:
    """The model that TRAINER.NAME asks for, its prompts started as PROMPT_INIT says, its stages read as ALIGN says.

    `plain_loader` gives the training images' weak views: `tokens` looks at PROMPT_INIT_IMAGES of them, ALIGN at all.
    None for a model whose state is loaded afterwards.
    """
    torch.manual_seed(cfg.SEED)
    multi_layer = cfg.TRAINER.NAME == "MultiLayerLaFTer"
    prompts = None
    if cfg.PROMPT_INIT == "tokens":
        num = cfg.MULTI_LAYER_PROMPT.NUM if multi_layer else cfg.PROMPT_NUM
        images = sample_images(plain_loader, cfg.PROMPT_INIT_IMAGES, cfg.SEED).to(clip_model.visual.proj.device)
        prompts = token_prompts(clip_model, images, num, cfg.SEED)
        prompts = prompts if multi_layer else prompts[0]
    model = TRAINERS[cfg.TRAINER.NAME](clip_model, classifier, num_classes, cfg, prompts)
    if multi_layer and cfg.MULTI_LAYER_PROMPT.ALIGN == "linear":
        model.alignment = (empty_alignment(model) if plain_loader is None else
                           fit_alignment(model, plain_loader, cfg.MULTI_LAYER_PROMPT.ALIGN_RIDGE))
    return model


def sample_images(loader: ViewLoader, count: int, seed: int) -> Tensor:
    """Weak views [count, 3, r, r] of a seeded draw of the loader's images, fewer where there are fewer."""
    order = torch.randperm(len(loader.dataset), generator=torch.Generator().manual_seed(seed))[:count]
    batch = loader.load(order.tolist())
    if not batch:
        raise InputError(f"none of the {len(order)} images that prompts start from could be read: "
                         f"{loader.unreadable[0]}")
    return batch["weak"]


def training_settings(cfg: CfgNode) -> SimpleNamespace:
    """The configuration in the names that `setup_lafter_training_utils` reads."""
    return SimpleNamespace(
        lr=cfg.OPTIM.LR, epochs=cfg.OPTIM.MAX_EPOCH, scheduler=cfg.OPTIM.LR_SCHEDULER, optimizer=cfg.OPTIM.NAME,
        weight_decay=cfg.OPTIM.WEIGHT_DECAY, decay_layernorm=cfg.OPTIM.DECAY_LAYERNORM, momentum=cfg.OPTIM.MOMENTUM,
        warmup_epochs=cfg.OPTIM.WARMUP_EPOCH, warmup_type=cfg.OPTIM.WARMUP_TYPE, warmup_lr=cfg.OPTIM.WARMUP_CONS_LR,
        scheduler_epochs=list(cfg.OPTIM.STEPSIZE), scheduler_gamma=cfg.OPTIM.GAMMA,
        adapter_lr_scale=cfg.OPTIM.ADAPTER_LR_SCALE, fusion_lr_scale=cfg.OPTIM.FUSION_LR_SCALE,
        label_smoothing=cfg.OPTIM.LABEL_SMOOTHING)


def build_training(cfg: CfgNode, clip_model: CLIP, model: Tunable, text: TextPhase, identity: dict[str, object],
                   interrupts: Interrupts | None = None) -> tuple[Training, nn.Module]:
    """(everything that training changes, the classification loss). `text` gives the teacher its classifier, and what
    was said of images that are left out."""
    optimizer, scheduler, criterion = setup_lafter_training_utils(training_settings(cfg), model)
    batch, batches = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.ACCUMULATE
    log.info("a step of the optimiser sees %d images%s", images_per_step(cfg),
             f": {batches} times {batch} (OPTIM.ACCUMULATE)" if batches > 1 else "")
    teacher = None
    if cfg.TRAIN.SUPERVISION == "pseudo":
        log.info("pseudo-labels: teacher %s, calibration %s", cfg.PSEUDO_LABEL.TEACHER, cfg.PSEUDO_LABEL.CALIBRATION)
        teacher = Teacher(clip_model, text.classifier, cfg.PSEUDO_LABEL.TEACHER, cfg.PSEUDO_LABEL.EMA_DECAY,
                          cfg.PSEUDO_LABEL.CALIBRATION, cfg.PSEUDO_LABEL.PRIOR, build_weights(cfg))
    scaler = torch.amp.GradScaler(model.adapter.weight.device.type, enabled=cfg.MODEL.PRECISION == "fp16")
    training = Training(model, teacher, optimizer, scheduler, scaler, identity, cfg.dump(),
                        interrupts or Interrupts(), references=text.references, unreadable=list(text.unreadable))
    training.graphs = StepGraphs(training.parameters(), enabled=records_steps(cfg, training.device))
    return training, criterion


def records_steps(cfg: CfgNode, device: torch.device) -> bool:
    """Whether TRAIN.CUDA_GRAPH has steps recorded. `on` on another device than a GPU runs them on fixed memory."""
    fixed = distributed.world_size() == 1 and cfg.MODEL.PRECISION != "fp16"  # whose scaler leaves steps out
    return fixed and cfg.TRAIN.CUDA_GRAPH in (("auto", "on") if device.type == "cuda" else ("on",))


def count_parameters(model: Tunable) -> dict[str, int]:
    """Trained parameters by kind, and all parameters of the model as `total`."""
    kinds, counts = model.parameter_kinds(), Counter()
    for name, parameter in model.named_parameters():
        if name in kinds:
            counts[kinds[name]] += parameter.numel()
    return {**counts, "total": sum(parameter.numel() for parameter in model.parameters())}
