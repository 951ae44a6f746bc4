"""Published figures, and which runs they may stand beside: those of the same weights, data, split and protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..config import PROJECT, flatten
from ..files import read_yaml

UNKNOWN = "none are known"  # of this data set


def read_published() -> dict:
    """configs/published.yaml."""
    return read_yaml(PROJECT / "configs" / "published.yaml")


def published_top1(runs: Sequence[dict]) -> tuple[dict[str, float], str]:
    """({`CLIP`, `LaFTer`: top-1 in per cent}, ""), or ({}, why no published figures stand beside these runs)."""
    published = read_published()["top1"]
    known = published["figures"].get(runs[0]["dataset"])
    if known is None:
        return {}, UNKNOWN
    for run in runs:
        if reason := _top1_mismatch(run, published["backbone"], published["protocol"], known):
            return {}, reason
    return {name: known[name] for name in ("CLIP", "LaFTer")}, ""


def published_distributions(runs: Sequence[dict]) -> tuple[dict[str, dict[str, float]], str]:
    """({method: {metric: value}}, ""), or ({}, why no published ones stand below these runs)."""
    published = read_published()["distributions"]
    known = published["figures"].get(runs[0]["dataset"])
    if known is None:
        return {}, UNKNOWN
    for run in runs:
        reason = _settings_mismatch(run, published["protocol"])
        if (classes := len(run.get("classnames", ()))) != published["classes"]:
            reason = f"it has {classes} classes, not {published['classes']}"
        if reason:
            return {}, reason
    return known, ""


def _top1_mismatch(run: dict, backbone: str, protocol: Mapping[str, list], known: Mapping[str, object]) -> str:
    """Why a run is not what the published figures are of; "" where it is."""
    if run["supervision"] != "pseudo":
        return "it learns from labels"
    if run.get("official") != backbone:
        return f"its backbone is not OpenAI's official {backbone}"
    if reason := _settings_mismatch(run, protocol):
        return reason
    data = run.get("data", {})
    low, high = known["test"] if isinstance(known["test"], list) else [known["test"]] * 2
    if not low <= data.get("test", 0) <= high:
        return f"it has {data.get('test', 'an unknown number of')} test images, the published split {known['test']}"
    if data["origin"] != known.get("origin", data["origin"]):
        return f"its split is not that of {known['origin']}"
    return ""


def _settings_mismatch(run: dict, protocol: Mapping[str, list]) -> str:
    path = run["folder"] / "config.yaml"
    if not path.is_file():
        return "its config.yaml is not there"
    settings = dict(flatten(read_yaml(path)))
    for key, valid in protocol.items():
        if settings.get(key) not in valid:
            return f"{key} is {settings.get(key)!r}"
    return ""
