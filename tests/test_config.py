"""Where each value of the configuration comes from, and what is refused."""

from __future__ import annotations

import pytest
import yaml

import utils.config
from utils.config import PROJECT, default_config, image_size, load_config
from utils.errors import InputError


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder of the test's own: its configs/ are the only ones that are found by name."""
    for folder in ("datasets", "trainers/LaFTer", "trainers/MultiLayerLaFTer"):
        (tmp_path / "configs" / folder).mkdir(parents=True)
    monkeypatch.setattr(utils.config, "PROJECT", tmp_path)
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        path = tmp_path / "configs" / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def load(*options: str, flags: dict | None = None, **files: str):
    return load_config(files.get("dataset", ""), files.get("trainer", ""), flags, ("DATASET.NAME", "demo", *options))


def refusal(*options: str, flags: dict | None = None, **files: str) -> str:
    """The one line with which a configuration is refused."""
    with pytest.raises(InputError) as caught:
        load(*options, flags=flags, **files)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# --- precedence -----------------------------------------------------------------------------------------------------

def test_each_source_overrides_the_one_before(project):
    def values(*options, **sources):
        optim = load(*options, **sources).OPTIM
        return optim.LR, optim.MAX_EPOCH, optim.WEIGHT_DECAY, optim.GAMMA

    sources = {}
    assert values() == (5e-4, 50, 0.01, 0.1)
    sources["dataset"] = project("datasets/x.yaml", "OPTIM: {LR: 0.1, MAX_EPOCH: 7, WEIGHT_DECAY: 0.5, GAMMA: 0.2}\n")
    assert values(**sources) == (0.1, 7, 0.5, 0.2)
    sources["trainer"] = project("trainers/y.yaml", "OPTIM: {LR: 0.2, MAX_EPOCH: 8, WEIGHT_DECAY: 0.6}\n")
    assert values(**sources) == (0.2, 8, 0.6, 0.2)
    sources["flags"] = {"OPTIM.LR": 0.3, "OPTIM.MAX_EPOCH": 9}
    assert values(**sources) == (0.3, 9, 0.6, 0.2)
    assert values("OPTIM.LR", "0.4", **sources) == (0.4, 9, 0.6, 0.2)


def test_trainer_files_are_picked_by_trainer_and_backbone(project):
    project("trainers/LaFTer/default.yaml", "PROMPT_NUM: 11\nSEED: 11\n")
    project("trainers/LaFTer/vit_b32.yaml", "SEED: 12\n")
    project("trainers/LaFTer/vit_l14_336px.yaml", "SEED: 13\n")
    project("trainers/MultiLayerLaFTer/default.yaml", "PROMPT_NUM: 21\nSEED: 21\n")
    assert (load().PROMPT_NUM, load().SEED) == (11, 12)
    assert load("MODEL.BACKBONE.NAME", "ViT-L/14@336px").SEED == 13
    assert load("MODEL.BACKBONE.NAME", "ViT-B/16").SEED == 11
    assert load(flags={"MODEL.BACKBONE.NAME": "some/vit_b32.pt"}).SEED == 12
    for way in (dict(flags={"TRAINER.NAME": "MultiLayerLaFTer"}),
                dict(dataset=project("datasets/d.yaml", "TRAINER: {NAME: MultiLayerLaFTer}\n"))):
        cfg = load(**way)
        assert (cfg.TRAINER.NAME, cfg.PROMPT_NUM, cfg.SEED) == ("MultiLayerLaFTer", 21, 21)
    assert load("TRAINER.NAME", "MultiLayerLaFTer").PROMPT_NUM == 21
    own = project("own.yaml", "SEED: 31\nTRAINER: {NAME: MultiLayerLaFTer}\n")  # one given by hand stands above those
    assert (load(trainer=own).SEED, load(trainer=own).PROMPT_NUM) == (31, 21)
    project("trainers/LaFTer/short.yaml", "SEED: 41\n")
    assert (load(trainer="short").SEED, load(trainer="short").PROMPT_NUM) == (41, 11)
    with pytest.raises(FileNotFoundError, match="shrt; trainers/LaFTer known by name: default, short, vit_b32"):
        load(trainer="shrt")


@pytest.mark.parametrize("trainer", ["LaFTer", "MultiLayerLaFTer"])
def test_the_shipped_trainer_defaults_arrive(trainer):
    tree = yaml.safe_load((PROJECT / "configs" / "trainers" / trainer / "default.yaml").read_text(encoding="utf-8"))
    cfg = load("TRAINER.NAME", trainer)
    assert tree
    for key, value in utils.config.flatten(tree):
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert node == value


