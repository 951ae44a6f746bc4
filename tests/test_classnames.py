"""Class names as users write them: lists, texts, files; what YAML or CLIP would make something else of."""

from __future__ import annotations

import logging

import pytest

from utils.config import load_config
from utils.datasets.reading import configured_classnames, normal_name, tell_classnames
from utils.errors import InputError


def names(*value: str) -> list[str]:
    return configured_classnames(load_config("folder", options=["DATASET.CLASSNAMES", *value]))


@pytest.mark.parametrize("text, expected", [
    ("joy, anger, fear", ["joy", "anger", "fear"]), ("joy,anger", ["joy", "anger"]), ("polar bear", ["polar bear"]),
    ("[joy, polar bear]", ["joy", "polar bear"]), ("['tench, Tinca tinca', cat]", ["tench, Tinca tinca", "cat"]),
    ("\u559c\u60a6\uff0c\u6124\u6012\u3001\u5bb3\u6015", ["\u559c\u60a6", "\u6124\u6012", "\u5bb3\u6015"]),
    ("('cat', 'dog')", ["cat", "dog"]), ("['yes', '007', '12:30']", ["yes", "007", "12:30"]),
])
def test_a_list_or_a_text_with_commas(text, expected):
    assert names(text) == expected


@pytest.mark.parametrize("name, content, expected", [
    ("names.txt", b"\xef\xbb\xbfjoy\r\npolar bear\r\n\r\nfear\r\n", ["joy", "polar bear", "fear"]),
    ("NAMES.TXT", b"joy\nanger\n", ["joy", "anger"]), ("names", b"joy\nanger\n", ["joy", "anger"]),
    ("names.csv", b"joy\nanger\n", ["joy", "anger"]), ("one.Csv", b"joy, anger,fear\n", ["joy", "anger", "fear"]),
    ("one.txt", b"joy, anger", ["joy", "anger"]), ("a, b.lst", b"joy\nanger\n", ["joy", "anger"]),
    ("commas.txt", b"tench, Tinca tinca\ncat\n", ["tench, Tinca tinca", "cat"]),
    ("quoted.csv", b'"tench, Tinca tinca"\ncat\n', ["tench, Tinca tinca", "cat"]),
])
def test_any_text_file(tmp_path, monkeypatch, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert names(str(tmp_path / name)) == expected
    monkeypatch.chdir(tmp_path)
    assert names(name) == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert names(f"~/{name}") == expected


@pytest.mark.parametrize("name, content, words", [
    ("gbk.txt", "\u6d77\u6ee9\r\n\u57ce\u5e02".encode("gbk"), "gbk.txt is no UTF-8 text.*save it as UTF-8"),
    ("empty.txt", b"\r\n \n", "empty.txt holds no class names"),
    ("wide.csv", b"0,joy\n1,anger\n", "wide.csv: 0, joy are several columns"),
])
def test_a_file_that_holds_no_names_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        names(str(tmp_path / name))


@pytest.mark.parametrize("name", ["nowhere.txt", "nowhere.CSV", "no/where", "no\\where"])
def test_a_missing_file_is_no_class(name):
    with pytest.raises(FileNotFoundError, match="nowhere|where"):
        names(name)


@pytest.mark.parametrize("text, shown", [
    ("[yes, no]", "True"), ("[joy, 007]", "7"), ("[12:30, x]", "750"), ("[a, null]", "None"), ("[1.50, a]", "1.5"),
    ("[2024-01-01, a]", "2024"), ("yes", "True"), ("null", "None"), ("[a: b]", "'a': 'b'"),
])
def test_what_yaml_makes_something_else_of_is_refused(text, shown):
    with pytest.raises(InputError, match=f"DATASET.CLASSNAMES: YAML reads a word in it as .*{shown}.*put it in quotes"):
        names(text)


def test_names_are_compared_regardless_of_case_and_underscores():
    assert normal_name(" Aquarium_Fish") == normal_name("aquarium  fish") == "aquarium fish"
    assert normal_name("aquariumfish") != normal_name("aquarium fish")


def test_the_names_stand_in_the_log(caplog):
    caplog.set_level(logging.INFO)
    tell_classnames(["joy", "polar bear"])
    assert caplog.messages == ["classes: joy, polar bear"]
    caplog.clear()
    tell_classnames([f"kind{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(500)])
    assert len(caplog.messages) == 1 and len(caplog.messages[0]) < 200
    assert caplog.messages[0].startswith("classes: kindaa, kindab, ") and "489 more" in caplog.messages[0]


@pytest.mark.parametrize("classes, words", [
    (["n01855672", "cat"], "n01855672 (codes)"), (["0", "007", "cat"], "0, 007 (codes)"),
    (["\u5feb\u4e50", "joy"], "\u5feb\u4e50 (no Latin letter)"),
    (["Joy", "joy", "fear"], "Joy / joy (they differ only"),
    ([str(i) for i in range(9)], "0, 1, 2, 3, 4 and 4 more (codes)"),
])
def test_names_that_clip_cannot_read_get_one_warning(caplog, classes, words):
    tell_classnames(classes)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert words in warning.getMessage()


@pytest.mark.parametrize("classes", [["707-320", "A310", "DC-10", "F-16A/B"], ["caf\u00e9", "bread and butter"],
                                     ["2012 Audi S5 Convertible", "T-shirt"]])
def test_ordinary_names_get_none(caplog, classes):
    tell_classnames(classes)
    assert not caplog.records
