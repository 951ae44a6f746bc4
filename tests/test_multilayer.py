"""MultiLayerLaFTer: NGA, the fusion of the stages, their consistency, and what trains in which phase."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clip.model import CLIP
from tests.conftest import Batches
from trainers.build import count_parameters, training_settings
from trainers.evaluation import predict
from trainers.LaFTer_multilayer import MultiLayerLaFTer, NeighborhoodGaussianAggregation, fusion_start
from utils.config import load_config
from utils.errors import InputError
from utils.losses import MultiStageConsistencyLoss
from utils.utils import setup_lafter_training_utils

CLASSES = 5
PHASES = {"MULTI_LAYER_PROMPT.PROGRESSIVE_TRAINING": True}


@pytest.fixture
def make_student(make_clip, make_cfg):
    """make_student({"KEY": value}, layers=…, stages=…) → (student, configuration)."""

    def make(values=None, layers: int = 12, stages=None):
        cfg = make_cfg({"OPTIM.LR_SCHEDULER": "none", **(values or {})})
        clip_model = make_clip(layers, stages=stages)
        torch.manual_seed(5)
        return MultiLayerLaFTer(clip_model, torch.randn(CLASSES, 32), CLASSES, cfg), cfg

    return make


def take_a_step(model: MultiLayerLaFTer, cfg, images: torch.Tensor, epoch: int) -> tuple[set[str], set[str]]:
    """(names of the parameters and buffers that a step of the optimiser changed, those of all)."""
    optimizer, _, criterion = setup_lafter_training_utils(training_settings(cfg), model)
    model.start_epoch(epoch)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    prediction = model(images)
    loss = criterion(prediction.logits, torch.arange(len(images)) % CLASSES)
    if len(prediction.stage_logits) > 1:
        loss = loss + MultiStageConsistencyLoss(0.1)(prediction.stage_logits)
    loss.backward()
    optimizer.step()
    return {name for name, tensor in tensors.items() if not torch.equal(tensor, before[name])}, set(tensors)


# --- size ---------------------------------------------------------------------------------------------------------

def test_vit_b32_gets_49160_new_parameters(make_cfg):
    with torch.device("meta"):
        clip_model = CLIP(512, 224, 12, 768, 32, 77, 49_408, 512, 8, 12)
    model = MultiLayerLaFTer(clip_model, None, 10, make_cfg())
    counts = count_parameters(model)
    assert counts == {"prompts": 4 * 16 * 768, "fusion": 4 + 4, "adapter": 10 * 512,
                      "layernorm": (2 * 12 + 2) * 2 * 768, "total": 151_277_313 + 49_160 + 10 * 512}
    new = [p for name, p in model.named_parameters() if not name.startswith(("clip.", "adapter."))]
    assert sum(parameter.numel() for parameter in new) == 49_160


# --- NGA ----------------------------------------------------------------------------------------------------------

def test_nga_weights_by_hand():
    nga = NeighborhoodGaussianAggregation([4, 4, 3, 1])
    third, fourth = nga.weights()[2][8:11], nga.weights()[3][11:]
    assert nga.weights().count_nonzero() == 12 and nga.weights().shape == (4, 12)  # each layer in its stage alone
    assert third.tolist() == pytest.approx([0.078, 0.348, 0.574], abs=5e-4)
    total = math.exp(-2) + math.exp(-0.5) + 1
    assert third.tolist() == pytest.approx([math.exp(-2) / total, math.exp(-0.5) / total, 1 / total], rel=1e-6)
    assert fourth.tolist() == [1.0]
    assert nga.sigma.tolist() == [1.0] * 4


@pytest.mark.parametrize("kind, expected", [("uniform", [1 / 3] * 3), ("last", [0.0, 0.0, 1.0])])
def test_nga_kinds(kind, expected):
    nga = NeighborhoodGaussianAggregation([3, 1], kind=kind)
    assert nga.weights()[0].tolist() == pytest.approx([*expected, 0.0])
    assert nga.weights()[1].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_nga_fuses_each_stage_and_lets_one_layer_pass():
    outputs = [[torch.randn(2, 7) for _ in range(depth)] for depth in (3, 1)]
    fused = NeighborhoodGaussianAggregation([3, 1], sigma=0.8)(outputs)
    scores = [math.exp(-k ** 2 / (2 * 0.8 ** 2)) for k in (2, 1, 0)]
    assert torch.allclose(fused[0], sum(s / sum(scores) * x for s, x in zip(scores, outputs[0])), atol=1e-6)
    assert torch.equal(fused[1], outputs[1][0])


@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.5])
def test_ngas_gradient_is_the_closed_form(sigma):
    """dw_l/dσ = w_l (k_l² − Σ_j w_j k_j²) / σ³ with k_l = d − l; by the chain rule dσ/d(log σ) = σ."""
    outputs = [torch.randn(2, 7, dtype=torch.float64) for _ in range(4)]
    direction = torch.randn(2, 7, dtype=torch.float64)
    nga = NeighborhoodGaussianAggregation([4, 1], sigma).double()
    with torch.no_grad():
        nga.log_sigma.fill_(math.log(sigma))  # in full precision
    (nga([outputs, outputs[:1]])[0] * direction).sum().backward()
    distance = [3, 2, 1, 0]
    scores = [math.exp(-k ** 2 / (2 * sigma ** 2)) for k in distance]
    weights = [score / sum(scores) for score in scores]
    mean = sum(w * k ** 2 for w, k in zip(weights, distance))
    by_sigma = sum(w * (k ** 2 - mean) / sigma ** 3 * (x * direction).sum().item()
                   for w, k, x in zip(weights, distance, outputs))
    assert nga.log_sigma.grad.tolist() == pytest.approx([by_sigma * sigma, 0.0], rel=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_sigma_stays_positive_after_large_steps(sign):
    nga = NeighborhoodGaussianAggregation([4, 4, 3, 1])
    optimizer = torch.optim.AdamW(nga.parameters(), lr=1.0, weight_decay=0.0)
    for _ in range(20):
        optimizer.zero_grad()
        (sign * nga.sigma.log().sum()).backward()
        optimizer.step()
    assert (nga.sigma > 0).all() and nga.sigma.isfinite().all()
    assert (nga.sigma.log().abs() > 10).all()  # the steps were large
    for weights, last in zip(nga.weights(), (3, 7, 10, 11)):
        assert weights.sum().item() == pytest.approx(1)
        assert weights.argmax() == last or sign < 0


# --- fusion -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stages, last", [(4, 0.97), (3, 0.5), (2, 0.8)])
def test_fusion_starts_at_its_share(stages, last):
    weights = fusion_start(stages, last).softmax(0)
    assert weights.tolist() == pytest.approx([(1 - last) / (stages - 1)] * (stages - 1) + [last])
    assert fusion_start(1, last).softmax(0).tolist() == [1.0]


def test_the_student_starts_with_the_last_stage_dominant(make_student):
    model, cfg = make_student()
    assert model.fusion_weights().tolist() == pytest.approx([0.01, 0.01, 0.01, 0.97])
    assert model.fusion_weights().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_fusion_start_without_a_finite_logit_is_refused(value):
    with pytest.raises(InputError, match="MULTI_LAYER_PROMPT.FUSION_START"):
        load_config(flags={"DATASET.NAME": "folder", "MULTI_LAYER_PROMPT.FUSION_START": value})


def compare_with_the_plain_encoder(clip_model, cfg) -> tuple[float, float]:
    """Accuracy on noisy images of four patterns: of the plain encoder, of the untrained student without prompts."""
    images = (torch.randn(4, 1, 3, 32, 32) + torch.randn(4, 100, 3, 32, 32)).flatten(0, 1)
    labels = torch.arange(4).repeat_interleave(100)
    features = clip_model.encode_image(images)
    normalised = F.normalize(features, dim=-1)
    classifier = F.normalize(normalised.view(4, 100, -1).mean(1) - normalised.mean(0), dim=-1)
    model = MultiLayerLaFTer(clip_model, classifier, 4, cfg)
    stages = []
    model.adapter.register_forward_hook(lambda module, args, output: stages.append(output))
    model.active_stages = ()  # takes all prompts out
    logits = model(images).logits
    assert torch.allclose(stages[0][-1], features @ classifier.t(), atol=1e-5)  # one layer: NGA lets it pass
    assert torch.allclose(logits, torch.einsum("s,sbc->bc", model.fusion_weights(), stages[0]))
    predictions = (normalised @ classifier.t()).argmax(1), logits.argmax(1)
    return tuple((predicted == labels).float().mean().item() for predicted in predictions)


def test_without_prompts_an_untrained_student_predicts_as_the_plain_encoder(make_clip, make_cfg):
    pairs = [compare_with_the_plain_encoder(make_clip(12, seed=seed), make_cfg()) for seed in range(4)]
    plain, student = (sum(column) / len(pairs) for column in zip(*pairs))
    assert 0.8 < plain < 0.97  # some images are hard
    assert abs(student - plain) <= 0.01


# --- forward ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", ["append", "replace"])
def test_the_forward_is_nga_projection_head_and_fusion(make_student, images, mode):
    model, cfg = make_student({"MULTI_LAYER_PROMPT.MODE": mode})
    nn.init.normal_(model.nga.log_sigma)
    nn.init.normal_(model.stage_fusion)
    visual = model.clip.visual
    prediction = model(images)
    _, outputs = visual.forward_multi_stage_prompts(images, list(model.multi_prompts), mode)
    expected = []
    for layers, sigma in zip(outputs, model.nga.log_sigma.exp().tolist()):
        scores = [math.exp(-(len(layers) - 1 - i) ** 2 / (2 * sigma ** 2)) for i in range(len(layers))]
        fused = sum(score / sum(scores) * x for score, x in zip(scores, layers))
        expected.append(visual.ln_post(fused) @ visual.proj @ model.adapter.weight.t())
    assert torch.allclose(torch.stack(list(prediction.stage_logits)), torch.stack(expected), atol=1e-4)
    shares = model.stage_fusion.softmax(0)
    assert torch.allclose(prediction.logits, sum(share * x for share, x in zip(shares, expected)), atol=1e-4)


def test_consistencys_gradient_reaches_the_prompts_of_the_shallower_stages(make_student, images):
    model, cfg = make_student()
    MultiStageConsistencyLoss(0.1)(model(images).stage_logits).backward()
    for prompt in model.multi_prompts[:3]:
        assert prompt.grad.abs().max() > 0
    # the deepest stage is a target only
    assert model.multi_prompts[3].grad is None or not model.multi_prompts[3].grad.any()


@pytest.mark.parametrize("epoch", [0, 2, 3, 6])
def test_training_and_evaluation_give_the_same_logits(make_student, images, epoch):
    model, cfg = make_student()
    take_a_step(model, cfg, images, epoch)
    trained = model.train()(images).logits
    assert trained.requires_grad
    assert torch.equal(trained, model.eval()(images).logits)
    evaluated = predict(model, Batches({"weak": images, "label": torch.zeros(8)}))
    assert torch.equal(evaluated["probabilities"], trained.softmax(-1))


# --- phases -------------------------------------------------------------------------------------------------------

JOINED = [(3,), (3,), (2, 3), (1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)]  # by epoch, by default


def declared_names(stages: tuple[int, ...]) -> set[str]:
    """What trains with these stages, for 12 layers in the default stages, written out."""
    blocks = {0: range(4), 1: range(4, 8), 2: range(8, 11), 3: range(11, 12)}
    norms = [f"transformer.resblocks.{layer}.{norm}" for stage in stages for layer in blocks[stage]
             for norm in ("ln_1", "ln_2")] + ["ln_post"]
    names = {"adapter.weight", *(f"multi_prompts.{stage}" for stage in stages)}
    if len(stages) == 4:
        norms.append("ln_pre")
        names |= {"nga.log_sigma", "stage_fusion"}
    return names | {f"clip.visual.{norm}.{leaf}" for norm in norms for leaf in ("weight", "bias")}


@pytest.mark.parametrize("epoch", range(7))
def test_a_step_changes_exactly_what_the_phase_declares(make_student, images, epoch):
    model, cfg = make_student(PHASES)
    changed, everything = take_a_step(model, cfg, images, epoch)
    assert model.active_stages == JOINED[epoch]
    assert changed == model.phase_parameters() == declared_names(JOINED[epoch])
    assert everything > changed


def test_phases_carry_on_from_one_to_the_next(make_student, images):
    """With one optimiser over all epochs, as in a run: no leftover gradient or decay touches a later stage."""
    model, cfg = make_student(PHASES)
    optimizer, _, criterion = setup_lafter_training_utils(training_settings(cfg), model)
    for epoch in range(7):
        model.start_epoch(epoch)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        criterion(model(images).logits, torch.arange(8) % CLASSES).backward()
        optimizer.step()
        optimizer.zero_grad()
        changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
        assert changed == declared_names(JOINED[epoch]), f"epoch {epoch}"


@pytest.mark.parametrize("epoch, first", [(0, 11), (2, 8), (3, 4), (4, 0)])
def test_blocks_below_the_shallowest_active_stage_run_without_autograd(make_student, images, epoch, first):
    model, cfg = make_student(PHASES)
    model.start_epoch(epoch)
    recorded = []
    for block in model.clip.visual.transformer.resblocks:
        block.register_forward_hook(lambda module, args, output: recorded.append(output.requires_grad))
    model(images)
    assert recorded == [layer >= first for layer in range(12)]


def test_without_progressive_training_all_stages_train_from_the_start(make_student, images):
    model, cfg = make_student()
    changed, _ = take_a_step(model, cfg, images, 0)
    assert changed == declared_names((0, 1, 2, 3))


@pytest.mark.parametrize("epoch", [0, 2, 6])
def test_twelve_stages_of_one_layer_train_their_own_prompts(make_student, images, epoch):
    model, cfg = make_student(PHASES, stages=[[layer] for layer in range(12)])
    changed, _ = take_a_step(model, cfg, images, epoch)
    prompts = {name for name in changed if name.startswith("multi_prompts.")}
    assert prompts == {f"multi_prompts.{stage}" for stage in model.active_stages}


@pytest.mark.parametrize("values, stages", [
    ({"MULTI_LAYER_PROMPT.NGA": "uniform"}, None), ({"MULTI_LAYER_PROMPT.NGA": "last"}, None),
    ({}, [[layer] for layer in range(12)]), ({}, [list(range(12))]),
])
def test_what_cannot_learn_is_not_declared(make_student, images, values, stages):
    """σ without effect (no Gaussian, or one layer per stage) and the fusion of a single stage never change."""
    model, cfg = make_student(values, stages=stages)
    changed, _ = take_a_step(model, cfg, images, 6)
    assert changed == model.phase_parameters() == set(model.parameter_kinds())


def test_fusion_learns_at_a_tenth_of_the_rate(make_student):
    model, cfg = make_student()
    optimizer, *_ = setup_lafter_training_utils(training_settings(cfg), model)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"prompts": 5e-4, "layernorm": 5e-4, "adapter": 25e-4, "fusion": 5e-5})


# --- fusion by confidence -------------------------------------------------------------------------------------------

def test_fusion_by_confidence_by_hand(make_student):
    """Four stages of equal weights, two classes, logits 0 and ln p/(1−p): a stage's confidence is max(p, 1−p)."""
    model, _ = make_student({"MULTI_LAYER_PROMPT.FUSION": "confidence", "MULTI_LAYER_PROMPT.FUSION_START": 0.25})
    shares = torch.tensor([0.9, 0.5, 0.2, 0.6])
    odds = (shares / (1 - shares)).log()
    fused = model.fuse(torch.stack([torch.zeros(4), odds], 1)[:, None])
    confidence = torch.tensor([0.9, 0.5, 0.8, 0.6])
    assert fused.flatten().tolist() == pytest.approx([0, (confidence @ odds / confidence.sum()).item()])


def test_equal_confidence_leaves_the_learned_weights(make_student):
    logits = torch.randn(1, 6, 5).expand(4, 6, 5)
    shifted = logits + torch.arange(4.0)[:, None, None]  # the same probabilities, other logits
    learned, confident = (make_student({"MULTI_LAYER_PROMPT.FUSION": kind})[0] for kind in ("learned", "confidence"))
    torch.testing.assert_close(confident.fuse(shifted), learned.fuse(shifted))
    fused = confident.fuse(shifted)
    fused.sum().backward()
    assert confident.stage_fusion.grad.abs().sum() > 0  # the weights still learn
