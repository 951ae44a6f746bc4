"""Reading checkpoints of every form that CLIP comes in, without running anything that is in the file."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import ClipError
from .layouts import is_hugging_face, openai_layout
from .model import CLIP
from .model_config import Settings, settings_beside

# what damaged bytes raise on their way through zipfile, pickle and torch
DAMAGE = (RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
          struct.error, zipfile.BadZipFile, zlib.error)
STORAGES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
            "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
            "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
            "BoolStorage": torch.bool}
ARCHIVE = "TorchScript archive"
# what a file starts with that is no checkpoint
NO_CHECKPOINT = (
    (rb"version https://git-lfs", "is a Git LFS pointer, which only stands for the weights: run `git lfs pull` in its "
                                  "folder, or download the file itself"),
    (rb"\s*<(!doctype|html|head|\?xml)", "is a web page: its download ended at a log-in, an error or a warning; fetch "
                                         "the file itself"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", "is a packed archive; unpack it and give the checkpoint in it"),
    (rb"\x89HDF", "holds TensorFlow's weights; take model.safetensors or pytorch_model.bin instead"),
    (rb"\s*[{\[][^\0]{15}", "is a text file; give the weights themselves"),
)
# in a folder, the first of these that is there
WEIGHTS = ("open_clip_model.safetensors", "model.safetensors", "model.safetensors.index.json",
           "open_clip_pytorch_model.bin", "pytorch_model.bin", "pytorch_model.bin.index.json")
CONTAINERS = ("state_dict", "model_state_dict", "model")  # keys under which training programs keep the state dict


class Checkpoint(NamedTuple):
    """A checkpoint's tensors in OpenAI's layout, and what the file and its neighbours tell of them."""

    state: dict[str, Tensor]
    path: Path  # of the file, or of the index of its parts
    form: str  # such as "TorchScript archive" or "safetensors in Hugging Face's layout"
    settings: Settings


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint on the CPU in OpenAI's layout, in the precision of the file; see read_checkpoint."""
    return read_checkpoint(path).state


def read_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint in any form that CLIP comes in: a file, or a folder as Hugging Face's hub has them.

    The form is told by the content, not by the name: OpenAI's TorchScript archive, a state dict, alone or in the
    container of a training program, or safetensors, also in several parts under an index; see `openai_layout` for
    the names in it. Raises FileNotFoundError for a missing file and ClipError for one that is damaged, holds no
    state dict of CLIP, or holds Python objects, which would run as code.
    """
    path = Path(path)
    if path.is_dir():
        path = _find_weights(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if path.name.endswith(".index.json"):
        content, form = _read_parts(path)
    else:
        content, form = _read_file(path)
    named = _state_dict_of(content, path)
    try:
        state = openai_layout(named)
    except ClipError as error:
        raise ClipError(f"{path}: {error}") from error
    if form == ARCHIVE and "input_resolution" in named:  # which OpenAI put into its archives
        return Checkpoint(state, path, form, Settings(True, "OpenAI's archive"))
    hugging_face = is_hugging_face(named)
    return Checkpoint(state, path, f"{form} in {'Hugging Face' if hugging_face else 'OpenAI'}'s layout",
                      settings_beside(path, hugging_face))


def _find_weights(folder: Path) -> Path:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ClipError(f"{folder} is a folder without {', '.join(WEIGHTS[:2])}, pytorch_model.bin or another file of "
                    "weights as Hugging Face's hub names them; give such a folder or the checkpoint file itself")


def _read_parts(index: Path) -> tuple[dict[str, object], str]:
    """The tensors of all parts that an index of Hugging Face names."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ClipError(f"{index} is no index of a checkpoint's parts; fetch it again") from error
    tensors: dict[str, object] = {}
    form = ""
    for name in sorted(map(str, names)):
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index} names the part {name}, which is not there")
        content, form = _read_file(index.parent / name)
        tensors |= _state_dict_of(content, index.parent / name)
    return tensors, form


def _read_file(path: Path) -> tuple[object, str]:
    """What a file holds, and what kind of file it is."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise ClipError(f"{path} is empty; fetch it again")
    for pattern, what in NO_CHECKPOINT:
        if re.match(pattern, start, re.IGNORECASE):
            raise ClipError(f"{path} {what}")
    try:
        return _read(path)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
        reason = f"it asks for {wanted[1]}" if wanted else "its pickle is no torch.save of tensors"
        raise ClipError(f"{path} is refused: {reason}, and reading more than plain tensors could run code in it. "
                        "Save the model's state_dict() alone, or fetch the file again if it is damaged") from error
    except DAMAGE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClipError(f"{path} cannot be read: it is damaged, cut short or no checkpoint; fetch it again "
                        f"({reason})") from error


def _read(path: Path) -> tuple[object, str]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load itself checks no checksums
            if damaged:
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            roots = [name.split("/")[0] for name in archive.namelist() if name.endswith("/constants.pkl")]
            if roots:
                return dict(_tensors(_ArchiveReader(archive, roots[0]).load())), ARCHIVE
    elif _is_safetensors(path):
        return _read_safetensors(path), "safetensors"
    return torch.load(path, map_location="cpu", weights_only=True), "state dict"


def _state_dict_of(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        content = next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise ClipError(f"{path} holds no state dict, but a {type(content).__name__} without tensors by name")
    strange = [str(name) for name, value in content.items()
               if not isinstance(name, str) or not isinstance(value, Tensor)]
    if strange:
        raise ClipError(f"{path} holds no state dict of CLIP: {', '.join(strange[:5])} are no tensors; "
                        "save the model's state_dict() alone")
    return dict(content)


class _Module:
    """Stands for any module in a TorchScript archive: it takes the attributes, none of the code."""


class _ArchiveReader(pickle.Unpickler):
    """Unpickles a TorchScript archive's tensors and refuses all else.

    torch.jit.load is no alternative: it runs the archive's own `__setstate__`, and torch is retiring it.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: storage.as_strided(size, stride, offset)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":  # marks the type of a list or a dict
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")

    def persistent_load(self, pid: tuple) -> Tensor:
        _, dtype, key, *_ = pid
        return torch.frombuffer(bytearray(self.archive.read(f"{self.root}/data/{key}")), dtype=dtype)


def _tensors(module: _Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")


def _is_safetensors(path: Path) -> bool:
    """Such a file starts with the length of its JSON header in eight bytes, then the header's brace."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def weights_hash(model: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of all tensors, in the order of the names.

    Of a model that `load` made it is that of the tensors as they lie in its file, under OpenAI's names, whatever
    the file's form and whatever size, precision and device the model has now. A model made otherwise has that of
    its state dict.
    """
    if isinstance(model, CLIP) and model.source:
        return model.source.weights_hash
    state = model.state_dict() if isinstance(model, nn.Module) else model
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
