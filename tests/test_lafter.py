"""LaFTer's phase 2 against a plain restatement of the published method, and what its steps change."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import Batches, train_on
from trainers.build import build_student, build_training, count_parameters
from trainers.evaluation import predict
from trainers.LaFTer import LaFTer
from trainers.objective import Objective
from trainers.text_classifier import TextPhase
from trainers.training import choose_labels

CLASSES, PROMPTS, STEPS, BATCH = 4, 50, 5, 8
CLASSNAMES = [f"class {label}" for label in range(CLASSES)]


@pytest.fixture
def clip_model(make_clip):
    return make_clip(12)


@pytest.fixture
def classifier(clip_model) -> torch.Tensor:
    """Random rows [classes, embed_dim], blind to what all images share, so that labels differ by narrow margins."""
    common = F.normalize(clip_model.encode_image(torch.randn(200, 3, 32, 32)).mean(0), dim=0)
    rows = torch.randn(CLASSES, 32)
    return rows - (rows @ common)[:, None] * common


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    """Five batches with independent weak and strong views."""
    return [{"weak": torch.randn(BATCH, 3, 32, 32), "strong": torch.randn(BATCH, 3, 32, 32),
             "label": torch.full((BATCH,), -1), "index": torch.arange(BATCH)} for _ in range(STEPS)]


class PlainLaFTer:
    """The published method in plain lines, on the modules of its own copy of a CLIP."""

    def __init__(self, clip_model, classifier, prompts, lr, decay_norms=False):
        self.visual = copy.deepcopy(clip_model.visual)
        self.classifier = classifier.clone()
        self.head, self.prompts = classifier.clone().requires_grad_(), prompts.clone().requires_grad_()
        norms = [module for name, module in self.visual.named_modules() if name.split(".")[-1].startswith("ln_")]
        weights, biases = ([getattr(module, leaf).requires_grad_() for module in norms] for leaf in ("weight", "bias"))
        self.optimizer = torch.optim.AdamW([{"params": [self.head, self.prompts], "weight_decay": 0.01},
                                            {"params": weights, "weight_decay": 0.01 if decay_norms else 0.0},
                                            {"params": biases, "weight_decay": 0.0}], lr=lr)

    def encode(self, images, prompts=None):
        visual = self.visual
        x = visual.conv1(images)
        x = x.reshape(len(x), x.shape[1], -1).permute(0, 2, 1)
        x = torch.cat([visual.class_embedding.repeat(len(x), 1, 1), x], dim=1) + visual.positional_embedding
        x = visual.ln_pre(x)
        if prompts is not None:
            x = torch.cat([x[:, :1], prompts.repeat(len(x), 1, 1), x[:, 1:]], dim=1)
        for block in visual.transformer.resblocks:
            x = block(x)
        return visual.ln_post(x[:, 0]) @ visual.proj

    def step(self, weak, strong) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            features = self.encode(weak)
            labels = (features / features.norm(dim=1, keepdim=True) @ self.classifier.t()).argmax(1)
        logits = self.encode(strong, self.prompts) @ self.head.t()
        target = torch.full_like(logits, 0.1 / CLASSES)  # label smoothing
        target[torch.arange(len(labels)), labels] += 0.9
        loss = -(target * logits.log_softmax(1)).sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach(), labels


def published_prompts(seed: int) -> torch.Tensor:
    """[1, 50, 64] as the original program starts them, whatever the backbone's patch: here it is 8."""
    torch.manual_seed(seed)
    torch.nn.Linear(32, CLASSES, bias=False)  # the head is made first
    bound = math.sqrt(6 / (3 * 16 * 16 + 64))
    return (2 * torch.rand(1, PROMPTS, 64) - 1) * bound


@pytest.mark.parametrize("settings", ["tuned", "published"])
@pytest.mark.parametrize("lr", [5e-4, 5e-3])
def test_phase_2_is_the_published_method(clip_model, classifier, batches, make_cfg, lr, settings):
    published = settings == "published"
    values = {"OPTIM.LR": lr} if published else {"OPTIM.LR": lr, "OPTIM.LR_SCHEDULER": "none"}
    cfg = make_cfg(values, "LaFTer", settings if published else "")
    model = build_student(cfg, clip_model, classifier, CLASSES, None)
    prompts = published_prompts(cfg.SEED) if published else model.prompt_embeddings.detach()
    torch.testing.assert_close(model.prompt_embeddings.detach(), prompts, rtol=0, atol=1e-6)
    plain = PlainLaFTer(clip_model, classifier, prompts, lr, decay_norms=published)
    training, criterion = build_training(cfg, clip_model, model, TextPhase(classifier), {})
    objective = Objective(criterion, cfg, CLASSNAMES)
    seen = []
    for batch in batches:
        labels = choose_labels(training.teacher, batch)
        row = train_on(training, objective, cfg, batch)
        expected_loss, expected_labels = plain.step(batch["weak"], batch["strong"])
        assert set(row) == {"loss", "cross_entropy", "grad_norm", "gradient_norms"}
        assert torch.equal(labels, expected_labels)
        assert row["loss"] == row["cross_entropy"] == pytest.approx(expected_loss.item(), abs=1e-5)
        seen.append((expected_loss.item(), labels))
    assert len(torch.cat([labels for _, labels in seen]).unique()) > 1
    assert torch.allclose(model.adapter.weight, plain.head, atol=1e-5)
    assert torch.allclose(model.prompt_embeddings, plain.prompts, atol=1e-4)
    theirs = dict(plain.visual.named_parameters())
    for name, kind in model.parameter_kinds().items():
        if kind == "layernorm":
            ours, expected = model.get_parameter(name), theirs[name.removeprefix("clip.visual.")]
            assert torch.allclose(ours, expected, rtol=0, atol=1e-6), name


