"""Calibrated pseudo-labels: closed forms, the teacher's table of logits, and whole runs that use it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import LaFTer
from tests import tiny_run
from tests.test_processes import ends, nearly, start_two
from trainers import calibration
from trainers.calibration import LogitTable, balance_statistics, check_calibration
from trainers.teacher import Teacher, calibrate
from utils.errors import InputError
from utils.runs.checkpoint import load_checkpoint
from utils.runs.signals import Interrupted

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


def test_what_a_class_attracts_changes_nothing(logits):
    constant, factor = torch.tensor([0.4, -0.1, 0, 0.2, 0.3]), torch.tensor([1.0, 2, 0.5, 3, 1])
    for mode in ("mean", "std", "balance"):
        told = calibrate(logits, mode)
        assert torch.allclose(told, calibrate(logits + 0.3, mode), atol=1e-3)
        if mode != "balance":  # whose temperature is chosen before the classes are balanced
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
    whole = {mode: calibrate(logits, mode) for mode in ("std", "balance")}
    monkeypatch.setattr(calibration, "CHUNK", 7)
    for mode, expected in whole.items():
        assert torch.allclose(calibrate(logits, mode), expected, atol=1e-4)


@pytest.mark.parametrize("counts, least", [((100, 100, 100, 100), 0.95), ((100, 20, 100, 20), 0.8)])
def test_labels_of_images_that_one_class_attracts_are_mended(counts, least):
    """Also, though less, where classes are of unequal size by a factor of five, for all that `mean` and `std` know."""
    truth = torch.arange(4).repeat_interleave(torch.tensor(counts))
    logits = F.one_hot(truth, 4) * 0.05 + torch.tensor([0.06, 0, 0, 0]) + 0.015 * torch.randn(len(truth), 4)
    accuracy = {mode: (calibrate(logits, mode).argmax(1) == truth).float().mean().item()
                for mode in ("none", "mean", "std")}
    assert accuracy["none"] < 0.75 < least < min(accuracy["mean"], accuracy["std"])
    told = calibrate(logits, "balance", counts).argmax(1)
    assert (told == truth).float().mean() > 0.95


@pytest.mark.parametrize("mode", ["mean", "std", "balance"])
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


@pytest.mark.parametrize("mode", ["mean", "std", "balance"])
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


@pytest.mark.parametrize("mode, images, classes, prior, said", [
    ("std", 99, 8, (), "99 of 8 classes are too few: it needs at least 100"),
    ("mean", 120, 120, (), "120 of 120 classes are too few: .*more than one a class"),
    ("balance", 200, 4, (1, 1, 1), "PSEUDO_LABEL.PRIOR has 3 shares for 4 classes"),
])
def test_what_cannot_be_calibrated_is_refused(mode, images, classes, prior, said):
    check_calibration("none", images, classes, prior)
    with pytest.raises(InputError, match=said):
        calibrate(torch.randn(images, classes), mode, prior)


@pytest.mark.parametrize("values, said", [
    ({"CALIBRATION": "best"}, "CALIBRATION is 'best'; valid: none, mean, std, balance"),
    ({"CALIBRATION": "std", "PRIOR": [1, 2]}, "PRIOR is for PSEUDO_LABEL.CALIBRATION balance alone, and that is std"),
    ({"CALIBRATION": "balance", "PRIOR": [1, 0]}, r"PRIOR is \[1, 0\]; it must be a list of shares by class"),
    ({"CALIBRATION": "balance", "PRIOR": "uniform"}, r"PRIOR is \['uniform'\]; it must be a list"),
])
def test_settings_are_checked(make_cfg, values, said):
    with pytest.raises(InputError, match=said):
        make_cfg({f"PSEUDO_LABEL.{key}": value for key, value in values.items()})


def test_too_few_images_are_told_before_any_phase(tmp_path):
    tiny_run.make_inputs(tmp_path)
    with pytest.raises(InputError, match="calibration std .* and 18 of 3 classes are too few"):
        LaFTer.main(tiny_run.arguments(tmp_path, "x", "PSEUDO_LABEL.CALIBRATION", "std"))


def damage(folder: Path) -> None:
    for victim in ("red/9.png", "green/3.png", "green/4.png", "blue/1.png"):  # most of them are not held out
        (folder / "data" / "train" / victim).write_bytes(b"no image")


SETTINGS = {  # of whole runs
    "std": ["PSEUDO_LABEL.CALIBRATION", "std", "--batch_size", "34", "--epochs", "2"],
    "balance": ["PSEUDO_LABEL.CALIBRATION", "balance", "PSEUDO_LABEL.PRIOR", "[1, 1, 2]", "--batch_size", "34",
                "--epochs", "2", "PSEUDO_LABEL.TEACHER", "ema", "PSEUDO_LABEL.EMA_DECAY", "0.5"],
}


@pytest.mark.parametrize("mode", SETTINGS)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(tmp_path, mode, monkeypatch):
    """Stopped by Ctrl-C within its second epoch. An image that cannot be read takes no part."""
    tiny_run.make_inputs(tmp_path, train=42)
    damage(tmp_path)
    options = [*SETTINGS[mode], "DATALOADER.ON_ERROR", "skip"]
    LaFTer.main(tiny_run.arguments(tmp_path, "whole", *options))
    _, rows, state = whole = tiny_run.record(tiny_run.run_folder(tmp_path, "whole"))
    teacher = state["teacher"]
    assert 100 < teacher["history"][1, :-1].ge(0).sum() == teacher["logits"]["sums"][0, 0] < 108
    for number, row in enumerate(rows[1:]):
        assert sum(row["pseudo_label_shares"]) == pytest.approx(1)
        assert {"pseudo_label_accuracy", "pseudo_label_accuracy_uncalibrated"} <= row.keys()
        assert ("pseudo_labels_changed" in row) == bool(number)

    steps, step = [], Teacher.step

    def interrupted(self, *args):
        steps.append(step(self, *args))
        if len(steps) == 5:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Teacher, "step", interrupted)
        LaFTer.main(tiny_run.arguments(tmp_path, "cut", *options))
    cut = tiny_run.run_folder(tmp_path, "cut")
    progress = load_checkpoint(cut / "checkpoints" / "interrupted.pt", {})["progress"]
    assert progress["step"] == len(steps) - 4 == 2  # of four: the step after the signal is the last
    LaFTer.main(tiny_run.arguments(tmp_path, "cut", *options, "--resume", "auto"))
    tiny_run.assert_same(tiny_run.record(cut), whole)
    log = (cut / "log.txt").read_text(encoding="utf-8")
    assert "% (uncalibrated " in log


def test_two_processes_calibrate_as_one_does(tmp_path):
    """Batches of 25 images do not divide evenly, nor do those that cannot be read."""
    tiny_run.make_inputs(tmp_path, train=41)
    damage(tmp_path)
    options = [*SETTINGS["std"], "--batch_size", "25", "DATALOADER.ON_ERROR", "skip"]
    LaFTer.main(tiny_run.arguments(tmp_path, "one", *options))
    for status, said in ends(start_two(*tiny_run.arguments(tmp_path, "two", *options))):
        assert status == 0, said
    one, two = (tiny_run.record(tiny_run.run_folder(tmp_path, name)) for name in ("one", "two"))
    tables = [state["teacher"]["logits"].pop("rows") for *_, state in (one, two)]
    assert torch.allclose(*(table[:-1].float() for table in tables), rtol=2e-3, atol=1e-4)  # of half precision
    for *_, state in (one, two):
        del state["rng"]
        state["unreadable"].sort()
        state["teacher"]["history"] = state["teacher"]["history"][:, :-1]  # the last place is no image's
    for a, b, part in zip(one, two, ("final", "rows", "checkpoint")):
        tiny_run.assert_same(a, b, part, nearly)


def test_images_without_labels_are_calibrated_too(tmp_path):
    tiny_run.make_inputs(tmp_path, train=42)
    plain = tmp_path / "plain" / "train"
    plain.mkdir(parents=True)
    for place, image in enumerate(sorted((tmp_path / "data" / "train").rglob("*.png"))):
        image.rename(plain / f"{place}.png")
    LaFTer.main(tiny_run.arguments(tmp_path, "x", *SETTINGS["std"], "--root", str(tmp_path / "plain"),
                                   "DATASET.CLASSNAMES", "[blue, green, red]"))
    (run,) = (tmp_path / "runs").glob("*/LaFTer/clip/x")
    _, rows, state = tiny_run.record(run)
    assert all("pseudo_label_accuracy" not in row and len(row["pseudo_label_shares"]) == 3 for row in rows[1:])
    assert state["teacher"]["logits"]["rows"].isfinite().all(1).sum() > 100
