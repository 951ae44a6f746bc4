"""The statistics: closed forms of CKA, agreement and gradient norms, and that they stand in a run's rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainers.build import training_settings
from trainers.LaFTer import LaFTer, Prediction
from trainers.LaFTer_multilayer import MultiLayerLaFTer
from trainers.statistics import Moments, StageStatistics, TrainingStatistics, model_statistics, summarise_training
from utils.data.items import UNKNOWN
from utils.utils import setup_lafter_training_utils


def gather(x: torch.Tensor, y: torch.Tensor, batch: int = 7) -> Moments:
    moments = Moments()
    for start in range(0, len(y), batch):
        moments.update(x[:, start:start + batch], y[start:start + batch])
    return moments


# --- moments and CKA --------------------------------------------------------------------------------------------------

def test_moments_by_batches_are_those_of_the_whole():
    x, y = 5 + torch.randn(2, 30, 4), torch.randn(30, 3)
    moments = gather(x, y)
    (mean_x, mean_y), (xx, xy, yy) = moments.means(), moments.covariances()
    torch.testing.assert_close(mean_x, x.double().mean(1))
    torch.testing.assert_close(mean_y, y.double().mean(0))
    for stage in range(2):
        whole = torch.cov(torch.cat([x[stage], y], 1).double().t(), correction=0)
        torch.testing.assert_close(xx[stage], whole[:4, :4])
        torch.testing.assert_close(xy[stage], whole[:4, 4:])
        torch.testing.assert_close(yy, whole[4:, 4:])


def test_cka_does_not_see_rotation_scale_or_shift():
    y = torch.randn(40, 5)
    rotation = torch.linalg.qr(torch.randn(5, 5)).Q
    x = torch.stack([y, 3 * y @ rotation - 7])
    assert gather(x, y).linear_cka() == pytest.approx([1, 1])


def test_cka_by_hand():
    """x has the columns a and b, y the column a, all orthogonal and centred with Σa² = 4 and Σb² = 16: the cross term
    is 4² = 16, the norms are √(4² + 16²) and 4."""
    a, b = torch.tensor([1., 1, -1, -1]), 2 * torch.tensor([1., -1, 1, -1])
    constant = torch.full((4, 2), 3.0)
    x = torch.stack([torch.stack([a, b], 1), torch.stack([b, b], 1), constant])
    assert gather(x, a[:, None]).linear_cka() == pytest.approx([16 / (4 * (16 + 256) ** 0.5), 0, 0])


# --- stages -----------------------------------------------------------------------------------------------------------

def one_hot(choices: list[list[int]]) -> torch.Tensor:
    """Features [stages, images, 3] that an identity head classifies as `choices`."""
    return torch.nn.functional.one_hot(torch.tensor(choices), 3).float()


def test_stage_statistics_by_hand():
    features = one_hot([[0, 0, 0, 0, 0], [0, 1, 0, 1, 2], [0, 1, 2, 1, 2]])
    labels = torch.tensor([0, 1, 2, 0, UNKNOWN])
    stages = StageStatistics()
    for part in (slice(0, 2), slice(2, 5)):
        stages.update(Prediction(torch.empty(0), (), features[:, part]), lambda x: x, labels[part])
    result = stages.result()
    assert result["stage_top1"] == [2 / 4, 2 / 4, 3 / 4]  # the image without a label does not count
    assert result["stage_agreement"] == pytest.approx([2 / 5, 4 / 5])
    assert result["stage_cka"] == pytest.approx([0, gather(features, features[2]).linear_cka()[1], 1])


def test_without_labels_or_stages_nothing_is_claimed():
    stages = StageStatistics()
    stages.update(Prediction(torch.zeros(2, 3)), lambda x: x, torch.tensor([0, 1]))
    assert stages.result() == {}
    stages.update(Prediction(torch.empty(0), (), one_hot([[0, 1], [0, 2]])), lambda x: x,
                  torch.tensor([UNKNOWN, UNKNOWN]))
    assert set(stages.result()) == {"stage_agreement", "stage_cka"}


def test_the_stages_of_a_model_are_what_its_loss_sees(make_clip, make_cfg, images):
    model = MultiLayerLaFTer(make_clip(12), torch.randn(5, 32), 5, make_cfg())
    prediction = model(images)
    stages = StageStatistics()
    labels = torch.arange(len(images)) % 5
    stages.update(prediction, model.adapter, labels)
    expected = [(logits.argmax(1) == labels).float().mean().item() for logits in prediction.stage_logits]
    assert stages.result()["stage_top1"] == pytest.approx(expected)
    assert stages.result()["stage_cka"][-1] == pytest.approx(1)


# --- gradients and parameters ----------------------------------------------------------------------------------------

def test_gradient_norms_are_means_over_the_steps(make_clip, make_cfg):
    model = MultiLayerLaFTer(make_clip(8), torch.randn(5, 32), 5, make_cfg())
    statistics = TrainingStatistics(model)
    for length in (3.0, 16.0, torch.inf):  # a step that overflowed does not count
        for stage in (2, 3):
            prompt = model.multi_prompts[stage]
            prompt.grad = torch.zeros_like(prompt)
            prompt.grad[0, 0, :2] = torch.tensor([0.6, 0.8]) * length * stage
        model.adapter.weight.grad = torch.full_like(model.adapter.weight, length / 160 ** 0.5)
        statistics.add_step(0, 0, {}, statistics.gradient_norms())
    statistics.fetch()
    row = summarise_training(statistics.totals(), model)
    norms = row["gradient_norms"]
    assert row["grad_norm"] == pytest.approx(9.5 * (2 ** 2 + 3 ** 2 + 1) ** 0.5) and row["skipped_steps"] == 1
    assert norms["prompts"][:2] == [None, None]
    assert norms["prompts"][2:] == pytest.approx([2 * 9.5, 3 * 9.5])  # (3 + 16) / 2 = 9.5
    assert norms["adapter"] == pytest.approx([9.5])
    assert norms["layernorm"] == [None] * 4 and norms["fusion"] == [None]


def test_gradient_norms_of_a_real_step(make_clip, make_cfg, images):
    cfg = make_cfg()
    model = MultiLayerLaFTer(make_clip(8), torch.randn(5, 32), 5, cfg)
    setup_lafter_training_utils(training_settings(cfg), model)
    nn.functional.cross_entropy(model(images).logits, torch.arange(len(images)) % 5).backward()
    statistics = TrainingStatistics(model)
    statistics.add_step(0, 0, {}, statistics.gradient_norms())
    statistics.fetch()
    norms = summarise_training(statistics.totals(), model)["gradient_norms"]
    assert norms["prompts"] == pytest.approx([prompt.grad.norm().item() for prompt in model.multi_prompts])
    squares = sum(value ** 2 for values in norms.values() for value in values)
    every = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    assert squares == pytest.approx(torch.cat(every).square().sum().item(), rel=1e-5)  # each parameter in one group


@pytest.mark.parametrize("trainer", [LaFTer, MultiLayerLaFTer])
def test_the_prompts_lengths(make_clip, make_cfg, trainer):
    cfg = make_cfg({"PROMPT_NUM": 3, "MULTI_LAYER_PROMPT.NUM": 3}, trainer.__name__)
    model = trainer(make_clip(8), None, 5, cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "prompt" in name:
                parameter.copy_(torch.tensor([1.0, 2.0, 6.0])[None, :, None] / 8)  # width 64: lengths 1, 2, 6
    result = model_statistics(model)
    stages = 1 if trainer is LaFTer else 4
    assert result["prompt_norms"] == pytest.approx([3.0] * stages)
    assert ("sigma" in result) == ("stage_weights" in result) == (trainer is MultiLayerLaFTer)
