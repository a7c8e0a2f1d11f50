"""The layers of a network as text, JSON and YAML."""

from __future__ import annotations

import json

import yaml

from kdcli.analysis.layers import Layer
from kdcli.report.analysis_text import layers_text


def layer(
    path: str,
    type: str,
    shape: str | tuple[str, ...] | None,
    stride: int | None,
    parameters: int,
    flops_share: float | None,
    status: str,
    depth: int,
    layout: str | None = None,
) -> Layer:
    return Layer(
        path=path,
        type=type,
        shape=shape,
        stride=stride,
        parameters=parameters,
        flops_share=flops_share,
        status=status,
        depth=depth,
        layout=layout,
    )


ROWS = (
    layer("model", "ResNet", "[B, 10]", None, 11_689_512, 1.0, "once", 0, "vector"),
    layer("model.layers", "ModuleList", None, None, 11_689_512, None, "container", 1),
    layer("model.layers.0", "Conv2d", "[B, 64, 112, 112]", 2, 9_408, 0.064, "changed in place", 2, "map"),
    layer("model.fpn", "FPN", ("[B, 256, 32, 32]", "[B, 256, 16, 16]"), None, 0, 0.5, "several", 1, "map"),
)


GOLDEN = """\
layer                type         shape               layout   stride   parameters   FLOPs so far   tap
────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
model                ResNet       [B, 10]             vector        -       11.7 M        100.0 %   once
  model.layers       ModuleList   -                   -             -       11.7 M              -   container
    model.layers.0   Conv2d       [B, 64, 112, 112]   map           2        9,408          6.4 %   changed in place
  model.fpn          FPN          [B, 256, 32, 32]    map           -            0         50.0 %   several
                                  [B, 256, 16, 16]
"""


def test_golden() -> None:
    assert layers_text(ROWS) == GOLDEN


def test_depth_tells_what_it_hides() -> None:
    text = layers_text(ROWS, depth=1)
    assert "model.layers.0" not in text and text.endswith("1 deeper layers not shown: raise --depth\n")


def test_long_paths_are_whole_when_piped_and_fold_on_a_terminal() -> None:
    long = layer("a." * 150 + "z", "Conv2d", "[B]", 1, 1, 0.1, "once", 3)
    assert long.path in layers_text([long])
    assert "…" not in layers_text([long], width=60)


def test_json_and_yaml_say_the_same() -> None:
    plain = json.loads(layers_text(ROWS, "json"))
    assert yaml.safe_load(layers_text(ROWS, "yaml")) == plain
    assert plain["layers"][3]["shape"] == ["[B, 256, 32, 32]", "[B, 256, 16, 16]"]
    assert plain["layers"][1]["flops_share"] is None
