"""The pseudo-labeller's three modes: what it sees while the student's LayerNorms move."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from clip.transformer import LayerNorm
from trainers.teacher import Teacher
from utils.data.items import UNKNOWN
from utils.data.loader import EpochSampler, ViewLoader

COUNT, CLASSES = 24, 5


@pytest.fixture
def clip_model(make_clip):
    return make_clip(4)


@pytest.fixture
def classifier(clip_model, weak) -> torch.Tensor:
    features = F.normalize(clip_model.encode_image(weak), dim=-1)
    return F.normalize(features[:CLASSES] - features.mean(0), dim=-1)  # each of five images stands for a class


@pytest.fixture
def weak() -> torch.Tensor:
    return torch.randn(COUNT, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def batch(weak) -> dict[str, torch.Tensor]:
    """All images, in another order than that of the data set."""
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))
    return {"weak": weak[order], "index": order}


class StoredViews(Dataset):
    """Weak views under the keys (epoch, index) of the project's sampler."""

    def __init__(self, weak: torch.Tensor):
        self.weak, self.views = weak, {}  # none is left to be finished

    def __len__(self) -> int:
        return len(self.weak)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, object]:
        return {"weak": self.weak[key[1]], "label": UNKNOWN, "index": key[1]}


@pytest.fixture
def loader(weak) -> ViewLoader:
    """The weak views in order."""
    return ViewLoader(StoredViews(weak), batch_sampler=EpochSampler(COUNT, seed=0, shuffle=False, batch_size=7))


def plain_labels(clip_model, classifier, images) -> torch.Tensor:
    features = clip_model.encode_image(images)
    return (features / features.norm(dim=-1, keepdim=True) @ classifier.t()).argmax(1)


@torch.no_grad()
def move_layernorms(clip_model) -> None:
    """As training would, but so far that labels change."""
    generator = torch.Generator().manual_seed(3)
    for module in clip_model.visual.modules():
        if isinstance(module, LayerNorm):
            for parameter in (module.weight, module.bias):
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))


def test_shared_follows_the_layernorms(clip_model, classifier, batch):
    teacher = Teacher(clip_model, classifier, "shared")
    before = teacher.labels(batch)
    assert torch.equal(before, plain_labels(clip_model, classifier, batch["weak"]))
    assert len(before.unique()) > 1
    move_layernorms(clip_model)
    after = teacher.labels(batch)
    assert torch.equal(after, plain_labels(clip_model, classifier, batch["weak"]))
    assert not torch.equal(after, before)


def test_frozen_labels_each_image_once_and_for_all(clip_model, classifier, batch, loader):
    teacher = Teacher(clip_model, classifier, "frozen")
    expected = plain_labels(clip_model, classifier, batch["weak"])
    teacher.prepare(loader)
    assert torch.equal(teacher.labels(batch), expected)
    move_layernorms(clip_model)
    teacher.step()
    assert torch.equal(teacher.labels({"index": batch["index"]}), expected)  # no look at the image is needed


def test_the_average_follows_by_one_minus_decay(clip_model, classifier, batch):
    teacher = Teacher(clip_model, classifier, "ema", decay=0.9)
    original = copy.deepcopy(clip_model)
    move_layernorms(clip_model)
    moved = {name: parameter.clone() for name, parameter in clip_model.visual.named_parameters()}
    assert torch.equal(teacher.labels(batch), plain_labels(original, classifier, batch["weak"]))  # it has not followed

    for step in (1, 2):
        teacher.step()
        share = 1 - 0.9 ** step
        followed = copy.deepcopy(original)
        with torch.no_grad():
            for name, average in teacher.average.items():
                parameter = followed.visual.get_parameter(name)
                parameter.lerp_(moved[name], share)
                assert torch.allclose(average, parameter, atol=1e-6), name
        assert torch.equal(teacher.labels(batch), plain_labels(followed, classifier, batch["weak"]))
    norms = {f"{name}.{leaf}" for name, module in clip_model.visual.named_modules() if isinstance(module, LayerNorm)
             for leaf in ("weight", "bias")}
    assert set(teacher.average) == norms
    # the student keeps its own weights
    assert all(torch.equal(parameter, moved[name]) for name, parameter in clip_model.visual.named_parameters())


def test_the_modes_differ(clip_model, classifier, batch, loader):
    teachers = {mode: Teacher(clip_model, classifier, mode, decay=0.5) for mode in ("shared", "frozen", "ema")}
    for teacher in teachers.values():
        teacher.prepare(loader)
    first = {mode: teacher.labels(batch).tolist() for mode, teacher in teachers.items()}
    assert first["shared"] == first["frozen"] == first["ema"]
    move_layernorms(clip_model)
    for teacher in teachers.values():
        teacher.step()
    later = {mode: teacher.labels(batch).tolist() for mode, teacher in teachers.items()}
    assert later["frozen"] == first["frozen"]
    assert later["shared"] != later["frozen"] and later["ema"] != later["shared"] and later["ema"] != later["frozen"]


def test_the_classifier_is_a_copy_and_labels_carry_no_gradient(clip_model, classifier, batch):
    head = classifier.clone().requires_grad_()
    teacher = Teacher(clip_model, head)
    clip_model.visual.ln_post.requires_grad_(True)
    expected = teacher.labels(batch)
    with torch.no_grad():
        head.neg_()
    assert torch.equal(teacher.labels(batch), expected)
    assert not teacher.labels(batch).requires_grad and not teacher.classifier.requires_grad


@pytest.mark.parametrize("mode", ["shared", "frozen", "ema"])
def test_a_teachers_state_comes_back(clip_model, classifier, batch, loader, mode):
    teacher = Teacher(clip_model, classifier, mode, decay=0.5)
    teacher.prepare(loader)
    move_layernorms(clip_model)
    teacher.step()
    restored = Teacher(clip_model, classifier, mode, decay=0.5)
    restored.load_state_dict(copy.deepcopy(teacher.state_dict()))
    assert torch.equal(restored.labels(batch), teacher.labels(batch))
    move_layernorms(clip_model)
    for each in (teacher, restored):
        each.step()
    assert torch.equal(restored.labels(batch), teacher.labels(batch))
