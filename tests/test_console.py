"""What a run tells on the terminal: calm, in one word for one thing, each path once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import LaFTer
from tests import tiny_run
from trainers.training import summarise
from utils.data.images import read_image
from utils.datasets.reading import existing
from utils.errors import InputError, words


def test_a_dual_task_epoch_tells_the_parts_of_its_loss_and_the_divergence():
    row = {"epoch": 3, "loss": 0.75, "dual_task": 0.7, "consistency": 0.05, "grad_norm": 1.0, "train_seconds": 2.0,
           "pseudo_label_accuracy": 0.5, "val": {"top1": 0.25, "kl": 0.4567}, "test": {"top1": 0.3, "kl": 0.5}}
    assert summarise(row) == ("loss 0.7500 (dual task 0.7000, consistency 0.0500), pseudo-labels 50.0 %, "
                              "val 25.0 % (KL 0.457), test 30.0 % (KL 0.500), 2.0 s")
    plain = {"epoch": 1, "loss": 0.75, "cross_entropy": 0.75, "train_seconds": 2.0, "test": {"top1": 0.3}}
    assert summarise(plain) == "loss 0.7500, test 30.0 %, 2.0 s"


def test_a_run_has_one_word_for_one_thing(tmp_path, caplog):
    tiny_run.make_inputs(tmp_path, train=3, test=1)
    with caplog.at_level(logging.INFO):
        LaFTer.main(tiny_run.arguments(tmp_path, "x", "--dual_task", "DATASET.DISTRIBUTION_STRATEGY", "strategy1",
                                       "DATASET.CIRCLE", "blue,green,red", "--epochs", "1"))
    told = "\n".join(caplog.messages)
    assert "zero-shot, test: " in told and "text classifier, test: " in told
    assert "text phase: AdamW" in told and "it trains classifier 96" in told
    assert told.count("trained parameters: ") == 1
    for other in ("zero shot", "adapter", "text training", " nor "):
        assert other not in told


def test_a_message_names_a_path_once(tmp_path):
    broken = tmp_path / "no image.png"
    broken.write_bytes(b"text")
    with pytest.raises(InputError, match="cannot read image .*; replace or remove it") as caught:
        read_image(broken)
    assert str(caught.value).count(broken.name) == 1
    with pytest.raises(FileNotFoundError) as caught:
        existing("annotation", Path("a/ground_truth.txt"), Path("a/Emotion6.json"))
    assert str(caught.value) == (f"annotation {Path('a/ground_truth.txt')} or Emotion6.json does not exist; set --root "
                                 "to the folder that holds the data")


@pytest.mark.parametrize("error, said", [
    (PermissionError(13, "Permission denied", "b.mat"), "Permission denied"), (OSError("cut off"), "cut off"),
    (ValueError("cannot identify image file 'b.mat'\n in line 2"), "cannot identify image file in line 2"),
    (ValueError("b.mat: bad"), "bad"),
])
def test_the_words_of_an_error_without_its_path(error, said):
    assert words(error, Path("b.mat")) == said
