"""The pseudo-labeller: the plain image encoder on the weak view, the frozen text classifier, and what corrects it."""

from __future__ import annotations

from collections.abc import Sequence

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

from . import distributed
from .calibration import LogitTable, calibrate
from .evaluation import plain_features
from .image_weights import ImageWeights


class Teacher:
    """Gives each training image a pseudo-label: argmax of the text classifier on the plain encoder's feature, its
    logits calibrated or not.

    mode `shared`: the encoder with the LayerNorms as they are being trained (the paper's code);
    mode `frozen`: with those it came with, so that `prepare` labels every image once;
    mode `ema`: with an exponential moving average of the trained ones.

    `calibration` and `prior` are those of `calibrate`; the statistics are taken over all training images, as the
    teacher sees them when they come by. `weights` say how much each image counts.
    """

    def __init__(self, clip_model: CLIP, classifier: Tensor, mode: str = "shared", decay: float = 0.999,
                 calibration: str = "none", prior: Sequence[float] = (), weights: ImageWeights | None = None):
        self.clip, self.mode, self.decay = clip_model, mode, decay
        self.calibration, self.prior, self.weights = calibration, prior, weights
        self.classifier = classifier.detach().clone()
        self.average = {name: parameter.detach().clone() for name, parameter in self._layernorms().items()}
        self.table: Tensor | None = None  # mode `frozen`: the label of each image [n]
        self.unlabelled: Tensor | None = None  # on the CPU: which images it has none for
        self.uncalibrated: Tensor | None = None  # what it was without calibration
        self.logits: LogitTable | None = None  # where calibrated or weighted
        self.history: Tensor | None = None  # [2, n + 1]: each image's label of this epoch, and the one before that
        self.batch: Tensor | None = None  # of the images under way: index, label and, where the table follows, logits

    def _layernorms(self) -> dict[str, Tensor]:
        return {f"{module_name}.{name}": parameter
                for module_name, module in self.clip.visual.named_modules() if isinstance(module, LayerNorm)
                for name, parameter in module.named_parameters()}

    def prepare(self, loader: DataLoader) -> None:
        """Before training changes anything, see all images of `loader` (weak views, in order) once where that is of
        use: to label them in mode `frozen`, to gather what calibration needs.

        Raises InputError where `check_calibration` does, for the images that could be read.
        """
        images, device = len(loader.dataset), self.classifier.device
        self.history = torch.full((2, images + 1), UNKNOWN, dtype=torch.int32, device=device)
        if self.mode != "frozen" and self.calibration == "none" and not self.weights:
            return
        outputs = plain_features(self.clip, loader, "pseudo-labels")
        logits = outputs["features"] @ self.classifier.cpu().t()
        index, labels = outputs["index"], calibrate(logits, self.calibration, self.prior).argmax(1)
        self.history[1, index.to(device)] = labels.int().to(device)
        if self.mode == "frozen":
            table = torch.full((images,), UNKNOWN)  # images that cannot be read stay so
            table[index] = labels
            self.table, self.unlabelled = table.to(device), table == UNKNOWN
            self.uncalibrated = table.index_copy(0, index, logits.argmax(1)).to(device)
        if self.mode != "frozen" or self.weights:
            self.logits = LogitTable(self.calibration, self.prior)
            self.logits.fill(logits.to(device), index.to(device), images)
        if self.weights:
            self.weights.fill(outputs["features"].to(device), index.to(device), images, len(self.classifier))
            self.weights.follow(self.logits.calibrated(self.logits.known()))

    def check(self, batch: dict[str, Tensor]) -> None:
        """InputError where the table of mode `frozen` has no label for an image of `index`, on the CPU, of a batch:
        asked apart, for `labels` waits for nothing."""
        if self.unlabelled is not None and self.unlabelled[batch["index"]].any():
            raise InputError("an image can be read now that could not be when the pseudo-labels were made; start "
                             "anew, or use PSEUDO_LABEL.TEACHER shared")

    @torch.no_grad()
    def labels(self, batch: dict[str, Tensor]) -> Tensor:
        """Pseudo-labels [batch] of a batch with `index` and, but in mode `frozen`, `weak` images, on the device.

        The batch gets, where they are calibrated, what they would be otherwise, as `uncalibrated` [batch]; where images
        are weighted, as `weight` [batch] and `probabilities` [batch, classes] what `ImageWeights` says of them.
        """
        if self.mode == "frozen":
            labels = self.table[batch["index"]]
            if self.calibration != "none":
                batch["uncalibrated"] = self.uncalibrated[batch["index"]]
            logits = self.logits.of(batch["index"]) if self.logits else None
        else:
            logits = self._logits(batch["weak"])
            labels = logits.argmax(1)
        calibrated = self.logits.calibrated(logits) if self.logits else None
        if self.mode != "frozen" and self.calibration != "none":
            batch["uncalibrated"] = labels
            labels = calibrated.argmax(1)
        if self.weights:
            self._weigh(batch, calibrated)
        if self.history is not None:
            columns = [batch["index"][:, None], labels[:, None], *([logits] if self._follows else [])]
            self.batch = torch.cat([column.to(self._precision) for column in columns], dim=1)
        return labels

    def _weigh(self, batch: dict[str, Tensor], logits: Tensor) -> None:
        batch["weight"] = self.weights.weights(logits, batch["index"], self._latest())
        batch["probabilities"] = self.weights.probabilities(logits)

    def _latest(self) -> Tensor:
        """The last known label of each image [images + 1]."""
        now, before = self.history
        return torch.where(now == UNKNOWN, before, now)

    @property
    def _follows(self) -> bool:
        """Whether the table of logits changes with what is seen."""
        return self.logits is not None and self.mode != "frozen"

    def _logits(self, images: Tensor) -> Tensor:
        """Of weak views: the unit features' products with the classifier's rows [batch, classes], fp32."""
        weights = self.average if self.mode == "ema" else {}
        features = torch.cat([functional_call(self.clip.visual, weights, (micro["weak"],))
                              for micro in micro_batches({"weak": images})])
        return F.normalize(features.float(), dim=-1) @ self.classifier.t()

    @property
    def _precision(self) -> torch.dtype:
        """In which an image's number and its logits are exact alike."""
        return torch.float32 if self.classifier.device.type == "mps" else torch.float64

    @torch.no_grad()
    def step(self, images: int = 0) -> None:
        """After an optimiser step: let the average follow (mode `ema`), and note what was seen of the batch, which had
        `images` images in all processes together."""
        if self.mode == "ema":
            parameters = self._layernorms()
            torch._foreach_lerp_([self.average[name] for name in parameters], list(parameters.values()), 1 - self.decay)
        if self.history is not None:
            self._note(images)

    def _note(self, images: int) -> None:
        classes = len(self.classifier) if self._follows else 0
        own = self.classifier.new_empty(0, 2 + classes, dtype=self._precision) if self.batch is None else self.batch
        own[:, 0].add_(1)  # so that 0 is no image: the last place of each table, which nobody looks at
        seen, self.batch = distributed.gather_rows(own, images), None
        index = seen[:, 0].long() - 1
        self.history[0, index] = seen[:, 1].int()
        self.history[0, -1] = UNKNOWN
        if self._follows:
            self.logits.renew(index, seen[:, 2:].float())

    def label_statistics(self) -> dict[str, object]:
        """Of the epoch's pseudo-labels so far: `pseudo_label_shares`, each class's share; and `pseudo_labels_changed`,
        how many images have another label than in the epoch before, or in the pass before the first, if there was
        one."""
        now, before = self.history[:, :-1].long()
        both = (now != UNKNOWN) & (before != UNKNOWN)
        counts = torch.bincount(now[now != UNKNOWN], minlength=len(self.classifier)).tolist()
        changed = {"pseudo_labels_changed": int((both & (now != before)).sum())} if both.any() else {}
        return {"pseudo_label_shares": [count / sum(counts) for count in counts], **changed}

    @torch.no_grad()
    def end_epoch(self) -> None:
        """The epoch's labels become those of the epoch before, and what is calibrated by epoch is calibrated anew."""
        self.history[1] = self._latest()
        self.history[0] = UNKNOWN
        if self._follows:
            self.logits.end_epoch()
        if self.weights:
            self.weights.follow(self.logits.calibrated(self.logits.known()))

    def state_dict(self) -> dict[str, object]:
        return {"classifier": self.classifier, "average": self.average if self.mode == "ema" else {},
                "table": self.table, "uncalibrated": self.uncalibrated, "history": self.history,
                "logits": self.logits.state_dict() if self.logits else None,
                "weights": self.weights.state_dict() if self.weights else None}

    def load_state_dict(self, state: dict[str, object]) -> None:
        device = self.classifier.device
        self.classifier = state["classifier"].to(device)
        if state["table"] is not None:
            self.table, self.uncalibrated = state["table"].to(device), state["uncalibrated"].to(device)
            self.unlabelled = (self.table == UNKNOWN).cpu()
        self.history = None if state["history"] is None else state["history"].to(device)
        self.average.update({name: tensor.to(device) for name, tensor in state["average"].items()})
        if state["logits"]:
            self.logits = LogitTable(self.calibration, self.prior)
            self.logits.load_state_dict(state["logits"], device)
        if self.weights:
            self.weights.load_state_dict(state["weights"], device)
