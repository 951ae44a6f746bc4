"""Reading checkpoints of every form that CLIP comes in, without running anything that is in the file."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import ClipError

# what damaged bytes raise on their way through zipfile, pickle and torch
DAMAGE = (RuntimeError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
          struct.error, zipfile.BadZipFile, zlib.error)
STORAGES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
            "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
            "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
            "BoolStorage": torch.bool}


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint on the CPU: OpenAI's TorchScript archive, a state dict, or safetensors.

    The form is told by the content, not by the name. A state dict may lie under "state_dict" and carry the
    prefix "module.", as OpenCLIP's training writes it. Raises FileNotFoundError for a missing file and
    ClipError for one that is damaged, holds no state dict, or holds Python objects, which would run as code.
    """
    path = Path(path)
    if path.is_dir():
        raise ClipError(f"{path} is a folder; give the checkpoint file itself")
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        content = _read(path)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
        reason = f"it asks for {wanted[1]}" if wanted else "its pickle is no torch.save of tensors"
        raise ClipError(f"{path} is refused: {reason}, and reading more than plain tensors could run code in it. "
                        "Save the model's state_dict() alone, or fetch the file again if it is damaged") from error
    except ClipError:
        raise
    except DAMAGE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClipError(f"{path} cannot be read: it is damaged, cut short or no checkpoint; fetch it again "
                        f"({reason})") from error
    return _state_dict_of(content, path)


def _read(path: Path) -> object:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load itself checks no checksums
            if damaged:
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            roots = [name.split("/")[0] for name in archive.namelist() if name.endswith("/constants.pkl")]
            if roots:
                return dict(_tensors(_ArchiveReader(archive, roots[0]).load()))
    elif _is_safetensors(path):
        return _read_safetensors(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict_of(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise ClipError(f"{path} holds no state dict, but a {type(content).__name__} without tensors by name")
    strange = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise ClipError(f"{path} holds no state dict of CLIP: {', '.join(strange[:5])} are no tensors; "
                        "save the model's state_dict() alone")
    if all(name.startswith("module.") for name in content):
        content = {name.removeprefix("module."): tensor for name, tensor in content.items()}
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
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ClipError(f"{path} is a safetensors file: pip install safetensors to read it") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def weights_hash(model: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of all tensors, in the order of the names.

    Equal for a model and its state dict, on any device; it changes with any weight, and with the precision.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
