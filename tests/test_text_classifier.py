"""Phase 1: the classifier that is learnt from texts alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trainers.text_classifier import train_text_classifier
from trainers.texts import TextFeatures
from utils.config import load_config


@pytest.fixture
def configure():
    return lambda *options: load_config("folder", options=options)


def toy_texts(seed: int, per_class: int = 20) -> TextFeatures:
    """Unit features of three classes around three random directions."""
    centres = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3).repeat_interleave(per_class)
    noise = torch.randn(len(labels), 32, generator=torch.Generator().manual_seed(seed))
    return TextFeatures(F.normalize(centres[labels] + 0.8 * noise, dim=-1), labels, 100.0)


def test_the_classifier_learns_what_separates_the_texts(configure):
    cfg = configure("TEXT.EPOCHS", "60", "TEXT.LR", "0.01")
    weight = train_text_classifier(toy_texts(1), 3, cfg, torch.device("cpu"))
    assert weight.shape == (3, 32) and not weight.requires_grad
    for texts in (toy_texts(1), toy_texts(2)):  # the second were never seen
        assert ((texts.features @ weight.t()).argmax(1) == texts.labels).float().mean() > 0.97


def test_without_a_step_the_classifier_is_the_class_means(configure):
    """A random weight would label the images at random."""
    weight = train_text_classifier(toy_texts(1), 3, configure("TEXT.EPOCHS", "0"), torch.device("cpu"))
    torch.testing.assert_close(weight, toy_texts(1).class_means(3))
    assert ((toy_texts(2).features @ weight.t()).argmax(1) == toy_texts(2).labels).float().mean() > 0.97


def test_the_classifier_depends_on_the_seed_alone(configure):
    def train(*options):
        return train_text_classifier(toy_texts(1), 3, configure("TEXT.EPOCHS", "5", *options), torch.device("cpu"))

    first = train()
    torch.rand(17)
    assert torch.equal(train(), first)
    assert not torch.allclose(train("SEED", "2"), first)
    assert not torch.allclose(train("TEXT.NOISE_STD", "0"), first)  # the noise is there
    assert not torch.allclose(train("TEXT.LABEL_SMOOTHING", "0"), first)
