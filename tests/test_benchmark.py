"""The benchmark's parts at a tiny size: what its tables hold, and that it compares like with like."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import benchmark
from benchmarks.breakdown import REST, kind_of, shares_of_time
from benchmarks.parts import (
    CASES,
    draw_photos,
    make_clip,
    make_step,
    measure_apart,
    measure_pipeline,
    measure_step,
    measure_texts,
    take_step,
)
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
    other = make_clip("tiny", "fp32", CPU, fold=False)
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


def test_the_image_reference_has_the_published_strong_view(tmp_path):
    """As much detail as ours: a bilinear crop, and a blur on every image."""
    torch.manual_seed(0)
    paths, plain = draw_photos(tmp_path, 8, (96, 72)), ((0, 0, 0), (1, 1, 1))
    _, strong = build_views(32, ("random_resized_crop", "random_flip", "color_jitter", "random_grayscale",
                                 "gaussian_blur"), *plain)
    loader, reference = build_loader([Item(path, 0, "") for path in paths], {"strong": strong}, 8, 0), PlainImages(
        paths, 32, *plain)
    ours = torch.cat([loader.load(range(8), epoch)["strong"] for epoch in range(12)])
    theirs = torch.stack([reference[index % 8][1] for index in range(96)])
    energies = [(views.diff(dim=-1) ** 2).mean().item() for views in (ours, theirs)]
    assert energies[0] == pytest.approx(energies[1], rel=0.3)


def event(name: str, *around: str) -> SimpleNamespace:
    parent = event(*around) if around else None
    return SimpleNamespace(name=name, cpu_parent=parent)


@pytest.mark.parametrize("names, kind", [
    (["aten::silu"], "GELU"), (["aten::silu_backward", "SiluBackward0"], "GELU"), (["aten::sigmoid"], "GELU"),
    (["aten::native_layer_norm_backward", "NativeLayerNormBackward0"], "LayerNorm"),
    (["aten::bmm", "aten::matmul"], "attention"), (["aten::_softmax_backward_data"], "attention"),
    (["aten::mm", "MmBackward0"], "products"), (["aten::addmm", "aten::linear"], "products"),
    (["aten::mkldnn_convolution"], "products"), (["aten::copy_", "aten::_to_copy", "aten::to"], "copies, casts"),
    (["aten::add_"], "sums"), (["aten::mul", "Optimizer.step#AdamW.step"], "optimiser, norms"),
    (["aten::index", "aten::where"], REST),
    (["aten::empty", "Torch-Compiled Region: 0/0"], "fused by the compiler"),
    (["triton_poi_fused_add_0"], "fused by the compiler")])
def test_kinds_of_work(names, kind):
    assert kind_of(event(*names)) == kind


def test_the_shares_of_a_product_and_a_sum():
    x, y = torch.randn(300, 300), torch.randn(300)
    shares = shares_of_time(lambda: [x @ x for _ in range(20)] and y + y, CPU)
    assert sum(shares.values()) == pytest.approx(1) and shares["products"] > 0.8 and 0 < shares["sums"] < 0.1
    assert shares["attention"] == 0


def test_rows_are_printed_as_they_come(capsys):
    def rows():
        yield {"a": 1, "seconds": 0.5, "shares": {"products": 1.0}}
        assert capsys.readouterr().out == "\ntitle\n\n| a | s |\n| --- | --- |\n| 1 | 0.5 |\n"
        yield {"a": None, "seconds": 1234.5, "shares": {}}

    assert len(benchmark.show("title", rows())) == 2
    assert capsys.readouterr().out == "|  | 1234 |\n"


def test_a_quick_measurement_is_short_and_has_bf16_where_that_is_fast(monkeypatch):
    args = benchmark.parse(["--quick"])
    assert args.limit <= 120 and args.batch == [10] and args.precision is None
    for speedup, precisions in ((3.0, ["fp32", "bf16"]), (0.5, ["fp32"])):
        monkeypatch.setattr("clip.precision.bf16_speedup", lambda speedup=speedup: speedup)
        seen = []
        monkeypatch.setattr(benchmark, "measure", lambda args, *_, seen=seen: seen.append(args))
        benchmark.main(["--quick", "--device", "cpu"])
        assert seen[0].precision == precisions
        names = [name for name, _ in benchmark.step_cases(seen[0], CPU)]
        assert names == [f"{mode}, ViT-B/32, {precision}, eager" for mode in ("shared teacher", "replace, full")
                         for precision in precisions]


def test_the_pipelines_rows(tmp_path):
    rows = list(measure_pipeline(tmp_path, CPU, 12, 32, 1, 1, photo=(64, 48)))
    assert [row["workers"] for row in rows] == [0, 1]
    assert all(row["images"] == 12 and row["images_per_s"] > 0 and row["filling_images_per_s"] > 0 for row in rows)


def test_the_whole_benchmark_prints_tables_and_writes_a_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "BACKBONES", {"tiny": (32,)})
    monkeypatch.setattr(benchmark, "measure_apart", measure_step)  # a new process each would take seconds
    path = tmp_path / "deep" / "record.json"
    record = benchmark.main(["--backbones", "tiny", "--only", "step", "--batch", "4", "--repeats", "1", "--device",
                             "cpu", "--precision", "fp32", "--json", str(path)])
    assert json.loads(path.read_text()) == record and record["kind"] == "cpu"
    assert [(row["trainer"], row["mode"]) for row in record["steps"]] == [case[:2] for case in CASES]
    for row in record["steps"]:
        assert row["images_per_s"] == pytest.approx(4 / row["seconds"]) and row["floor_fraction"] > 0
        assert row["times_reference"] > 0 and row["tflop"] > 0 and row["way"] == "eager"
        assert sum(row["shares"].values()) == pytest.approx(1) and row["shares"]["products"] > 0
    flops = {row["mode"]: row["tflop"] for row in record["steps"]}
    assert flops["frozen teacher"] < flops["shared teacher"] and flops["append, warm-up"] < 0.7 * flops["append, full"]
    assert flops["replace, full"] < flops["append, full"]
    printed = capsys.readouterr().out
    assert "| of the floor |" in printed and printed.count("| MultiLayerLaFTer |") == 6  # and where its time goes
    assert "| LayerNorm | GELU | attention | products |" in printed and record["left_out"] == []
    assert benchmark.record_path({"device": "Some (R) GPU @ 2", "date": "2000-01-02"}).as_posix().endswith(
        "configs/benchmarks/some-r-gpu-2-2000-01-02.json")


def test_a_step_is_measured_in_a_process_of_its_own():
    row = measure_apart("tiny", "fp32", 2, CASES[1], CPU, 1, "eager", False, False, 1)
    assert (row["trainer"], row["mode"]) == CASES[1][:2] and row["images_per_s"] == pytest.approx(2 / row["seconds"])


def test_the_scaling_table(tmp_path):
    rows = measure_scaling(tmp_path, CPU, (20, 40), (2, 4), (10, 20), steps=2)
    assert [row["count"] for row in rows] == [20] * 3 + [40] * 3 + [2, 4] + [10, 10, 20, 20]
    assert all(row["seconds"] > 0 for row in rows)
