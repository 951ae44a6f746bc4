"""Checkpoints as people have them: every form gives the same model, says its activation and knows where it is from."""

from __future__ import annotations

import json
import logging
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import clip
import LaFTer
from clip.checkpoint import read_checkpoint
from clip.clip import MODELS
from clip.model import build_model
from tests.clip_forms import FORMS, VISION, hub_model, hugging_face, small_state, transformers
from tests.conftest import randomise
from tests.test_clip_load import as_module
from tests.tiny_run import arguments, make_inputs
from trainers.build import load_clip
from trainers.texts import text_features
from utils.config import PROJECT
from utils.errors import InputError

open_clip = pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return small_state()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_features_and_hash(form, state, tmp_path):
    path = FORMS[form](state, tmp_path / "clip-v1.0")
    expected, images, tokens = build_model(state), torch.randn(3, 3, 16, 16), torch.randint(1, 49, (4, 10))
    model, _ = clip.load(path)
    with torch.no_grad():
        assert torch.equal(model.encode_image(images), expected.encode_image(images))
        assert torch.equal(model.encode_text(tokens), expected.encode_text(tokens))
    assert clip.weights_hash(model) == clip.weights_hash(state)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_transformers_agrees_with_the_activation_of_its_config(act, state, tmp_path):
    theirs = hub_model(state, act)
    theirs.save_pretrained(tmp_path / "hub")
    ours, _ = clip.load(tmp_path / "hub")
    assert ours.quick_gelu == (act == "quick_gelu")
    images, tokens = torch.randn(3, 3, 16, 16), torch.randint(1, 48, (4, 10))
    tokens[:, -1] = 49  # the end of the text
    with torch.no_grad():
        logits, _ = ours(images, tokens)
        expected = theirs(input_ids=tokens, pixel_values=images).logits_per_image
    assert torch.allclose(logits, expected, rtol=0, atol=1e-5 * expected.abs().max())
    other, _ = clip.load(tmp_path / "hub", quick_gelu=act != "quick_gelu")
    with torch.no_grad():
        assert not torch.allclose(other(images, tokens)[0], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_an_image_tower_of_transformers(act, tmp_path):
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(**VISION, hidden_act=act)
    theirs = randomise(transformers.CLIPVisionModelWithProjection(config)).eval()
    theirs.save_pretrained(tmp_path / "hub")
    ours, _ = clip.load(tmp_path / "hub")
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = theirs(pixel_values=images).image_embeds
        assert torch.allclose(ours.encode_image(images), expected, rtol=0, atol=1e-5 * expected.abs().max())
    assert not ours.has_text and ours.quick_gelu == (act == "quick_gelu")


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_folder_of_open_clip(name, quick_gelu, tmp_path):
    torch.manual_seed(0)
    sizes = dict(embed_dim=32, vision_cfg=dict(layers=2, width=64, patch_size=8, image_size=16),
                 text_cfg=dict(context_length=10, vocab_size=50, width=64, heads=1, layers=1))
    theirs = randomise(open_clip.model.CLIP(**sizes, quick_gelu=quick_gelu)).eval()
    (save_file if name.endswith("safetensors") else torch.save)(theirs.state_dict(), tmp_path / name)
    settings = sizes | ({"quick_gelu": True} if quick_gelu else {})  # OpenCLIP writes it where it is true
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    images, tokens = torch.randn(3, 3, 16, 16), torch.randint(1, 50, (4, 10))
    for path in (tmp_path, tmp_path / name):
        ours, _ = clip.load(path)
        assert ours.quick_gelu == quick_gelu
        with torch.no_grad():
            for found, expected in ((ours.encode_image(images), theirs.encode_image(images)),
                                    (ours.encode_text(tokens), theirs.encode_text(tokens))):
                assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max())


# --- the activation ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings, wanted, quick_gelu, words", [
    (None, None, True, "QuickGELU is assumed, .* need MODEL.BACKBONE.QUICK_GELU False"),
    (None, False, False, "the plain GELU, as MODEL.BACKBONE.QUICK_GELU False says"),
    ({"quick_gelu": True}, None, True, "QuickGELU, as open_clip_config.json says"),
    ({}, None, False, "the plain GELU, as open_clip_config.json says"),
    ({}, True, True, "QuickGELU is used, as MODEL.BACKBONE.QUICK_GELU True says, but open_clip_config.json says the "
                     "plain GELU"),
    ({}, False, False, "the plain GELU, as MODEL.BACKBONE.QUICK_GELU False says"),
])
def test_one_line_says_which_activation_and_why(settings, wanted, quick_gelu, words, state, tmp_path, caplog):
    torch.save(state, tmp_path / "clip.pt")
    if settings is not None:
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": {}} | settings}))
    with caplog.at_level(logging.INFO, logger="clip"):
        model, _ = clip.load(tmp_path / "clip.pt", quick_gelu=wanted)
    (record,) = caplog.records
    assert model.quick_gelu == quick_gelu
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds & {"GELU", "QuickGELU"} == {"QuickGELU" if quick_gelu else "GELU"}
    assert record.levelno == (logging.WARNING if " but " in words else logging.INFO)
    assert re.search(words, record.getMessage()), record.getMessage()


