"""The full-size ViT-B/32, with random weights in the forms of the official files, through the real program."""

from __future__ import annotations

import pytest
import torch
from test_clip_load import as_module

import LaFTer
from clip.model import CLIP
from utils.demo.faces import draw_dataset

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")  # the test writes TorchScript


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The weights as a plain state dict and as a TorchScript archive, and a data root with a tiny demo."""
    folder = tmp_path_factory.mktemp("full")
    torch.manual_seed(0)
    model = CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12)
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    torch.save(state, folder / "plain.pt")
    sizes = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    extras = {name: torch.tensor(size) for name, size in sizes.items()}
    torch.jit.script(as_module(state | extras)).save(str(folder / "archive.pt"))
    draw_dataset(folder / "demo", train_per_class=1, test_per_class=1)
    return folder


@pytest.mark.parametrize("trainer, form", [("LaFTer", "plain.pt"), ("MultiLayerLaFTer", "archive.pt")])
def test_a_few_steps(files, tmp_path, trainer, form):
    result = LaFTer.main([
        "--dataset-config-file", "demo", "--root", str(files), "--backbone", str(files / form), "--trainer", trainer,
        "--output-dir", str(tmp_path), "--epochs", "1", "--batch_size", "3", "--txt_epochs", "5",
        "--txt_cls", "cls_only", "--workers", "0", "TEXT.CACHE_DIR", str(tmp_path), "PICTURES", "False",
        "DATASET.VAL_FRACTION", "0"])
    kinds = {"LaFTer": {"prompts": 50 * 768}, "MultiLayerLaFTer": {"prompts": 4 * 16 * 768, "fusion": 8}}[trainer]
    new = kinds["prompts"] + kinds.get("fusion", 0)
    assert {kind: result["parameters"][kind] for kind in kinds} == kinds
    assert result["parameters"]["total"] == 151_277_313 + new + 512 * 6  # CLIP's own, the prompts, the head
    assert trainer == "LaFTer" or new == 49_160
    assert set(result["splits"]["test"]) == {"zero_shot", "text_classifier", "untrained", "last", "best"}
