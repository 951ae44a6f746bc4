"""Every faster path gives what the plain one gives, to the tolerance stated."""

from __future__ import annotations

import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clip.transformer import QuickGELU, ResidualAttentionBlock, linear
from tests.conftest import note_gradients, train_on
from trainers import build
from trainers.build import build_training, image_flops, load_clip, prepare_blocks
from trainers.LaFTer import LaFTer
from trainers.LaFTer_multilayer import MultiLayerLaFTer
from trainers.objective import Objective
from trainers.text_classifier import TextPhase
from utils.data.loader import micro_batches

CLASSES = 5
TRAINERS = {"LaFTer": LaFTer, "MultiLayerLaFTer": MultiLayerLaFTer}


@pytest.fixture
def prepare(make_clip, make_cfg):
    """prepare(trainer, values) → clip_model, cfg, training, objective, as build_training makes them."""

    def make(trainer: str, values: dict[str, object] | None = None) -> SimpleNamespace:
        clip_model = make_clip()
        cfg = make_cfg({"PROMPT_NUM": 6, "MULTI_LAYER_PROMPT.NUM": 3, **(values or {})}, trainer)
        torch.manual_seed(1)
        classifier = F.normalize(torch.randn(CLASSES, 32), dim=-1)
        model = TRAINERS[trainer](clip_model, classifier, CLASSES, cfg)
        training, criterion = build_training(cfg, clip_model, model, TextPhase(classifier), {})
        objective = Objective(criterion, cfg, [str(i) for i in range(CLASSES)])
        return SimpleNamespace(clip=clip_model, cfg=cfg, training=training, objective=objective)

    return make


@pytest.fixture
def batch(images) -> dict[str, torch.Tensor]:
    return {"weak": images, "strong": images.flip(-1) + 0.1, "index": torch.arange(8), "label": torch.arange(8) % 5}


def gradients(parts, batch, micro_batch: int = 0, epoch: int = 9) -> dict[str, torch.Tensor]:
    """The labels, the parts of the loss and all gradients of one batch, of a step that changes nothing."""
    training, cfg = parts.training, parts.cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.TRAIN_X.MICRO_BATCH = micro_batch
    training.model.start_epoch(epoch)
    for group in training.optimizer.param_groups:
        group["lr"] = 0.0
    labels, grads = training.teacher.labels(batch), note_gradients(training)
    row = train_on(training, parts.objective, cfg, batch)
    losses = {name: row[name] for name in ("loss", "cross_entropy", "consistency") if name in row}
    return {"labels": labels, **losses, **grads}