@pytest.mark.parametrize("path", sorted((PROJECT / "configs" / "datasets").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_data_set_file_loads_by_its_name(path):
    cfg = load_config(path.stem)
    assert path.stem == cfg.DATASET.NAME
    assert cfg == load_config(f"configs/datasets/{path.name}")


# --- old YAML -------------------------------------------------------------------------------------------------------

COOP = """
DATALOADER:
  TRAIN_X:
    BATCH_SIZE: 32
  TEST:
    BATCH_SIZE: 64
  NUM_WORKERS: 8

INPUT:
  SIZE: (224, 224)
  INTERPOLATION: "bicubic"
  PIXEL_MEAN: [0.5, 0.25, 0.125]
  PIXEL_STD: (0.5, 0.5, 0.5)
  TRANSFORMS: ["random_resized_crop", "random_flip", "normalize"]

OPTIM:
  NAME: "sgd"
  LR: 5e-4
  MAX_EPOCH: 200
  LR_SCHEDULER: "cosine"
  WARMUP_EPOCH: 1
  WARMUP_TYPE: "constant"
  WARMUP_CONS_LR: 1e-5

TRAIN:
  PRINT_FREQ: 5

MODEL:
  BACKBONE:
    NAME: "ViT-B/16"
"""


def test_coop_style_yaml_merges(tmp_path):
    (tmp_path / "coop.yaml").write_text(COOP, encoding="utf-8")
    cfg = load(trainer=str(tmp_path / "coop.yaml"))
    assert image_size(cfg) == 224
    assert cfg.INPUT.INTERPOLATION == "bicubic"
    assert list(cfg.INPUT.PIXEL_MEAN) == [0.5, 0.25, 0.125]
    assert list(cfg.INPUT.PIXEL_STD) == [0.5, 0.5, 0.5]
    assert cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 32 and cfg.DATALOADER.TEST.BATCH_SIZE == 64
    assert isinstance(cfg.OPTIM.LR, float) and cfg.OPTIM.LR == 0.0005  # YAML itself reads 5e-4 as a string
    assert (cfg.OPTIM.NAME, cfg.OPTIM.LR_SCHEDULER, cfg.OPTIM.WARMUP_EPOCH) == ("sgd", "cosine", 1)
    assert (cfg.OPTIM.WARMUP_TYPE, cfg.OPTIM.WARMUP_CONS_LR) == ("constant", 1e-5)
    assert (cfg.MODEL.BACKBONE.NAME, cfg.TRAIN.PRINT_FREQ) == ("ViT-B/16", 5)


@pytest.mark.parametrize("size, expected", [("112", 112), ("(64, 64)", 64), ("[96, 96]", 96), ("null", None)])
def test_input_sizes(size, expected):
    assert image_size(load("INPUT.SIZE", size)) == expected


def test_values_take_the_type_of_the_default():
    cfg = load("OPTIM.LR", "1", "EXP_NAME", "3", "OPTIM.STEPSIZE", "20", "DATASET.CLASSNAMES", "names.txt",
               "MULTI_LAYER_PROMPT.STAGES", "[[1, 2], [3]]", "TRAIN.SKIP", "True", "OPTIM.WEIGHT_DECAY", "1e-2")
    assert isinstance(cfg.OPTIM.LR, float) and cfg.OPTIM.LR == 1.0
    assert (cfg.EXP_NAME, cfg.OPTIM.STEPSIZE, cfg.DATASET.CLASSNAMES) == ("3", [20], ["names.txt"])
    assert cfg.MULTI_LAYER_PROMPT.STAGES == [[1, 2], [3]]
    assert cfg.TRAIN.SKIP is True and cfg.OPTIM.WEIGHT_DECAY == 0.01


@pytest.mark.parametrize("text", [
    r"C:\Users\me\data", r"D:\new\table\raw", "C:/data", r"\\server\share\images", r"E:\my photos\2024",
    r"D:\photos #2", "D:", "007", "2024-01-01", "yes", "",
])
def test_an_option_of_a_text_key_is_taken_as_it_stands(text):
    cfg = load("DATASET.ROOT", text, "EXP_NAME", text)
    root, name = cfg.DATASET.ROOT, cfg.EXP_NAME
    assert root == text and name == text


def test_a_template_with_a_colon_is_a_text():
    assert load("TEXT.ZERO_SHOT_TEMPLATE", "a photo: {}").TEXT.ZERO_SHOT_TEMPLATE == "a photo: {}"


# --- refusals -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("key, near", [
    ("OPTIM.LRS", "OPTIM.LR"), ("MODEL.BACKBONE.NAMES", "MODEL.BACKBONE.NAME"), ("OPTIM.MAX_EPOCHS", "OPTIM.MAX_EPOCH"),
    ("DATALOADER.TRAIN.BATCH_SIZE", "DATALOADER.TRAIN_X.BATCH_SIZE"), ("SEDE", "SEED"),
])
def test_an_unknown_key_is_named_with_near_ones(key, near):
    message = refusal(key, "1")
    assert key in message and near in message.split("valid:")[1]


