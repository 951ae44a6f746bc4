"""clip.load: every form of checkpoint, damaged files and hostile ones."""

import logging
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import clip
from clip.checkpoint import read_state_dict
from clip.clip import MODELS
from clip.model import CLIP

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")  # the tests write TorchScript


class Node(nn.Module):
    """A module of any shape: OpenAI's archives are traced models with these parameter names."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def as_module(state: dict[str, torch.Tensor]) -> Node:
    root = Node()
    for name, tensor in state.items():
        *parents, leaf = name.split(".")
        node = root
        for parent in parents:
            if parent not in dict(node.named_children()):
                node.add_module(parent, Node())
            node = node.get_submodule(parent)
        if tensor.is_floating_point():
            node.register_parameter(leaf, nn.Parameter(tensor.clone()))
        else:
            node.register_buffer(leaf, tensor)
    return root


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A small random CLIP: 2 + 2 layers, 16 px, in half precision as OpenAI stores it."""
    torch.manual_seed(0)
    model = CLIP(32, 16, 2, 64, 8, 10, 50, 64, 1, 2)
    return {name: tensor.half() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def plain(state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "plain.pt"
    torch.save(state, path)
    return path


def write(form: str, state: dict[str, torch.Tensor], path: Path) -> None:
    if form == "torchscript":
        extras = {"input_resolution": torch.tensor(16), "context_length": torch.tensor(10)}
        torch.jit.script(as_module(state | extras | {"vocab_size": torch.tensor(50)})).save(str(path))
    elif form == "safetensors":
        save_file(state, path)
    elif form == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form == "openclip":
        named = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": named}, path)
    else:
        torch.save(state, path)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("form", ["plain", "torchscript", "safetensors", "legacy", "openclip"])
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_every_form_gives_the_same_model(form, suffix, state, tmp_path):
    path = tmp_path / f"checkpoint{suffix}"  # the name says nothing about the form
    write(form, state, path)
    images, tokens = torch.randn(3, 3, 16, 16), torch.randint(1, 49, (4, 10))
    expected = clip.model.build_model(state)
    model, preprocess = clip.load(path)
    with torch.no_grad():
        assert torch.equal(model.encode_image(images), expected.encode_image(images))
        assert torch.equal(model.encode_text(tokens), expected.encode_text(tokens))
    assert not model.training and model.dtype == torch.float32
    assert preprocess(Image.new("L", (40, 30))).shape == (3, 16, 16)
    assert clip.weights_hash(model) == clip.weights_hash(state)


def test_torchscript_tensors_equal_those_torch_reads(state, tmp_path):
    write("torchscript", state, tmp_path / "archive.pt")
    expected = torch.jit.load(str(tmp_path / "archive.pt")).state_dict()
    read = read_state_dict(tmp_path / "archive.pt")
    assert read.keys() == state.keys() == expected.keys() - {"input_resolution", "context_length", "vocab_size"}
    assert all(torch.equal(read[name], expected[name]) and read[name].dtype == expected[name].dtype for name in read)


def test_options_reach_the_model(plain):
    model, preprocess = clip.load(str(plain), precision="bf16", image_size=32, stage_boundaries=[[0, 1]])
    assert model.dtype == torch.bfloat16 and model.visual.ln_post.weight.dtype == torch.float32
    assert model.visual.input_resolution == 32 and preprocess(Image.new("RGB", (50, 40))).shape == (3, 32, 32)
    assert model.visual.transformer.stage_boundaries == [[0, 1]]
    exact, _ = clip.load(plain, quick_gelu=False)
    assert {type(module).__name__ for module in exact.modules()} & {"GELU", "QuickGELU"} == {"GELU"}


def test_image_tower_alone_says_what_it_cannot_do(state, tmp_path, caplog):
    tower = {name: tensor for name, tensor in state.items() if name.startswith("visual.")}
    torch.save(tower, tmp_path / "tower.pt")
    with caplog.at_level(logging.INFO, logger="clip"):
        model, _ = clip.load(tmp_path / "tower.pt", quick_gelu=True)
    assert not model.has_text and model.encode_image(torch.zeros(1, 3, 16, 16)).shape == (1, 32)
    (said,) = [message for message in caplog.messages if "without a text tower" in message]
    assert "DATASET.TEXT_FEATURES" in said and "\n" not in said


def test_transform_is_clips():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    resized = np.asarray(image.resize((51, 32), Image.Resampling.BICUBIC))[:, 10:42]  # short side 32; 19 columns cut
    expected = (resized / 255 - np.array(clip.CLIP_MEAN)) / np.array(clip.CLIP_STD)
    assert np.allclose(clip.image_transform(32)(image).numpy(), expected.transpose(2, 0, 1), atol=1e-5)
    pickle.dumps(clip.image_transform(32))  # worker processes on Windows need that


def test_names():
    assert clip.available_models() == ["ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"]
    assert all(len(sha256) == 64 and int(sha256, 16) for sha256, _ in MODELS.values())
    with pytest.raises(clip.ClipError, match="unknown model 'RN50'; valid: ViT-B/32, .*ViT-L/14@336px"):
        clip.load("RN50")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.pt"):
        clip.load(tmp_path / "none.pt")
    with pytest.raises(clip.ClipError, match="is a folder"):
        clip.load(tmp_path)


def test_wrong_keys_are_named(state, tmp_path):
    torch.save({"visual.strange" if name == "visual.proj" else name: tensor for name, tensor in state.items()},
               tmp_path / "a.pt")
    with pytest.raises(clip.ClipError, match=r"a\.pt.*missing keys.*visual\.proj"):
        clip.load(tmp_path / "a.pt")
    torch.save(state | {"visual.strange": torch.ones(1)}, tmp_path / "b.pt")
    with pytest.raises(clip.ClipError, match=r"b\.pt.*unexpected keys.*visual\.strange"):
        clip.load(tmp_path / "b.pt")


@pytest.mark.parametrize("content, words", [
    ({"visual.layer1.0.conv1.weight": torch.ones(1)}, "ResNet"),
    ({}, "no state dict"),
    ([torch.ones(1)], "no state dict"),
    ({"epoch": 3, "weight": torch.ones(1)}, "epoch are no tensors"),
])
def test_what_is_no_vit_state_dict_is_refused(content, words, tmp_path):
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(clip.ClipError, match=words):
        clip.load(tmp_path / "checkpoint.pt")


class Hostile:
    """Unpickling this writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("form", ["torch.save", "legacy", "pickle", "archive"])
def test_code_in_a_checkpoint_is_refused_and_not_run(form, tmp_path):
    path, marker = tmp_path / "hostile.pt", tmp_path / "marker"
    content = {"visual.conv1.weight": Hostile(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    elif form == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/constants.pkl", pickle.dumps(()))
            archive.writestr("archive/data.pkl", pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch.save")
    with pytest.raises(clip.ClipError, match=r"hostile\.pt is refused.*(_?io\.open|pickle).*could run code"):
        clip.load(path)
    assert not marker.exists()


class SpeaksWhenLoaded(nn.Module):
    """TorchScript of its own that torch.jit.load would run."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self):
        return self.w, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        print("code of the archive ran")  # noqa: T201
        self.w, self.training = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.w


def test_torchscript_code_is_not_run(tmp_path, capfd):
    torch.jit.script(SpeaksWhenLoaded()).save(str(tmp_path / "archive.pt"))
    torch.jit.load(str(tmp_path / "archive.pt"))
    assert "ran" in capfd.readouterr().out  # so the test can fail
    with pytest.raises(clip.ClipError):
        clip.load(tmp_path / "archive.pt")
    assert "ran" not in capfd.readouterr().out


@pytest.mark.parametrize("form", ["plain", "torchscript", "safetensors", "legacy"])
def test_cut_files_are_refused(form, state, tmp_path):
    write(form, state, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    rng = random.Random(0)
    for length in [0, 1, 8, 9, 100, len(data) - 1, *(rng.randrange(len(data)) for _ in range(40))]:
        (tmp_path / "cut.pt").write_bytes(data[:length])
        with pytest.raises(clip.ClipError, match=r"cut\.pt"):
            read_state_dict(tmp_path / "cut.pt")


@pytest.mark.parametrize("form", ["plain", "torchscript"])
def test_flipped_bits_are_refused_or_do_no_harm(form, state, tmp_path):
    write(form, state, tmp_path / "whole.pt")
    data, whole = (tmp_path / "whole.pt").read_bytes(), read_state_dict(tmp_path / "whole.pt")
    rng, refused = random.Random(1), 0
    for _ in range(60):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / "flipped.pt").write_bytes(flipped)
        try:
            read = read_state_dict(tmp_path / "flipped.pt")
        except clip.ClipError:
            refused += 1
        else:  # a bit of padding or of an unused field of the archive
            assert all(torch.equal(read[name], tensor) for name, tensor in whole.items())
    assert refused >= 30


@pytest.mark.parametrize("data", [b"<html>404</html>", b"PK\x03\x04 not really", b"\x80\x02}q\x00.", bytes(1000)])
def test_other_files_are_refused(data, tmp_path):
    (tmp_path / "page.pt").write_bytes(data)
    with pytest.raises(clip.ClipError, match=r"page\.pt"):
        clip.load(tmp_path / "page.pt")


def test_weights_hash(state):
    digest = clip.weights_hash(state)
    assert digest == clip.weights_hash(dict(reversed(state.items()))) and len(digest) == 64
    changed = state | {"visual.proj": state["visual.proj"].clone()}
    assert clip.weights_hash(changed) == digest
    changed["visual.proj"][-1, -1] += 0.01
    assert clip.weights_hash(changed) != digest
    renamed = {name.replace("ln_pre", "ln_pro"): tensor for name, tensor in state.items()}
    reshaped = state | {"visual.proj": state["visual.proj"].reshape(32, 64)}
    single = {name: tensor.float() for name, tensor in state.items()}
    bf16 = {name: tensor.bfloat16() for name, tensor in state.items()}
    assert len({digest, *map(clip.weights_hash, (renamed, reshaped, single, bf16))}) == 5