def test_open_clip_takes_the_demos_clip_with_its_config():
    folder = PROJECT / "configs" / "demo"
    settings = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    theirs = open_clip.model.CLIP(**settings).eval()
    theirs.load_state_dict(torch.load(folder / "demo_clip.pt", weights_only=True))
    ours, _ = clip.load(folder / "demo_clip.pt")
    images, tokens = torch.randn(2, 3, 64, 64), clip.tokenize(["joy", "a photo of anger."])
    with torch.no_grad():
        for found, expected in ((ours.encode_image(images), theirs.encode_image(images)),
                                (ours.encode_text(tokens), theirs.encode_text(tokens))):
            assert torch.allclose(found, expected, rtol=0, atol=1e-4 * expected.abs().max())


def test_a_config_of_another_layout_tells_nothing(state, tmp_path):
    """config.json belongs to Hugging Face's weights: beside others it may be any program's."""
    torch.save(state, tmp_path / "clip.pt")
    (tmp_path / "config.json").write_text('{"hidden_act": "gelu"}')
    assert read_checkpoint(tmp_path / "clip.pt").settings.quick_gelu is None
    torch.save(hugging_face(state), tmp_path / "clip.pt")
    assert read_checkpoint(tmp_path / "clip.pt").settings.quick_gelu is False
    (tmp_path / "config.json").write_text("{}")
    assert read_checkpoint(tmp_path / "clip.pt").settings.quick_gelu is None
    (tmp_path / "config.json").write_text('{"model_type": "clip", "text_config": {"hidden_size": 512}}')
    assert read_checkpoint(tmp_path / "clip.pt").settings.quick_gelu is True  # transformers leaves its defaults out