def test_the_comparison_would_notice_a_difference(clip_model, classifier, batches):
    """Five steps differ by more than the tolerance where weight decay or the shared LayerNorms are left out."""
    prompts = torch.randn(1, PROMPTS, 64)
    plain, other, still = (PlainLaFTer(clip_model, classifier, prompts, 5e-3) for _ in range(3))
    for group in other.optimizer.param_groups:
        group["weight_decay"] = 0.0
    for group in still.optimizer.param_groups[1:]:
        group["lr"] = 0.0
    losses = torch.tensor([[run.step(batch["weak"], batch["strong"])[0] for batch in batches]
                           for run in (plain, other, still)])
    assert losses[0, 0] == losses[1, 0] == losses[2, 0]
    assert ((losses[0] - losses[1:]).abs().max(1).values > 2e-5).all()


def test_a_step_changes_prompts_head_and_layernorms_and_nothing_else(clip_model, classifier, batches, make_cfg):
    cfg = make_cfg(trainer="LaFTer")
    model = LaFTer(clip_model, classifier, CLASSES, cfg)
    training, criterion = build_training(cfg, clip_model, model, TextPhase(classifier), {})
    model.start_epoch(0)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    train_on(training, Objective(criterion, cfg, CLASSNAMES), cfg, batches[0])
    norms = [f"transformer.resblocks.{layer}.{norm}" for layer in range(12) for norm in ("ln_1", "ln_2")]
    expected = {"prompt_embeddings", "adapter.weight"}
    expected |= {f"clip.visual.{norm}.{leaf}" for norm in (*norms, "ln_pre", "ln_post") for leaf in ("weight", "bias")}
    assert {name for name, tensor in tensors.items() if not torch.equal(tensor, before[name])} == expected
    assert set(model.parameter_kinds()) == expected
    assert torch.equal(training.teacher.classifier, classifier)  # the pseudo-labeller is a frozen copy


def test_learning_rates_and_decay_of_the_published_recipe(clip_model, classifier, make_cfg):
    cfg = make_cfg({"OPTIM.LR_SCHEDULER": "none"}, trainer="LaFTer")
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.PROMPT_NUM) == (5e-4, 50, 50, 50)
    model = LaFTer(clip_model, classifier, CLASSES, cfg)
    training, criterion = build_training(cfg, clip_model, model, TextPhase(classifier), {})
    groups = {id(p): group for group in training.optimizer.param_groups for p in group["params"]}
    for name in model.parameter_kinds():
        parameter = model.get_parameter(name)
        assert groups[id(parameter)]["lr"] == 5e-4
        assert groups[id(parameter)]["weight_decay"] == (0.0 if parameter.ndim == 1 else 0.01)
    assert isinstance(training.optimizer, torch.optim.AdamW) and criterion.label_smoothing == 0.1


def test_parameters_by_kind(clip_model, make_cfg):
    model = LaFTer(clip_model, None, CLASSES, make_cfg(trainer="LaFTer"))
    total = sum(p.numel() for p in clip_model.parameters()) + PROMPTS * 64 + CLASSES * 32
    assert count_parameters(model) == {"prompts": PROMPTS * 64, "adapter": CLASSES * 32,
                                       "layernorm": (2 * 12 + 2) * 2 * 64, "total": total}


def test_training_and_evaluation_give_the_same_logits(clip_model, classifier, images, make_cfg):
    model = LaFTer(clip_model, classifier, CLASSES, make_cfg(trainer="LaFTer"))
    count_parameters(model)  # decides what has gradients
    trained = model.train()(images).logits
    assert trained.requires_grad
    assert torch.equal(trained, model.eval()(images).logits)
    evaluated = predict(model, Batches({"weak": images, "label": torch.zeros(8)}))
    assert torch.equal(evaluated["probabilities"], trained.softmax(-1))


def test_features_are_not_normalised_and_prompts_stay_in_all_layers(clip_model, classifier, images, make_cfg):
    model = LaFTer(clip_model, classifier, CLASSES, make_cfg(trainer="LaFTer"))
    lengths = []
    for block in clip_model.visual.transformer.resblocks:
        block.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    logits = model(images).logits
    assert lengths == [1 + PROMPTS + 16] * 11 + [1]  # of the last block, CLS alone is read
    plain = PlainLaFTer(clip_model, classifier, model.prompt_embeddings.detach(), 1e-3)
    assert torch.allclose(logits, plain.encode(images, plain.prompts) @ classifier.t(), atol=1e-5)
