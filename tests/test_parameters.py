"""What trains: whole name components of a plain module, the declaration of a Tunable; in which groups."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trainers.build import count_parameters
from trainers.LaFTer_multilayer import MultiLayerLaFTer
from utils.errors import InputError
from utils.utils import (
    TrainingSettings,
    Tunable,
    parameter_groups,
    setup_lafter_training_utils,
    setup_text_training_utils,
    trainable_parameters,
)

LR = 2e-3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 4)


class PlainModel(nn.Module):
    """A module that declares nothing: names alone decide."""

    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(Block(), Block())
        self.text = Block()
        self.prompt_embeddings = nn.Parameter(torch.zeros(1, 5, 4))
        self.nga = nn.Module()
        self.nga.log_sigma = nn.Parameter(torch.zeros(2))
        self.adapter = nn.Linear(4, 3)
        self.adapter_pl = nn.Linear(4, 3)
        self.prompts_old = nn.Parameter(torch.zeros(2, 4))


class DeclaringModel(Tunable):
    def __init__(self, kinds):
        super().__init__()
        self.head = nn.Linear(4, 3, bias=False)
        self.tokens = nn.Parameter(torch.zeros(1, 2, 4))
        self.adapter = nn.Linear(4, 3)
        self.kinds = kinds

    def parameter_kinds(self):
        return self.kinds


def settings(scheduler="cosine", epochs=8, **others):
    return SimpleNamespace(lr=LR, epochs=epochs, scheduler=scheduler, **others)


def rates(optimizer):
    """Each group's rate by name; groups of one name must agree."""
    result = {}
    for group in optimizer.param_groups:
        assert result.setdefault(group["name"], group["lr"]) == group["lr"]
    return result


def test_whole_name_components_decide_for_a_plain_module():
    model = PlainModel()
    kinds = {name: kind for name, (_, kind) in trainable_parameters(model).items()}
    norms = {f"visual.{block}.ln_1.{leaf}": "layernorm" for block in (0, 1) for leaf in ("weight", "bias")}
    assert kinds == norms | {"prompt_embeddings": "prompts", "nga.log_sigma": "fusion",
                             "adapter.weight": "adapter", "adapter.bias": "adapter"}
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == set(kinds)


def test_parts_of_a_model_are_recognised_below_a_prefix():
    model = nn.ModuleDict({"student": PlainModel()})
    model["student"].multi_prompts = nn.ParameterList([nn.Parameter(torch.zeros(1, 2, 4)) for _ in range(2)])
    model["student"].stage_fusion = nn.Parameter(torch.zeros(2))
    kinds = {name: kind for name, (_, kind) in trainable_parameters(model).items()}
    assert kinds["student.multi_prompts.1"] == "prompts"
    assert kinds["student.stage_fusion"] == "fusion"
    assert kinds["student.visual.0.ln_1.bias"] == "layernorm"
    assert "student.adapter_pl.weight" not in kinds and "student.prompts_old" not in kinds


def test_a_declaration_alone_decides_for_a_tunable():
    model = DeclaringModel({"head.weight": "adapter", "tokens": "prompts"})
    optimizer, _, _ = setup_lafter_training_utils(settings("none"), model)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        "head.weight", "tokens"}
    assert rates(optimizer) == pytest.approx({"adapter": 5 * LR, "prompts": LR})
    assert model.start_epoch(3) is None


@pytest.mark.parametrize("kinds, reason", [
    ({}, "nothing in DeclaringModel is trainable"),
    ({"head.wieght": "adapter"}, "'head.wieght'"),
    ({"head.weight": "haed"}, "prompts, adapter, layernorm, fusion"),
])
def test_a_wrong_declaration_is_refused(kinds, reason):
    with pytest.raises(InputError, match=reason):
        setup_lafter_training_utils(settings(), DeclaringModel(kinds))


def test_a_tunable_must_declare():
    with pytest.raises(TypeError, match="parameter_kinds"):
        Tunable()


def test_nothing_trainable_is_refused_in_both_phases():
    with pytest.raises(InputError, match="nothing in Sequential is trainable"):
        setup_lafter_training_utils(settings(), nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    with pytest.raises(InputError, match="nothing in Block is trainable"):
        setup_text_training_utils(settings(), Block())


@pytest.mark.parametrize("model, expected", [
    (nn.Linear(4, 3), {"weight", "bias"}),
    (PlainModel(), {"adapter.weight", "adapter.bias"}),
])
def test_the_text_phase_trains_the_head_alone_at_lr_itself(model, expected):
    optimizer, _, _ = setup_text_training_utils(settings("none", adapter_lr_scale=7.0), model)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    assert rates(optimizer) == {"adapter": LR}


def test_weight_decay_is_for_two_dimensions_and_more():
    model = PlainModel()
    args = settings(weight_decay=0.05)
    groups = parameter_groups(trainable_parameters(model), TrainingSettings.from_args(args))
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert {name: decays[id(parameter)] for name, parameter in model.named_parameters()
            if id(parameter) in decays} == {
        "prompt_embeddings": 0.05, "adapter.weight": 0.05, "adapter.bias": 0.0, "nga.log_sigma": 0.0,
        **{f"visual.{block}.ln_1.{leaf}": 0.0 for block in (0, 1) for leaf in ("weight", "bias")}}
    assert len(groups) == 5


def test_the_weights_of_layernorms_are_decayed_where_asked_for():
    model = PlainModel()
    args = settings(weight_decay=0.05, decay_layernorm=True)
    groups = parameter_groups(trainable_parameters(model), TrainingSettings.from_args(args))
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for block in model.visual:
        assert (decays[id(block.ln_1.weight)], decays[id(block.ln_1.bias)]) == (0.05, 0.0)
    assert (decays[id(model.adapter.weight)], decays[id(model.adapter.bias)]) == (0.05, 0.0)


def test_one_step_of_adamw_decays_at_each_groups_own_rate():
    """With zero gradients AdamW only shrinks: by lr · decay, the adapter five times as much; biases stay."""
    model = PlainModel()
    optimizer, _, _ = setup_lafter_training_utils(settings("none", weight_decay=0.5), model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    factors = {"adapter.weight": 1 - 5 * LR * 0.5}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * factors.get(name, 1.0))
    assert not torch.equal(model.adapter.weight, before["adapter.weight"])


def test_scales_are_settings():
    args = settings("none", adapter_lr_scale=1.0, fusion_lr_scale=0.5)
    optimizer, _, _ = setup_lafter_training_utils(args, PlainModel())
    assert rates(optimizer) == {"prompts": LR, "adapter": LR, "layernorm": LR, "fusion": 0.5 * LR}


def test_parameters_stay_where_they_are():
    model = PlainModel().to("meta")
    setup_lafter_training_utils(settings(), model)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_counting_changes_nothing(make_clip, make_cfg):
    """Freezing has one owner: in a phase that trains the deepest stage alone, counting must not thaw the others."""
    model = MultiLayerLaFTer(make_clip(8), torch.randn(3, 32), 3, make_cfg({
        "MULTI_LAYER_PROMPT.PROGRESSIVE_TRAINING": True, "MULTI_LAYER_PROMPT.NUM": 2}))
    model.start_epoch(0)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    counts = count_parameters(model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained
    assert counts["prompts"] == 4 * 2 * 64 and counts["adapter"] == 3 * 32
    assert counts["total"] == sum(parameter.numel() for parameter in model.parameters())