@pytest.mark.parametrize("hub", [True, False])
def test_the_normalisation_of_the_images_is_read_and_compared(hub, state, tmp_path, make_cfg, caplog):
    """LAION's ViT-L/14 was trained with 0.5, others with CLIP's own."""
    torch.save(hugging_face(state) if hub else state, tmp_path / "pytorch_model.bin")
    model, preprocess = clip.load(tmp_path)
    assert model.source[-2:] == (clip.CLIP_MEAN, clip.CLIP_STD)
    half = [0.5, 0.5, 0.5]
    if hub:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": half, "image_std": half}))
    else:
        settings = {"model_cfg": {"vision_cfg": {}}, "preprocess_cfg": {"mean": half, "std": half}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    model, preprocess = clip.load(tmp_path)
    assert torch.equal(preprocess(Image.new("RGB", (20, 30), "white")), torch.ones(3, 16, 16))
    values = {"MODEL.BACKBONE.NAME": str(tmp_path), "DEVICE": "cpu"}
    load_clip(make_cfg(values))
    assert "another INPUT.PIXEL_MEAN than" in caplog.text and "PIXEL_STD" in caplog.text
    assert "set it to [0.5, 0.5, 0.5]" in caplog.text
    caplog.clear()
    load_clip(make_cfg(values | {"INPUT.PIXEL_MEAN": half, "INPUT.PIXEL_STD": half}))
    assert "PIXEL" not in caplog.text


# --- where the weights come from ------------------------------------------------------------------------------------

def test_the_hash_is_of_the_weights_in_the_file(state, tmp_path):
    """Whatever becomes of them: another size is interpolated, which differs between processors."""
    half = {name: tensor.half() for name, tensor in state.items()}
    torch.save(half, tmp_path / "clip.pt")
    for options in ({}, {"image_size": 32}, {"precision": "bf16"}, {"quick_gelu": False}):
        model, _ = clip.load(tmp_path / "clip.pt", **options)
        assert clip.weights_hash(model) == clip.weights_hash(half) == model.source.weights_hash
    with torch.no_grad():
        model.visual.ln_pre.weight.add_(1)  # training does not change what the model was made of
    assert clip.weights_hash(model) == clip.weights_hash(half) != clip.weights_hash(state)
    torch.save(half | {"visual.proj": half["visual.proj"] + 1}, tmp_path / "clip.pt")
    assert clip.weights_hash(clip.load(tmp_path / "clip.pt")[0]) != clip.weights_hash(half)
    tower = {name: tensor for name, tensor in half.items() if name.startswith("visual.")}
    torch.save(tower, tmp_path / "clip.pt")
    assert clip.weights_hash(clip.load(tmp_path / "clip.pt")[0]) == clip.weights_hash(tower)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_the_source_knows_openais_files_wherever_they_lie(state, tmp_path, monkeypatch, caplog):
    torch.jit.script(as_module(state)).save(str(tmp_path / "mine.pt"))
    assert read_checkpoint(tmp_path / "mine.pt").settings.quick_gelu is None
    torch.jit.script(as_module(state | {"input_resolution": torch.tensor(16)})).save(str(tmp_path / "mine.pt"))
    with caplog.at_level(logging.INFO, logger="clip"):
        model, _ = clip.load(tmp_path / "mine.pt")
    assert model.source == (tmp_path / "mine.pt", "TorchScript archive", "", clip.weights_hash(state), clip.CLIP_MEAN,
                            clip.CLIP_STD)
    assert "mine.pt (TorchScript archive): QuickGELU, as OpenAI's archive says" in caplog.text
    monkeypatch.setitem(MODELS, "ViT-B/16", (clip.clip.file_sha256(tmp_path / "mine.pt"), "ViT-B-16.pt"))
    assert clip.load(tmp_path / "mine.pt")[0].source.official == "ViT-B/16"
    (tmp_path / "mine.pt").rename(tmp_path / "ViT-B-16.pt")
    assert clip.load("ViT-B/16", download_root=tmp_path)[0].source.official == "ViT-B/16"
    torch.save(state, tmp_path / "plain.pt")
    assert clip.load(tmp_path / "plain.pt")[0].source.official == ""


def test_text_features_are_shared_between_image_sizes_not_between_activations(tmp_path, make_clip, make_cfg):
    torch.save(make_clip(layers=1, text_layers=1).state_dict(), tmp_path / "clip.pt")
    cfg = make_cfg({"TEXT.CACHE_DIR": str(tmp_path / "cache")})
    for options, files in (({}, 1), ({"image_size": 64}, 1), ({"quick_gelu": True}, 1), ({"quick_gelu": False}, 2)):
        text_features(clip.load(tmp_path / "clip.pt", **options)[0], ["cat", "dog"], "zero_shot", cfg)
        assert len(list((tmp_path / "cache").iterdir())) == files


def test_a_folder_serves_as_the_backbone_of_a_run(tmp_path):
    """From the command line, whose run folder has the backbone folder's name."""
    make_inputs(tmp_path, train=2, test=1)
    hub = tmp_path / "hub" / "clip-tiny-v1.0"
    hub.mkdir(parents=True)
    (tmp_path / "clip.pt").rename(hub / "open_clip_pytorch_model.bin")
    (hub / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {}, "quick_gelu": false}}')
    LaFTer.main(arguments(tmp_path, "trial", "--backbone", str(hub), "--epochs", "1"))
    (final,) = tmp_path.rglob("final.json")
    assert final.parent == tmp_path / "runs" / "data" / "LaFTer" / "clip-tiny-v1.0" / "trial"
    assert "the plain GELU, as open_clip_config.json says" in (final.parent / "log.txt").read_text(encoding="utf-8")


def test_a_run_in_half_precision_and_at_another_size_is_scored_in_full(tmp_path):
    """The same backbone, for its hash is the file's: precision and size are settings."""
    make_inputs(tmp_path, train=3, test=1)
    LaFTer.main(arguments(tmp_path, "half", "MODEL.PRECISION", "bf16", "INPUT.SIZE", "48"))
    (run,) = (final.parent for final in tmp_path.rglob("final.json"))
    given = ["--eval-only", "--model-dir", str(run), "--dataset-config-file", "folder", "--root",
             str(tmp_path / "data")]
    result = LaFTer.main([*given, "MODEL.PRECISION", "fp32", "DATALOADER.NUM_WORKERS", "0"])
    assert result["epoch"] == 4 and "test" in result["splits"]
    state = torch.load(tmp_path / "clip.pt", weights_only=True)
    torch.save(state | {"logit_scale": state["logit_scale"] + 1}, tmp_path / "clip.pt")
    with pytest.raises(InputError, match="trained on another backbone"):
        LaFTer.main([*given, "MODEL.PRECISION", "fp32", "DATALOADER.NUM_WORKERS", "0"])
