"""Calibration: closed forms, the teacher's table of logits, and what it does to labels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from trainers import calibration
from trainers.calibration import FEW, LogitTable, balance_statistics, check_calibration, settle_calibration
from trainers.checks import check_pseudo_labels
from trainers.image_weights import ImageWeights
from trainers.predict import class_probabilities
from trainers.teacher import Teacher, calibrate
from utils.config import default_config
from utils.errors import InputError

COUNT, CLASSES = 240, 5


@pytest.fixture
def logits() -> torch.Tensor:
    """Of COUNT images, as CLIP's cosines are: near .25, and one class attracts more than the others."""
    attraction = torch.tensor([0.03, 0, -0.01, 0.01, -0.03])
    return 0.25 + attraction + 0.02 * torch.randn(COUNT, CLASSES)


def test_by_hand():
    logits = torch.tensor([[1.0, 0.5], [3.0, 0.5]]).repeat(50, 1)
    assert calibrate(logits, "none") is logits
    assert calibrate(logits, "mean")[:2].tolist() == [[-1, 0], [1, 0]]
    assert calibrate(4 * logits, "mean")[:2].tolist() == [[-4, 0], [4, 0]]
    assert calibrate(4 * logits, "std")[:2].tolist() == [[-1, 0], [1, 0]]  # a class without spread says nothing
    rest = calibrate(torch.tensor([[5.0, 1, 0], [3, 4, 2], [1, 2, 6], [2, 3, 7]]).repeat(25, 1), "rest")
    sums, means = torch.tensor([3.0 + 1 + 2, 1 + 2 + 3, 0 + 2]), torch.tensor([2.75, 2.5, 3.75])
    shift = (25 * sums + FEW * means) / (torch.tensor([75, 75, 50]) + FEW)  # class 2 is the highest of half the images
    assert torch.allclose(rest[:2], torch.tensor([[5.0, 1, 0], [3, 4, 2]]) - shift, atol=1e-6)


def test_what_a_class_attracts_changes_nothing(logits):
    constant, factor = torch.tensor([0.4, -0.1, 0, 0.2, 0.3]), torch.tensor([1.0, 2, 0.5, 3, 1])
    for mode in ("mean", "std", "rest", "balance"):
        told = calibrate(logits, mode)
        assert torch.allclose(told, calibrate(logits + 0.3, mode), atol=1e-3)
        if mode in ("mean", "std"):  # the others go by the classes that are the most probable before
            assert torch.allclose(told, calibrate(logits + constant, mode), atol=1e-4)
    scaled = calibrate(factor * logits + constant, "std")
    assert torch.allclose(scaled, calibrate(logits, "std"), atol=1e-4)
    assert not torch.allclose(calibrate(factor * logits, "mean"), calibrate(logits, "mean"), atol=1e-2)


@pytest.mark.parametrize("prior", [(), (1, 2, 3, 4, 10), (0.02, 0.08, 0.2, 0.3, 0.4)])
def test_balance_has_the_priors_marginals(logits, prior):
    shares = calibrate(logits, "balance", prior)
    expected = torch.tensor(prior or (1.0,) * CLASSES)
    assert torch.allclose(shares.sum(1), torch.ones(COUNT), atol=1e-5)
    assert torch.allclose(shares.mean(0), expected / expected.sum(), atol=1e-3)


def test_balance_is_sinkhorns_scaling_at_the_temperature_of_ninety_per_cent(logits):
    _, scale = balance_statistics(logits)
    table = (logits / scale).softmax(1).double()
    assert table.amax(1).mean().item() == pytest.approx(0.9, abs=1e-4)
    for _ in range(200):
        table = table / table.sum(0) / CLASSES
        table = table / table.sum(1, keepdim=True)
    assert torch.allclose(calibrate(logits, "balance"), table.float(), atol=1e-3)


def test_the_size_of_the_parts_worked_on_changes_nothing(logits, monkeypatch):
    whole = {mode: calibrate(logits, mode) for mode in ("std", "rest", "balance")}
    monkeypatch.setattr(calibration, "CHUNK", 7)
    for mode, expected in whole.items():
        assert torch.allclose(calibrate(logits, mode), expected, atol=1e-4)


