"""Shared by the tests: a tiny random CLIP, a checked configuration, a small data set and all that training takes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from yacs.config import CfgNode

from clip.model import CLIP
from clip.transformer import LayerNorm
from tests.warm_start import Program
from trainers.build import build_loaders, build_student, build_training
from trainers.objective import Objective
from trainers.state import Progress, Training
from trainers.text_classifier import TextPhase
from trainers.training import train_one_epoch
from utils.config import load_config
from utils.data.items import Splits
from utils.datasets.table import load_dataset

VOCABULARY_SIZE = 49_408
CLASSNAMES = ["blue", "green", "red"]  # of the folder data set in `root`


class Batches:
    """A loader of batches that are there already."""

    def __init__(self, *batches: dict[str, torch.Tensor]):
        self.batches, self.unreadable = batches, []
        self.batch_sampler = SimpleNamespace(epoch=0, start=0, num_batches=len(batches),
                                             batch_images=lambda step: len(batches[step]["label"]))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter([dict(batch) for batch in self.batches[self.batch_sampler.start:]])


def train_on(training: Training, objective: Objective, cfg: CfgNode, *batches: dict[str, torch.Tensor]) -> dict:
    """The row of a pass over these batches, a step each."""
    training.progress = Progress()
    return train_one_epoch(training, objective, Batches(*batches), cfg)


def note_gradients(training: Training) -> dict[str, torch.Tensor]:
    """A dictionary that holds each parameter's gradient as the optimiser's last step saw it."""
    gradients = {}
    training.optimizer.register_step_pre_hook(lambda *_: gradients.update(
        {name: p.grad.clone() for name, p in training.model.named_parameters() if p.grad is not None}))
    return gradients


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The tests' tensors are tiny: several threads would only wait for one another, for minutes on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_clip():
    """make_clip(layers, …) → a random CLIP of 32 px, patch 8, embed_dim 32, in evaluation mode and frozen, as
    LaFTer.py loads it. LayerNorms and biases are random too, so that no test passes because they are neutral."""

    def make(layers: int = 12, width: int = 64, text_layers: int = 0, stages=None, quick_gelu: bool = True,
             seed: int = 0) -> CLIP:
        torch.manual_seed(seed)
        model = CLIP(embed_dim=32, image_resolution=32, vision_layers=layers, vision_width=width, vision_patch_size=8,
                     context_length=77 if text_layers else 0, vocab_size=VOCABULARY_SIZE, transformer_width=64,
                     transformer_heads=1, transformer_layers=text_layers, stage_boundaries=stages,
                     quick_gelu=quick_gelu)
        return randomise(model).eval().requires_grad_(False)

    return make


@torch.no_grad()
def randomise(model):
    """Take LayerNorms from their neutral start and attention's biases from 0, in place."""
    for module in model.modules():
        if isinstance(module, (torch.nn.LayerNorm, LayerNorm)):
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 0.5)
    for name, parameter in model.named_parameters():
        if name.endswith(("in_proj_bias", "out_proj.bias")):
            parameter.uniform_(-0.1, 0.1)
    return model


@pytest.fixture(scope="session")
def make_cfg():
    """make_cfg({"KEY": value, …}, trainer=…, config_file=…) → the frozen configuration that the command line gives."""

    def make(values: dict[str, object] | None = None, trainer: str = "MultiLayerLaFTer", config_file: str = ""):
        flags = {"DATASET.NAME": "folder", "TRAINER.NAME": trainer, "DATALOADER.CACHE_GB": 0,
                 "PSEUDO_LABEL.CALIBRATION": "none", **(values or {})}
        return load_config("", config_file, flags)

    return make


@pytest.fixture
def images() -> torch.Tensor:
    """Eight normalised images [8, 3, 32, 32]."""
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def root(tmp_path):
    """A folder data set: three classes, 8 training and 4 test images each, of 8 to 32 px."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(CLASSNAMES):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 160, (*rng.integers(8, 33, 2), 3), dtype=np.uint8)
                pixels[..., label] += 60
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "data"


@pytest.fixture
def prepare(root, make_clip, make_cfg):
    """prepare(trainer, {"KEY": value}, Objective) → all that `fit` takes, as a fresh start of the program makes it."""

    def prepare(trainer: str, values=None, objective=Objective) -> SimpleNamespace:
        cfg = make_cfg({"DATASET.ROOT": str(root), "DATASET.VAL_FRACTION": 0.25, "DATALOADER.NUM_WORKERS": 0,
                        "DATALOADER.TRAIN_X.BATCH_SIZE": 5, "PROMPT_NUM": 4, "MULTI_LAYER_PROMPT.NUM": 2,
                        "MULTI_LAYER_PROMPT.PROGRESSIVE_TRAINING": True, "MULTI_LAYER_PROMPT.WARMUP_EPOCHS": 1,
                        "MULTI_LAYER_PROMPT.PROGRESSIVE_EPOCHS": 2,
                        "OPTIM.MAX_EPOCH": 4, "OPTIM.LR": 5e-3, **(values or {})}, trainer)
        clip_model = make_clip(8).set_precision(cfg.MODEL.PRECISION)
        loaders = build_loaders(cfg, load_dataset(cfg), 32)
        common = F.normalize(torch.cat([clip_model.encode_image(b["weak"]) for b in loaders["plain"]]).float().mean(0),
                             dim=0)
        classifier = torch.randn(3, 32)
        classifier -= (classifier @ common)[:, None] * common  # so that images fall into several classes
        model = build_student(cfg, clip_model, classifier, 3, loaders["plain"])
        training, criterion = build_training(cfg, clip_model, model, TextPhase(classifier), {"trainer": trainer})
        if training.teacher:
            training.teacher.prepare(loaders["plain"])
        return SimpleNamespace(cfg=cfg, model=model, training=training, loaders=loaders,
                               evaluation={split: loaders[split] for split in ("val", "test")},
                               objective=objective(criterion, cfg, CLASSNAMES))

    return prepare


@pytest.fixture
def launch(tmp_path):
    """launch(argument, …, before=FUNCTION, VARIABLE=value) → LaFTer.py in a process that is killed at the test's
    end."""
    programs = []

    def launch(*arguments: str, before=None, **variables: str) -> Program:
        programs.append(Program(tmp_path, arguments, variables, before))
        return programs[-1]

    yield launch
    for program in programs:
        program.process.kill()
        program.process.join()


@pytest.fixture
def read_dataset(tmp_path):
    """read_dataset(name, KEY, value, …) → the splits of a data set of which the test wrote a part into its own
    folder."""

    def load(name: str, *options: str) -> Splits:
        return load_dataset(load_config(name, options=["DATASET.ROOT", str(tmp_path), "DATASET.DOWNLOAD", "False",
                                                       "DATASET.VAL_FRACTION", "0", "DATASET.PARTIAL", "True",
                                                       *options]))

    return load