@pytest.mark.parametrize("key, valid, most", [("TEXT.ZQXJKVWPYB", "TEXT.CACHE_DIR", 250), ("of", "OPTIM.*", 400)])
def test_a_key_without_near_ones_gets_its_section_or_the_sections(key, valid, most):
    message = refusal(key, "1")
    assert valid in message and len(message) < most


@pytest.mark.parametrize("options, list_", [
    (("DATASET.CLASSNAMES", "[a,", "b]"), "[a, b]"),
    (("DATASET.CLASSNAMES", "[a,", "b,", "c]", "SEED", "1"), "[a, b, c]"),
    (("DATASET.CLASSNAMES", "a,", "b"), "a, b"), (("INPUT.SIZE", "(224,", "224)"), "(224, 224)"),
    (("SEED", "1", "DATASET.CLASSNAMES", "'[a,", "b]'"), "'[a, b]'"),
])
def test_a_list_that_the_shell_divided(options, list_):
    message = refusal(*options)
    assert "quote the list" in message and f'"{list_}"' in message and len(message) < 150


def test_a_key_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "x.yaml").write_text("SEED: 1\nOPTIM:\n  LR: 0.1\n  GAMMA: 0.5\n  LR: 0.2\n", encoding="utf-8")
    for where in ("dataset", "trainer"):
        message = refusal(**{where: str(tmp_path / "x.yaml")})
        assert "x.yaml: 'LR' stands twice in one place (line 3)" in message


def test_a_yaml_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfSEED: 3\r\n")
    assert load(trainer=str(tmp_path / "x.yaml")).SEED == 3


def test_an_unknown_key_of_a_file_names_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("OPTIM:\n  LEARNING_RATE: 0.1\n", encoding="utf-8")
    for where in ("dataset", "trainer"):
        message = refusal(**{where: str(path)})
        assert "OPTIM.LEARNING_RATE" in message and "mine.yaml" in message