@pytest.mark.parametrize("counts, least", [((100, 100, 100, 100), 0.95), ((100, 20, 100, 20), 0.8)])
def test_labels_of_images_that_one_class_attracts_are_mended(counts, least):
    """Also, though less, where classes are of unequal size by a factor of five, for all that they know."""
    truth = torch.arange(4).repeat_interleave(torch.tensor(counts))
    logits = F.one_hot(truth, 4) * 0.05 + torch.tensor([0.06, 0, 0, 0]) + 0.015 * torch.randn(len(truth), 4)
    accuracy = {mode: (calibrate(logits, mode).argmax(1) == truth).float().mean().item()
                for mode in ("none", "mean", "std", "rest")}
    assert accuracy["none"] < 0.75 < least < min(accuracy["mean"], accuracy["std"])
    assert accuracy["none"] + 0.1 < accuracy["rest"]
    told = calibrate(logits, "balance", counts).argmax(1)
    assert (told == truth).float().mean() > 0.95


def test_how_many_images_a_class_has_hardly_moves_what_rest_takes_off():
    """It does move what `mean` takes off."""
    of_each = torch.eye(3) + torch.tensor([0.3, 0, 0.1])  # a class's images look 1 more like it than the others do
    equal, unequal = of_each.repeat(500, 1), torch.cat([of_each.repeat(500, 1), of_each[:1].repeat(4500, 1)])
    assert torch.allclose(calibrate(equal, "rest")[:3], torch.eye(3), atol=0.01)
    assert torch.allclose(calibrate(unequal, "rest")[:3], torch.eye(3), atol=0.01)
    assert torch.allclose(calibrate(equal, "mean")[:3], torch.eye(3) - 1 / 3, atol=1e-6)
    assert calibrate(unequal, "mean")[0, 0] < 0.2  # most images are of this class, and are taken for its bias


@pytest.mark.parametrize("attraction", [0.08, 0.1, 0.2])  # the class is the highest of all but a few images, or of all
def test_rest_mends_a_class_that_attracts_nearly_all_images(logits, attraction):
    attracting = logits + torch.tensor([attraction, 0, 0, 0, 0])
    assert (attracting.argmax(1) == 0).float().mean() > 0.98
    assert (calibrate(attracting, "rest").argmax(1) == 0).float().mean() < 0.3  # a fifth is fair


def test_the_table_corrects_a_class_that_attracts_all_images_more_and_more(logits):
    table, index = LogitTable("rest"), torch.arange(COUNT)
    table.fill(logits + torch.tensor([0.2, 0, 0, 0, 0]), index, COUNT)
    now = logits + torch.tensor([0.3, 0, 0, 0, 0])
    table.renew(index, now)
    assert torch.allclose(table.calibrated(now), calibrate(now, "rest"), atol=1e-3)


@pytest.mark.parametrize("mode", ["mean", "std", "rest", "balance"])
def test_the_table_follows_what_comes_by(logits, mode):
    """Rows that are renewed, that were missing, and that stand for no image; what it says is `calibrate`'s word."""
    table, there = LogitTable(mode), torch.arange(COUNT - 20)  # the last could not be read
    table.fill(logits[there], there, COUNT)
    assert torch.equal(table.calibrated(logits).argmax(1),
                       ((logits - table.shift) / table.scale).argmax(1))
    now = logits.clone()
    for _ in range(40):
        index = torch.randperm(COUNT)[:30]
        now[index] += 0.01 * torch.randn(30, CLASSES)
        seen = now.clone()
        table.renew(torch.cat([index, torch.tensor([-1, -1])]), torch.cat([seen[index], torch.zeros(2, CLASSES)]))
        there = torch.unique(torch.cat([there, index]))
    table.end_epoch()
    expected = calibrate(now[there], mode)
    told = table.calibrated(now[there])
    assert torch.allclose(told.softmax(1) if mode == "balance" else told, expected, atol=5e-3)
    assert len(there) > COUNT - 20 and table.sums[0, 0] == len(there)
    assert mode != "rest" or table.sums[3].sum() == (CLASSES - 1) * len(there)  # for all but one


@pytest.fixture
def clip_model(make_clip):
    return make_clip(4)


class Loader(list):
    """Batches of weak views that are there already."""

    def __init__(self, weak: torch.Tensor, unreadable: tuple[int, ...] = ()):
        self.dataset, self.unreadable = weak, []
        index = torch.tensor([place for place in range(len(weak)) if place not in unreadable])
        super().__init__({"weak": weak[part], "index": part, "label": torch.full_like(part, -1)}
                         for part in index.split(64))