def assert_close(found, expected, atol: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_micro_batches_give_the_batchs_gradient(prepare, batch, trainer, size):
    whole = gradients(prepare(trainer), batch, 100)
    assert len(whole) > 10 and whole["labels"].shape == (8,)
    assert_close(gradients(prepare(trainer), batch, size), whole)


def test_micro_batches_cut_every_column():
    batch = {"strong": torch.arange(23.0), "label": torch.arange(23)}
    assert [len(part["label"]) for part in micro_batches(batch, 0)] == [10, 10, 3]
    assert [len(part["label"]) for part in micro_batches(batch, 23)] == [23]
    assert torch.equal(torch.cat([part["strong"] for part in micro_batches(batch, 4)]), batch["strong"])


@pytest.mark.parametrize("trainer", TRAINERS)
def test_checkpointing_gives_the_same_gradient(prepare, batch, trainer):
    plain, parts = gradients(prepare(trainer), batch), prepare(trainer, {"MODEL.CHECKPOINT_GRADIENTS": True})
    prepare_blocks(parts.clip, parts.cfg, 1)
    assert parts.clip.visual.transformer.checkpoint
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        parts.training.model(batch["strong"])
    checkpointed, saved[:] = sum(saved), []
    parts.clip.visual.transformer.checkpoint = False
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        parts.training.model(batch["strong"])
    assert checkpointed < 0.3 * sum(saved)
    parts.clip.visual.transformer.checkpoint = True
    assert_close(gradients(parts, batch), plain)


def test_the_last_block_may_compute_cls_alone(make_clip, images):
    visual = make_clip().visual
    x, prompts = visual.embeddings_patch(images), [torch.randn(1, 3, 64) for _ in range(4)]
    for mode in ("append", "replace"):
        full, stages = visual.transformer(x, prompts, mode)
        cls, cls_stages = visual.transformer(x, prompts, mode, cls_only=True)
        assert cls.shape == (8, 1, 64) and full.shape[1] > 17
        torch.testing.assert_close(cls[:, 0], full[:, 0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(cls_stages[-1][-1], stages[-1][-1], rtol=1e-5, atol=1e-5)
        assert torch.equal(cls_stages[0][0], stages[0][0])


@pytest.mark.parametrize("shape", [(10, 100, 64), (2, 1, 64), (1, 7, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_linear_is_torchs(shape, dtype):
    """Also of a slice, as the attention of CLS alone has it; values, layout and all three gradients."""
    torch.manual_seed(0)
    tokens = torch.randn(shape[0], shape[1] + 3, shape[2], dtype=dtype)[:, :shape[1]]
    inputs = [tokens, torch.randn(96, 64, dtype=dtype), torch.randn(96, dtype=dtype)]
    results = []
    for function in (linear, F.linear):
        own = [x.detach().requires_grad_() for x in inputs]
        y = function(*own)
        assert y.shape == (*shape[:2], 96) and y.is_contiguous()
        results.append([y, *torch.autograd.grad(y.sin().sum(), own)])
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_folding_quick_gelu_changes_a_model_by_rounding_alone(make_clip):
    """Features of both towers, and the gradients of LayerNorms."""
    plain, folded = make_clip(4, text_layers=2), make_clip(4, text_layers=2).fold_gelu()
    images, tokens = torch.randn(3, 3, 32, 32), torch.randint(1, 49, (3, 10))
    results = []
    for model in (plain, folded):
        weights = [model.visual.transformer.resblocks[1].ln_2.weight.requires_grad_(),
                   model.transformer.resblocks[0].ln_1.bias.requires_grad_()]
        features = [model.encode_image(images), model.encode_text(tokens)]
        loss = features[0].sin().sum() + features[1].sin().sum()
        results.append([*features, *torch.autograd.grad(loss, weights)])
    for ours, theirs in zip(*results):
        assert theirs.abs().max() > 0.01
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    kinds = [{type(block.mlp.gelu) for block in model.modules() if isinstance(block, ResidualAttentionBlock)}
             for model in (plain, folded, make_clip(1, quick_gelu=False).fold_gelu())]
    assert kinds == [{QuickGELU}, {nn.SiLU}, {nn.GELU}]


def test_a_run_computes_with_the_folded_activation(make_cfg, tmp_path, make_clip):
    torch.save(make_clip(1, text_layers=1).state_dict(), tmp_path / "clip.pt")
    model = load_clip(make_cfg({"MODEL.BACKBONE.NAME": str(tmp_path / "clip.pt"), "MODEL.PRECISION": "bf16"}))
    assert {type(block.mlp.gelu) for block in model.visual.transformer.resblocks} == {nn.SiLU}
    assert model.dtype == torch.bfloat16


def test_blocks_below_the_shallowest_active_stage_record_nothing(prepare, batch):
    parts = prepare("MultiLayerLaFTer", {"MULTI_LAYER_PROMPT.PROGRESSIVE_TRAINING": True})
    parts.training.model.start_epoch(0)
    seen = []
    for block in parts.clip.visual.transformer.resblocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    parts.training.model(batch["strong"])
    assert seen == [False] * 11 + [True]


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler is installed")
def test_compiled_blocks_give_the_same_gradient(prepare, batch, caplog, monkeypatch):
    monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")  # another test's package may have brought Python's own
    trainer = "MultiLayerLaFTer"
    parts = prepare(trainer, {"MODEL.COMPILE": "on"})
    names = list(parts.training.model.state_dict())
    with caplog.at_level(logging.INFO):
        prepare_blocks(parts.clip, parts.cfg, 1)
    assert "not compiled" not in caplog.text and list(parts.training.model.state_dict()) == names
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for epoch in (0, 9):
        assert_close(gradients(parts, batch, epoch=epoch), gradients(prepare(trainer), batch, epoch=epoch), 1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_without_a_compiler_a_line_says_so_and_the_run_goes_on(prepare, batch, caplog, monkeypatch):
    def fail(module, *args):
        raise RuntimeError("No working\nC++ compiler found\n\nand much more")

    parts = prepare("LaFTer", {"MODEL.COMPILE": "on"})
    monkeypatch.setattr(type(parts.clip.visual.transformer.resblocks[0]), "compile",
                        lambda block: setattr(block, "_compiled_call_impl", fail))
    with caplog.at_level(logging.INFO):
        prepare_blocks(parts.clip, parts.cfg, 1)
    assert "the blocks are not compiled (No working C++ compiler found)" in caplog.messages
    assert_close(gradients(parts, batch), gradients(prepare("LaFTer"), batch))


@pytest.mark.parametrize("mode, images, compiles", [("off", 10 ** 12, False), ("auto", 10, False),
                                                    ("auto", 10 ** 9, True), ("on", 1, True)])
def test_auto_compiles_long_runs_alone(prepare, monkeypatch, mode, images, compiles):
    assert "cpu" not in build.WORTH_COMPILING  # there it saves nothing
    monkeypatch.setitem(build.WORTH_COMPILING, "cpu", 3e14)
    parts, calls = prepare("LaFTer", {"MODEL.COMPILE": mode}), []
    monkeypatch.setattr(type(parts.clip.visual.transformer.resblocks[0]), "compile", lambda block: calls.append(block))
    prepare_blocks(parts.clip, parts.cfg, images)
    assert len(calls) == (12 if compiles else 0)


def test_the_count_of_operations_is_close_to_torchs(make_clip):
    from torch.utils.flop_counter import FlopCounterMode

    visual = make_clip().visual
    with FlopCounterMode(display=False) as counter:
        visual.transformer(visual.embeddings_patch(torch.zeros(1, 3, 32, 32)))
    assert image_flops(visual) == pytest.approx(counter.get_total_flops(), rel=0.05)
