"""The pseudo-labeller: the plain image encoder on the weak view and the frozen text classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import DataLoader

from clip.model import CLIP
from clip.transformer import LayerNorm
from utils.data.items import UNKNOWN
from utils.data.loader import micro_batches
from utils.errors import InputError

from .evaluation import plain_features


class Teacher:
    """Gives each training image a hard pseudo-label: argmax of the text classifier on the plain encoder's feature.

    mode `shared`: the encoder with the LayerNorms as they are being trained (the paper's code);
    mode `frozen`: with those it came with, so that `prepare` labels every image once;
    mode `ema`: with an exponential moving average of the trained ones.
    """

    def __init__(self, clip_model: CLIP, classifier: Tensor, mode: str = "shared", decay: float = 0.999):
        self.clip, self.mode, self.decay = clip_model, mode, decay
        self.classifier = classifier.detach().clone()
        self.table: Tensor | None = None  # of mode `frozen`: the label of each image
        self.unlabelled: Tensor | None = None  # on the CPU: which images it has none for
        self.average = {name: parameter.detach().clone() for name, parameter in self._layernorms().items()}

    def _layernorms(self) -> dict[str, Tensor]:
        return {f"{module_name}.{name}": parameter
                for module_name, module in self.clip.visual.named_modules() if isinstance(module, LayerNorm)
                for name, parameter in module.named_parameters()}

    def prepare(self, loader: DataLoader) -> None:
        """In mode `frozen`, label all images of `loader` (weak views, in order) before training changes anything."""
        if self.mode == "frozen":
            outputs = plain_features(self.clip, loader, "pseudo-labels")
            labels = (outputs["features"] @ self.classifier.cpu().t()).argmax(1)
            table = torch.full((len(loader.dataset),), UNKNOWN)  # images that cannot be read stay so
            table[outputs["index"]] = labels
            self.table, self.unlabelled = table.to(self.classifier.device), table == UNKNOWN

    def check(self, batch: dict[str, Tensor]) -> None:
        """InputError where the table of mode `frozen` has no label for an image of `index`, on the CPU, of a batch:
        asked apart, for `labels` waits for nothing."""
        if self.unlabelled is not None and self.unlabelled[batch["index"]].any():
            raise InputError("an image can be read now that could not be when the pseudo-labels were made; start "
                             "anew, or use PSEUDO_LABEL.TEACHER shared")

    @torch.no_grad()
    def labels(self, batch: dict[str, Tensor]) -> Tensor:
        """Pseudo-labels [batch] of a batch with `weak` images and `index`, on the device."""
        if self.mode == "frozen":
            return self.table[batch["index"]]
        weights = self.average if self.mode == "ema" else {}
        features = torch.cat([functional_call(self.clip.visual, weights, (micro["weak"],))
                              for micro in micro_batches({"weak": batch["weak"]})])
        return (F.normalize(features.float(), dim=-1) @ self.classifier.t()).argmax(1)

    @torch.no_grad()
    def step(self) -> None:
        """After an optimiser step: let the average follow (mode `ema`)."""
        if self.mode == "ema":
            parameters = self._layernorms()
            torch._foreach_lerp_([self.average[name] for name in parameters], list(parameters.values()), 1 - self.decay)

    def state_dict(self) -> dict[str, object]:
        average = self.average if self.mode == "ema" else {}
        return {"classifier": self.classifier, "average": average, "table": self.table}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.classifier = state["classifier"].to(self.classifier.device)
        if state["table"] is not None:
            self.table = state["table"].to(self.classifier.device)
            self.unlabelled = (self.table == UNKNOWN).cpu()
        self.average.update({name: tensor.to(self.classifier.device) for name, tensor in state["average"].items()})