@pytest.fixture
def weak() -> torch.Tensor:
    return torch.randn(120, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def classifier(clip_model, weak) -> torch.Tensor:
    features = F.normalize(clip_model.encode_image(weak), dim=-1)
    return F.normalize(features[:CLASSES] - features.mean(0), dim=-1) + 0.3 * features.mean(0)


def plain_logits(clip_model, classifier, weak) -> torch.Tensor:
    return F.normalize(clip_model.encode_image(weak), dim=-1) @ classifier.t()


@pytest.mark.parametrize("mode", ["mean", "std", "rest", "balance"])
@pytest.mark.parametrize("teacher_mode", ["shared", "frozen", "ema"])
def test_every_teacher_gives_the_calibrated_labels(clip_model, classifier, weak, teacher_mode, mode):
    teacher, loader = Teacher(clip_model, classifier, teacher_mode, calibration=mode), Loader(weak, (3, 77))
    teacher.prepare(loader)
    for batch in loader:
        batch = dict(batch)
        readable = torch.cat([part["index"] for part in loader])
        logits = plain_logits(clip_model, classifier, weak)
        expected = calibrate(logits[readable], mode).argmax(1)
        labels = teacher.labels(batch)
        agreeing = labels == expected[torch.searchsorted(readable, batch["index"])]
        assert agreeing.float().mean() > 0.98  # rows in half precision may move a statistic by a hair
        assert torch.equal(batch["uncalibrated"], logits[batch["index"]].argmax(1))
        assert not torch.equal(labels, batch["uncalibrated"])
        teacher.step(len(labels))


def test_without_calibration_no_image_is_looked_at_beforehand(clip_model, classifier, weak):
    class Unread(Loader):
        def __iter__(self):
            raise AssertionError("a pass over the images")

    teacher = Teacher(clip_model, classifier)
    teacher.prepare(Unread(weak))
    batch = {"weak": weak, "index": torch.arange(len(weak))}
    assert torch.equal(teacher.labels(batch), plain_logits(clip_model, classifier, weak).argmax(1))
    assert "uncalibrated" not in batch and teacher.state_dict()["logits"] is None


def test_labels_that_changed_are_counted_and_so_are_the_classes(clip_model, classifier, weak):
    teacher = Teacher(clip_model, classifier)
    teacher.prepare(Loader(weak))
    first = plain_logits(clip_model, classifier, weak).argmax(1)

    def epoch(part: torch.Tensor) -> dict[str, object]:
        teacher.labels({"weak": weak[part], "index": part})
        teacher.step(len(part))
        told = teacher.label_statistics()
        teacher.end_epoch()
        return told

    everything = torch.randperm(len(weak))
    shares = [count / 120 for count in torch.bincount(first, minlength=CLASSES).tolist()]
    assert epoch(everything) == {"pseudo_label_shares": shares}
    assert epoch(everything)["pseudo_labels_changed"] == 0
    teacher.classifier = teacher.classifier.roll(1, 0)  # each label is another one
    assert epoch(everything[:50])["pseudo_labels_changed"] == 50
    assert epoch(everything)["pseudo_labels_changed"] == 70  # those left out before are compared with what they had


@pytest.mark.parametrize("mode", ["std", "rest", "balance"])
def test_what_a_step_reads_keeps_its_place_in_memory(clip_model, classifier, weak, mode):
    """So that a step may be recorded and replayed: a CUDA graph knows tensors by their place."""
    chosen = SimpleNamespace(WEIGHT="neighbours", SHARE=0.5, NEIGHBOURS=3)
    teacher = Teacher(clip_model, classifier, calibration=mode, weights=ImageWeights(chosen, 3))
    teacher.prepare(Loader(weak))

    def tensors() -> dict[str, torch.Tensor]:
        state = {"history": teacher.history, **teacher.logits.state_dict(), **teacher.weights.state_dict()}
        return {name: value for name, value in state.items() if name != "epoch"}

    places = {name: value.data_ptr() for name, value in tensors().items()}
    before = {name: value.clone() for name, value in tensors().items()}
    with torch.no_grad():
        teacher.classifier += 0.1 * torch.randn(teacher.classifier.shape)
    teacher.labels({"weak": weak, "index": torch.arange(len(weak))})
    teacher.step(len(weak))
    teacher.end_epoch()
    assert {name: value.data_ptr() for name, value in tensors().items()} == places
    same = {name for name, value in tensors().items() if torch.equal(value, before[name])}
    assert same == {"centre", "nearest"} | ({"scale"} if mode == "rest" else set())  # which is 1


@pytest.mark.parametrize("images, classes, values, mode", [
    (100, 8, {}, "std"), (99, 8, {}, "none"), (120, 120, {}, "none"), (134_217, 1000, {}, "std"),
    (134_218, 1000, {}, "none"), (120, 8, {"TRAIN.SUPERVISION": "labels"}, "none"),
    (120, 8, {"TRAIN.SKIP": True}, "none"),
    (120, 8, {"DUAL_TASK.ENABLED": True, "DATASET.DISTRIBUTION_STRATEGY": "strategy1"}, "none"),
])
def test_auto_is_std_where_classes_are_learnt_from_enough_images(make_cfg, images, classes, values, mode):
    cfg = make_cfg({"PSEUDO_LABEL.CALIBRATION": "auto", **values})
    splits = SimpleNamespace(train=range(images), classnames=range(classes))
    assert mode == settle_calibration(cfg, splits).PSEUDO_LABEL.CALIBRATION
    assert cfg.PSEUDO_LABEL.CALIBRATION == "auto" == default_config().PSEUDO_LABEL.CALIBRATION
    chosen = make_cfg({"PSEUDO_LABEL.CALIBRATION": "rest"})
    assert settle_calibration(chosen, SimpleNamespace(train=range(100), classnames="ab")) == chosen


@pytest.mark.parametrize("mode, images, classes, prior, said", [
    ("std", 99, 8, (), "99 of 8 classes are too few: it needs at least 100"),
    ("mean", 120, 120, (), "120 of 120 classes are too few: .*more than one a class"),
    ("balance", 200, 4, (1, 1, 1), "PSEUDO_LABEL.PRIOR has 3 shares for 4 classes"),
    ("balance", 200, 2, (1, 0), "PSEUDO_LABEL.PRIOR has 2 shares for 2 classes: give one above 0 for each"),
])
def test_what_cannot_be_calibrated_is_refused(mode, images, classes, prior, said):
    check_calibration("none", images, classes, prior)
    with pytest.raises(InputError, match=said):
        calibrate(torch.randn(images, classes), mode, prior)


@pytest.mark.parametrize("values, said", [
    ({"CALIBRATION": "best"}, "CALIBRATION is 'best'; valid: auto, none, mean, std, rest, balance"),
    ({"CALIBRATION": "std", "PRIOR": [1, 2]}, "PRIOR is for PSEUDO_LABEL.CALIBRATION balance alone, and that is std"),
    ({"CALIBRATION": "balance", "PRIOR": "uniform"}, r"PRIOR is \['uniform'\]; it must be a list of numbers"),
    ({"WEIGHT": "best"}, "WEIGHT is 'best'; valid: none, confidence, neighbours"),
    ({"SHARE": 1.5}, r"SHARE is 1.5; it must lie in \[0, 1\]"),
    ({"SOFT": True}, "SOFT is about the distributions of a dual task"),
    ({"FAIRNESS": 1.0, "dual": True}, "FAIRNESS makes the mean prediction uniform, and a dual task learns how much"),
    ({"SHARE": 0.5, "labels": True}, "PSEUDO_LABEL.SHARE is about pseudo-labels, and TRAIN.SUPERVISION is labels"),
])
def test_settings_are_checked(make_cfg, values, said):
    names = {"dual": "DUAL_TASK.ENABLED", "labels": "TRAIN.SUPERVISION"}
    settings = {names.get(key, f"PSEUDO_LABEL.{key}"): "labels" if key == "labels" else value
                for key, value in values.items()}
    with pytest.raises(InputError, match=said):
        check_pseudo_labels(make_cfg(settings))


def test_confidences_keep_their_size_where_spreads_are_made_equal(logits):
    even = torch.randn(COUNT, CLASSES)
    even = 3 * (even - even.mean(0)) / even.std(0, correction=0)
    assert torch.allclose(class_probabilities(even, "std"), even.softmax(1), atol=1e-5)
    assert torch.equal(class_probabilities(logits, "std").argmax(1), calibrate(logits, "std").argmax(1))