@pytest.mark.parametrize("options, words", [
    (("OPTIM.MAX_EPOCH", "many"), ("OPTIM.MAX_EPOCH", "int", "many")),
    (("OPTIM.MAX_EPOCH", "2.5"), ("OPTIM.MAX_EPOCH", "int", "2.5")),
    (("OPTIM.LR", "fast"), ("OPTIM.LR", "float", "fast")),
    (("OPTIM.LR", "[1]"), ("OPTIM.LR", "float", "[1]")),
    (("TRAIN.SKIP", "maybe"), ("TRAIN.SKIP", "bool", "maybe")),
    (("DATALOADER.NUM_WORKERS", "True"), ("DATALOADER.NUM_WORKERS", "int", "True")),
    (("INPUT.PIXEL_MEAN", "0.5"), ("INPUT.PIXEL_MEAN", "list")),
    (("INPUT.PIXEL_STD", "[0.5, 0.5]"), ("INPUT.PIXEL_STD", "0.5")),
    (("OPTIM.STEPSIZE", "[ten]"), ("OPTIM.STEPSIZE", "ten")),
    (("INPUT.SIZE", "big"), ("INPUT.SIZE", "big")),
    (("INPUT.SIZE", "(224, 112)"), ("INPUT.SIZE", "224")),
    (("INPUT.SIZE", "0"), ("INPUT.SIZE", "0")),
    (("INPUT.SIZE", "True"), ("INPUT.SIZE", "True")),
    (("TEXT.EPOCHS",), ("TEXT.EPOCHS", "alone")),
    (("MODEL.PRECISION", "fp8"), ("MODEL.PRECISION", "fp8", "fp32", "fp16", "bf16", "auto")),
    (("TRAINER.NAME", "lafter"), ("TRAINER.NAME", "'lafter'", "LaFTer", "MultiLayerLaFTer")),
    (("TEXT.MODE", "gpt"), ("TEXT.MODE", "gpt", "templates_only", "cls_only", "zero_shot")),
    (("DATASET.LABEL_SOURCE", "folder"), ("DATASET.LABEL_SOURCE", "votes", "keyword")),
    (("INPUT.INTERPOLATION", "cubic"), ("INPUT.INTERPOLATION", "bicubic")),
    (("OPTIM.LR", "0"), ("OPTIM.LR", "0")),
    (("OPTIM.LR", ".nan"), ("OPTIM.LR", "nan")),
    (("OPTIM.MAX_EPOCH", "0"), ("OPTIM.MAX_EPOCH", "at least 1")),
    (("DATALOADER.TRAIN_X.BATCH_SIZE", "-3"), ("DATALOADER.TRAIN_X.BATCH_SIZE", "-3")),
    (("DUAL_TASK.LAMBDA", "1.5"), ("DUAL_TASK.LAMBDA", "1.5", "[0, 1]")),
    (("DATASET.VAL_FRACTION", "-0.1"), ("DATASET.VAL_FRACTION", "-0.1")),
    (("OPTIM.WEIGHT_DECAY", "-1"), ("OPTIM.WEIGHT_DECAY", "negative")),
    (("SEED", "-1"), ("SEED", "-1")),
    (("OPTIM.WARMUP_CONS_LR", "slow"), ("OPTIM.WARMUP_CONS_LR", "slow")),
    (("OPTIM.WARMUP_TYPE", "cosine"), ("OPTIM.WARMUP_TYPE", "linear", "constant")),
    (("TEXT.SKIP", "True"), ("TRAIN.SUPERVISION", "labels")),
    (("DATASET.NAME", ""), ("--dataset-config-file",)),
])
def test_bad_values_are_refused_in_one_line(options, words):
    message = refusal(*options)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("content", [b"OPTIM: [1, 2", b"OPTIM:\n\tLR: 1", b"- 1\n- 2\n", b"\xff\xfe\x00\x81"])
def test_a_damaged_yaml_is_named(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    assert "bad.yaml" in refusal(dataset=str(path))


def test_a_missing_file_lists_the_known_names():
    with pytest.raises(FileNotFoundError, match="emotion7.*demo.*emotion6"):
        load_config("emotion7")


def test_two_crops_are_served_or_refused_in_label_free_mode():
    """Only supervised training looks at these keys: elsewhere they would be taken and ignored."""
    assert "TRAIN." in refusal("TRAIN.AUGMENT", "True", "TRAIN.TWO_CROPS", "True", "TRAIN.SUPERVISION", "pseudo")
    assert "TRAIN.AUGMENT True" in refusal("TRAIN.TWO_CROPS", "True", "TRAIN.SUPERVISION", "labels")


# --- the dump, and the rest -----------------------------------------------------------------------------------------

def test_the_dump_repeats_the_configuration(tmp_path):
    cfg = load("EXP_NAME", "7", "INPUT.SIZE", "(112, 112)", "OPTIM.LR", "1e-5", "DATASET.ROOT", r"C:\data\new",
               "MULTI_LAYER_PROMPT.STAGES", "[[1, 2], [3]]", "DATASET.CLASSNAMES", "[a, b c, 'null']",
               "TRAINER.NAME", "MultiLayerLaFTer", "DATASET.TEMPLATES", "['a photo: {}', 'größer, {}']",
               "OPTIM.STEPSIZE", "[3, 5]", "RESUME", "auto")
    (tmp_path / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    again = load_config(trainer_file=str(tmp_path / "config.yaml"))
    assert again == cfg and again.dump() == cfg.dump()
    assert again.DATASET.TEMPLATES == ["a photo: {}", "größer, {}"]


def test_the_configuration_is_frozen_and_the_defaults_stay():
    cfg = load("OPTIM.LR", "0.5", "OPTIM.STEPSIZE", "[1]")
    with pytest.raises(AttributeError):
        cfg.OPTIM.LR = 1.0
    with pytest.raises(AttributeError):
        cfg.NEW = 1
    assert (default_config().OPTIM.LR, default_config().OPTIM.STEPSIZE) == (5e-4, [])
