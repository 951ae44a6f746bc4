"""The benchmark's parts at a tiny size: what its tables hold, and that it compares like with like."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import benchmark
from benchmarks.parts import CASES, draw_photos, make_clip, make_step, measure_pipeline, measure_texts, take_step
from benchmarks.reference import PlainImages, PlainStep, encode_texts_one_by_one
from benchmarks.scaling import measure_scaling

from tests.conftest import note_gradients
from trainers.texts import encode_texts
from utils.data.items import Item
from utils.data.loader import build_loader
from utils.data.views import build_views

CPU = torch.device("cpu")


def test_the_plain_step_is_our_step():
    """Losses and gradients of reference (c) and of LaFTer with a shared teacher."""
    clip_model = make_clip("tiny", "fp32", CPU)
    cfg, training, objective, batch = make_step(clip_model, "LaFTer", {}, 0, 13)
    other = make_clip("tiny", "fp32", CPU)
    plain = PlainStep(other, training.teacher.classifier, training.model.prompt_embeddings,
                      training.model.adapter.weight)
    loss = plain(batch["weak"], batch["strong"])
    gradients = note_gradients(training)
    assert take_step(training, objective, cfg, batch)["loss"] == pytest.approx(loss.item(), abs=1e-5)
    ours = [gradients[name] for name in ("prompt_embeddings", "adapter.weight", "clip.visual.ln_pre.weight",
                                         "clip.visual.transformer.resblocks.2.ln_2.bias")]
    theirs = [plain.prompts, plain.adapter, other.visual.ln_pre.weight, other.visual.transformer.resblocks[2].ln_2.bias]
    for a, b in zip(ours, theirs):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b.grad, rtol=1e-3, atol=1e-5)


def test_texts_in_batches_are_texts_one_at_a_time():
    clip_model = make_clip("tiny", "fp32", CPU, text=True)
    texts = ["a photo of a cat", "dog", "a long sentence about the fear that an image of the dark evokes", "x y"]
    torch.testing.assert_close(encode_texts(clip_model, texts), encode_texts_one_by_one(clip_model, texts), rtol=0,
                               atol=1e-5)
    row = measure_texts("tiny", "fp32", CPU, 30, 1)
    assert row["texts"] == 30 and row["times_reference"] == row["texts_per_s"] / row["reference_texts_per_s"]


def test_the_image_reference_has_our_weak_view(tmp_path):
    paths, plain = draw_photos(tmp_path, 3, (64, 48)), ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    weak, _ = build_views(32, (), *plain)
    ours = build_loader([Item(path, 0, "") for path in paths], {"weak": weak}, 3, 0).load(range(3))["weak"]
    reference = PlainImages(paths, 32, *plain)
    assert torch.equal(ours, torch.stack([reference[i][0] for i in range(3)]))
    assert reference[0][1].shape == (3, 32, 32)


def test_the_pipelines_rows(tmp_path):
    rows = list(measure_pipeline(tmp_path, CPU, 12, 32, 1, 1, photo=(64, 48)))
    assert [row["workers"] for row in rows] == [0, 1]
    assert all(row["images"] == 12 and row["images_per_s"] > 0 and row["filling_images_per_s"] > 0 for row in rows)


def test_the_whole_benchmark_prints_tables_and_writes_a_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "BACKBONES", {"tiny": (32,)})
    path = tmp_path / "deep" / "record.json"
    record = benchmark.main(["--backbones", "tiny", "--only", "step", "--batch", "4", "--repeats", "1", "--device",
                             "cpu", "--json", str(path)])
    assert json.loads(path.read_text()) == record and record["kind"] == "cpu"
    assert [(row["trainer"], row["mode"]) for row in record["steps"]] == [case[:2] for case in CASES]
    for row in record["steps"]:
        assert row["images_per_s"] == pytest.approx(4 / row["seconds"]) and row["floor_fraction"] > 0
        assert row["times_reference"] > 0 and row["tflop"] > 0
    flops = {row["mode"]: row["tflop"] for row in record["steps"]}
    assert flops["frozen teacher"] < flops["shared teacher"] and flops["append, warm-up"] < 0.7 * flops["append, full"]
    assert flops["replace, full"] < flops["append, full"]
    printed = capsys.readouterr().out
    assert "| of the floor |" in printed and printed.count("| MultiLayerLaFTer |") == 3
    assert benchmark.record_path({"device": "Some (R) GPU @ 2", "date": "2000-01-02"}).as_posix().endswith(
        "configs/benchmarks/some-r-gpu-2-2000-01-02.json")


def test_the_scaling_table(tmp_path):
    rows = measure_scaling(tmp_path, CPU, (20, 40), (2, 4), (10, 20), steps=2)
    assert [row["count"] for row in rows] == [20] * 3 + [40] * 3 + [2, 4] + [10, 10, 20, 20]
    assert all(row["seconds"] > 0 for row in rows)
