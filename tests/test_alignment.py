"""The alignment of the stages' features: its closed form, its place in the model and in checkpoints."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trainers.LaFTer_multilayer import MultiLayerLaFTer
from trainers.state import load_tuned, tuned_state
from trainers.statistics import Moments, fit_alignment, solve_alignment
from utils.errors import InputError


def moments_of(x: torch.Tensor, y: torch.Tensor) -> Moments:
    moments = Moments()
    moments.update(x, y)
    return moments


def apply(maps: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return maps[:, :1] + x @ maps[:, 1:]


def test_a_linear_relation_is_found_and_what_is_final_stays():
    y = torch.randn(200, 6)
    x = torch.stack([(y - 1) @ torch.linalg.inv(torch.randn(6, 6) + 3 * torch.eye(6)), y])
    maps = solve_alignment(moments_of(x, y), ridge=1e-9)
    torch.testing.assert_close(apply(maps, x)[0], y, atol=1e-3, rtol=1e-3)
    for ridge in (1e-9, 1.0):
        kept = solve_alignment(moments_of(x, y), ridge)[1]
        torch.testing.assert_close(kept, torch.cat([torch.zeros(1, 6), torch.eye(6)]), atol=1e-5, rtol=0)


def test_the_ridge_by_hand():
    """One dimension, y = 3x + 2 and Var(x) = 4: D = (12 − 4) / (4 + 4) = 1 with a ridge of 1, so the slope is 2."""
    x = torch.tensor([[[2.0], [-2.0]]]) + 5
    maps = solve_alignment(moments_of(x, 3 * x[0] + 2), ridge=1.0)
    assert maps.flatten().tolist() == pytest.approx([17 - 2 * 5, 2.0])  # the mean 5 goes to the mean 17


def test_an_overwhelming_ridge_only_shifts():
    x, y = torch.randn(2, 50, 4), torch.randn(50, 4) + 3
    maps = solve_alignment(moments_of(x, y), ridge=1e9)
    torch.testing.assert_close(maps[:, 1:], torch.eye(4).expand(2, 4, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(apply(maps, x).mean(1), y.mean(0).expand(2, 4), atol=1e-5, rtol=1e-5)


@pytest.fixture
def student(make_clip, make_cfg):
    return MultiLayerLaFTer(make_clip(8), torch.randn(5, 32), 5, make_cfg())


def test_the_stages_come_closer_to_the_final_features(student):
    images = torch.randn(150, 3, 32, 32)
    loader = [{"weak": part} for part in images.split(40)]
    visual = student.clip.visual
    with torch.no_grad():
        final, outputs = visual.forward_multi_stage_prompts(images)
        plain = visual.project(student.nga(outputs))
        student.alignment = fit_alignment(student, loader, ridge=0.01)
        aligned = student.align(plain)
    before, after = (F.mse_loss(x, final.expand_as(x), reduction="none").mean((1, 2)) for x in (plain, aligned))
    assert (after[:-1] < 0.7 * before[:-1]).all()
    assert after[-1] <= before[-1] + 1e-6


def test_the_model_reads_its_stages_through_the_maps(student, images):
    with torch.no_grad():
        plain = student(images)
        student.alignment = torch.cat([torch.full((4, 1, 32), 0.5), 2 * torch.eye(32).expand(4, 32, 32)], 1)
        aligned = student(images)
    torch.testing.assert_close(aligned.stage_features, 0.5 + 2 * plain.stage_features)
    torch.testing.assert_close(aligned.logits, student.adapter(0.5 + 2 * plain.stage_features).mul(
        student.fusion_weights()[:, None, None]).sum(0))
    assert "alignment" not in student.parameter_kinds() and not student.alignment.requires_grad


def test_a_checkpoint_holds_the_maps(student, make_clip, make_cfg, images):
    other = MultiLayerLaFTer(make_clip(8), torch.randn(5, 32), 5, make_cfg())
    assert "alignment" not in tuned_state(student)
    student.alignment = torch.randn(4, 33, 32)
    with pytest.raises(InputError, match="does not fit the model: alignment"):
        load_tuned(other, tuned_state(student))
    other.alignment = torch.zeros(4, 33, 32)
    load_tuned(other, tuned_state(student))
    with torch.no_grad():
        torch.testing.assert_close(other(images).logits, student(images).logits)
