"""What scripts/benchmark.py measures: each function makes rows of a table, a dictionary each."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from yacs.config import CfgNode

from clip.model import CLIP, PRECISIONS
from clip.transformer import linear
from trainers.build import TRAINERS, allow_tf32, build_training, prepare_blocks
from trainers.objective import Objective
from trainers.state import Progress, Training
from trainers.text_classifier import TextPhase
from trainers.texts import encode_texts
from trainers.training import train_one_epoch
from utils.config import load_config
from utils.data.cache import ImageCache
from utils.data.items import Item
from utils.data.loader import CPU_MICRO_BATCH, build_loader
from utils.data.views import build_views

from .breakdown import shares_of_time
from .reference import PlainStep, encode_texts_one_by_one, plain_loader

Row = dict[str, object]
# image size, layers, width, patch, joint width, text width, text heads
BACKBONES = {"ViT-B/32": (224, 12, 768, 32, 512, 512, 8), "ViT-B/16": (224, 12, 768, 16, 512, 512, 8),
             "ViT-L/14": (224, 24, 1024, 14, 768, 768, 12), "tiny": (32, 4, 64, 16, 32, 64, 1)}
# trainer, what differs, its settings, the 0-based epoch whose phase is measured
CASES = (("LaFTer", "shared teacher", {}, 0),
         ("LaFTer", "frozen teacher", {"PSEUDO_LABEL.TEACHER": "frozen"}, 0),
         ("MultiLayerLaFTer", "append, full", {"MULTI_LAYER_PROMPT.MODE": "append"}, 99),
         ("MultiLayerLaFTer", "append, warm-up", {"MULTI_LAYER_PROMPT.MODE": "append",
                                                  "MULTI_LAYER_PROMPT.PROGRESSIVE_TRAINING": True}, 0),
         ("MultiLayerLaFTer", "replace, full", {"MULTI_LAYER_PROMPT.MODE": "replace"}, 99))
CLASSES = 10
# how a step is run: what it sets
WAYS = {"eager": {"MODEL.COMPILE": "off", "TRAIN.CUDA_GRAPH": "off"},
        "compiled": {"MODEL.COMPILE": "on", "TRAIN.CUDA_GRAPH": "off"},
        "graph": {"MODEL.COMPILE": "off", "TRAIN.CUDA_GRAPH": "on"},
        "compiled graph": {"MODEL.COMPILE": "on", "TRAIN.CUDA_GRAPH": "on"}}
STEPS = {"cuda": 20}  # in a turn; elsewhere one: a GPU's are started while those before them still run
PRODUCTS = 10  # a block's matrix products, so many times in each turn
PHOTO = (640, 480)


def make_clip(backbone: str, precision: str, device: torch.device, text: bool = False, fold: bool = True) -> CLIP:
    """A CLIP of the backbone's sizes with random weights: speed does not depend on them. As a run has it; without
    `fold` as its checkpoint has it."""
    torch.manual_seed(0)
    size, layers, width, patch, joint, text_width, heads = BACKBONES[backbone]
    context, vocabulary, text_layers = (77, 49_408, min(layers, 12)) if text else (0, 0, 0)
    model = CLIP(joint, size, layers, width, patch, context, vocabulary, text_width, heads, text_layers)
    model = model.fold_gelu() if fold else model
    return model.eval().requires_grad_(False).set_precision(precision).to(device)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(functions: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """The median of each function's seconds, called in turns after a first call that does not count."""
    times = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            synchronise(device)
            start = time.perf_counter()
            function()
            synchronise(device)
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(function: Callable[[], object], device: torch.device) -> float | None:
    """GB at the most while `function` runs: allocated on the GPU, or resident in the process (Linux alone tells)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) / 1e9
    reset = Path("/proc/self/clear_refs")
    if device.type != "cpu" or not reset.exists():
        return None
    reset.write_text("5")  # the peak starts again from what is resident now
    function()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def matrix_products(backbone: str, precision: str, batch: int, device: torch.device, prompts: int = 50,
                    times: int = PRODUCTS) -> tuple[dict[str, Callable[[], None]], int]:
    """(functions that do a block's matrix products and those of its input's gradient so many times, in two ways; their
    FLOP): what no step of the model can do without. On a CPU by micro-batches, as the step does: the faster way."""
    size, _, width, patch = BACKBONES[backbone][:4]
    dtype, tokens = PRECISIONS[precision], 1 + (size // patch) ** 2 + prompts
    images = min(batch, CPU_MICRO_BATCH) if device.type == "cpu" else batch
    pairs = [(torch.randn(images, tokens, inner, device=device, dtype=dtype),
              torch.randn(outer, inner, device=device, dtype=dtype))
             for a, b in ((width, 3 * width), (width, width), (width, 4 * width)) for inner, outer in ((a, b), (b, a))]
    pairs += pairs[-2:]  # the MLP's two products have each other's shapes

    def run(multiply: Callable) -> None:
        with torch.no_grad():
            for x, weight in pairs * times:
                multiply(x, weight, None)

    return ({"torch's linear": lambda: run(F.linear), "the model's linear": lambda: run(linear)},
            times * sum(2 * x.numel() * len(weight) for x, weight in pairs))


def make_step(clip_model: CLIP, trainer: str, values: dict[str, object], epoch: int,
              batch: int) -> tuple[CfgNode, Training, Objective, dict[str, Tensor]]:
    """A trainer as LaFTer.py builds it, in the phase of `epoch`, and a random batch."""
    cfg = load_config(flags={"DATASET.NAME": "folder", "TRAINER.NAME": trainer, "PROMPT_INIT": "uniform",
                             "PSEUDO_LABEL.CALIBRATION": "none", "DATALOADER.TRAIN_X.BATCH_SIZE": batch, **values})
    device, size = clip_model.visual.proj.device, clip_model.visual.input_resolution
    torch.manual_seed(0)
    classifier = F.normalize(torch.randn(CLASSES, clip_model.embed_dim), dim=-1).to(device)
    model = TRAINERS[trainer](clip_model, classifier, CLASSES, cfg)
    training, criterion = build_training(cfg, clip_model, model, TextPhase(classifier), {})
    objective = Objective(criterion, cfg, [str(i) for i in range(CLASSES)])
    if cfg.PSEUDO_LABEL.TEACHER == "frozen":
        training.teacher.table = torch.arange(batch, device=device) % CLASSES
    model.start_epoch(epoch)
    views = {name: torch.randn(batch, 3, size, size).to(device) for name in ("weak", "strong")}
    return cfg, training, objective, {**views, "index": torch.arange(batch), "label": torch.zeros(batch).long()}


class OneBatch:
    """A loader of a single batch that is there already, so many times: a pass over it is as many steps."""

    def __init__(self, batch: dict[str, Tensor], times: int = 1):
        self.batch, self.times, self.unreadable = batch, times, []
        self.batch_sampler = SimpleNamespace(epoch=0, start=0, num_batches=times,
                                             batch_images=lambda _: len(batch["label"]))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.times):
            yield dict(self.batch)


def take_step(training: Training, objective: Objective, cfg: CfgNode, batch: dict[str, Tensor],
              times: int = 1) -> dict[str, object]:
    """A step of the training loop on a batch, or so many; returns their row of the record."""
    training.progress = Progress()
    return train_one_epoch(training, objective, OneBatch(batch, times), cfg)


def measure_step(backbone: str, precision: str, batch: int, case: tuple, device: torch.device, repeats: int,
                 way: str = "eager", checkpointing: bool = False, reference: bool = True,
                 products_times: int = PRODUCTS) -> Row:
    """A row: our step, in turns with reference (c), which is LaFTer's step whatever the case, and with the matrix
    products alone, whose rate sets the floor; under `shares`, where the step's time goes."""
    trainer, mode, values, epoch = case
    if device.type == "cuda":
        allow_tf32(True)  # as a run has it
    clip_model = make_clip(backbone, precision, device)
    values = {**values, **WAYS[way], "MODEL.CHECKPOINT_GRADIENTS": checkpointing, "MODEL.PRECISION": precision}
    cfg, training, objective, views = make_step(clip_model, trainer, values, epoch, batch)

    def step() -> None:
        take_step(training, objective, cfg, views)

    with FlopCounterMode(display=False) as counter:
        step()
    prepare_blocks(clip_model, cfg, images=1)
    training.graphs.recordings.clear()  # what is recorded is what was compiled
    for _ in range(2 if "graph" in way else 1):  # compiles, and records
        step()
    memory = peak_memory(step, device)
    functions, flops = matrix_products(backbone, precision, batch, device, times=products_times)
    products, steps = list(functions), STEPS.get(device.type, 1)
    functions["ours"] = lambda: take_step(training, objective, cfg, views, steps)
    if reference:
        plain = plain_step(backbone, precision, training.teacher.classifier)
        functions["reference"] = lambda: [plain(views["weak"], views["strong"]) for _ in range(steps)]
    seconds = interleaved(functions, repeats, device)
    rate = flops / min(seconds[name] for name in products)
    seconds = {name: seconds[name] / steps for name in ("ours", "reference") if name in seconds}
    plain_seconds = seconds.get("reference")
    return {"trainer": trainer, "mode": mode, "backbone": backbone, "precision": precision, "batch": batch,
            "way": way, "checkpointing": checkpointing, "seconds": seconds["ours"],
            "images_per_s": batch / seconds["ours"], "tflop": counter.get_total_flops() / 1e12,
            "gemm_tflop_per_s": rate / 1e12, "floor_fraction": counter.get_total_flops() / rate / seconds["ours"],
            "peak_gb": memory, "reference_seconds": plain_seconds,
            "times_reference": plain_seconds and plain_seconds / seconds["ours"],
            "shares": shares_of_time(step, device) if device.type == "cpu" or "graph" not in way else {}}


def plain_step(backbone: str, precision: str, classifier: Tensor) -> PlainStep:
    """Reference (c) on a model of its own."""
    other = make_clip(backbone, precision, classifier.device, fold=False)
    prompts = 0.02 * torch.randn(1, 50, other.visual.class_embedding.numel(), device=classifier.device)
    return PlainStep(other, classifier, prompts, classifier)


def measure_apart(*args: object) -> Row:
    """`measure_step` in a process of its own, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads,
                             (torch.get_num_threads(),)) as pool:
        return pool.submit(measure_step, *args).result()  # raises where the process is killed, for memory for instance


def description_texts(count: int) -> list[str]:
    """Sentences of the project's own descriptions, again from the start where they do not suffice."""
    files = sorted((Path(__file__).resolve().parent.parent.parent / "configs" / "descriptions").glob("*.json"),
                   key=Path.as_posix)
    texts = [text for path in files for own in json.loads(path.read_text(encoding="utf-8")).values() for text in own]
    return [texts[i % len(texts)] for i in range(count)]


def measure_views(size: int, batch: int, device: torch.device, repeats: int, compiled: bool) -> Row:
    """A row: the weak and the strong views of a batch, made of pixels that lie on the device already."""
    cfg, pixels = load_config(flags={"DATASET.NAME": "folder"}), np.zeros((size, size, 3), dtype=np.uint8)
    views = build_views(size, cfg.INPUT.TRANSFORMS, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
    images = torch.randint(256, (batch, size, size, 3), dtype=torch.uint8).to(device)
    drawn = [torch.stack([view.sample(pixels, np.random.default_rng(number))[1] for number in range(batch)]).to(device)
             for view in views]
    finish = [torch.compile(view.finish, dynamic=False) if compiled else view.finish for view in views]

    def make() -> None:
        for function, params in zip(finish, drawn):
            function(images, params)

    seconds = interleaved({"ours": make}, repeats, device)["ours"]
    return {"size": size, "batch": batch, "compiled": compiled, "seconds": seconds, "images_per_s": batch / seconds}


def measure_texts(backbone: str, precision: str, device: torch.device, count: int, repeats: int) -> Row:
    """A row: texts per second in sorted batches, in turns with reference (a) on a tenth of them."""
    clip_model = make_clip(backbone, precision, device, text=True)
    texts = description_texts(count)
    few = texts[:: 10]
    seconds = interleaved({"ours": lambda: encode_texts(clip_model, texts),
                           "reference": lambda: encode_texts_one_by_one(clip_model, few)}, repeats, device)
    ours, reference = len(texts) / seconds["ours"], len(few) / seconds["reference"]
    return {"backbone": backbone, "precision": precision, "texts": len(texts), "texts_per_s": ours,
            "reference_texts_per_s": reference, "times_reference": ours / reference}


def draw_photos(folder: Path, count: int, size: tuple[int, int] = PHOTO) -> list[Path]:
    """JPEGs with about the detail, and so the decoding time, of photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        image = 0
        for scale in (40, 8, 2):
            shape = (size[1] // scale + 1, size[0] // scale + 1, 3)
            layer = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
            image = image + np.asarray(layer, dtype=np.float32) * {40: 0.6, 8: 0.25, 2: 0.15}[scale]
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def measure_pipeline(folder: Path, device: torch.device, count: int, size: int, workers: int, repeats: int,
                     photo: tuple[int, int] = PHOTO) -> Iterator[Row]:
    """Rows for our loader without worker processes and with `workers`, each in turns with reference (b), which has
    `workers`: images per second of an epoch with both views, the first one (which fills the cache) and the others."""
    paths = draw_photos(folder / "photos", count, photo)
    cfg = load_config(flags={"DATASET.NAME": "folder"})
    mean, std = cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD
    weak, strong = build_views(size, cfg.INPUT.TRANSFORMS, mean, std)
    items = [Item(path, 0, "") for path in paths]
    for own_workers in dict.fromkeys((0, workers)):
        start = time.perf_counter()
        loader = build_loader(items, {"weak": weak, "strong": strong}, 50, own_workers, shuffle=True, device=device,
                              cache=ImageCache(folder / f"cache{own_workers}", 10 ** 11))
        first = time.perf_counter() - start
        plain = plain_loader(paths, size, mean, std, 50, workers)
        seconds = interleaved({"ours": lambda loader=loader: consume(loader),
                               "reference": lambda plain=plain: consume(plain)}, repeats, device)
        yield {"photos": f"{photo[0]}x{photo[1]}", "images": count, "size": size, "workers": own_workers,
               "reference_workers": workers, "filling_images_per_s": count / first,
               "images_per_s": count / seconds["ours"], "reference_images_per_s": count / seconds["reference"],
               "times_reference": seconds["reference"] / seconds["ours"]}


def consume(loader: Sequence) -> None:
    for _ in loader:
        pass
