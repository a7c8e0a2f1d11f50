"""The table of recipes, and the text of a sample with other values."""

from __future__ import annotations

import pytest
import yaml

from kdcli.commands.recipes import RECIPES, Labels, TeacherKind, recipe_for, recipe_lines
from kdcli.commands.sample_text import SampleText, inline
from kdcli.commands.samples import sample_specs
from kdcli.errors import RunError
from kdcli.spec.text.nodes import to_data
from kdcli.spec.text.source import compose


@pytest.mark.parametrize(
    ("labels", "teacher", "images", "side", "sample"),
    [
        ("classes", "classifier", 999, 95, "few_images"),
        ("classes", "classifier", 1000, 95, "own_images"),
        ("classes", "classifier", 10, 96, "own_photos"),
        ("classes", "features", 10, 96, "foundation"),
        ("none", "classifier", 10, 96, "unlabelled_images"),
        ("none", "features", 10, 96, "foundation"),
        ("boxes", "detector", 10, 96, "own_boxes"),
        ("classes", "none", 10, 96, "finetune"),
    ],
)
def test_a_recipe_is_chosen(
    labels: Labels, teacher: TeacherKind, images: int, side: int, sample: str
) -> None:
    recipe = recipe_for(labels, teacher, images, side)
    assert recipe.sample == sample
    (marked,) = [line for line in recipe_lines(recipe) if line.startswith(">")]
    assert sample in marked
    assert max(map(len, recipe_lines(recipe))) <= 120


@pytest.mark.parametrize(
    ("labels", "teacher"), [("boxes", "classifier"), ("classes", "detector"), ("none", "none")]
)
def test_what_there_is_no_recipe_for(labels: Labels, teacher: TeacherKind) -> None:
    with pytest.raises(RunError) as caught:
        recipe_for(labels, teacher, 100, 100)
    assert caught.value.diagnostics[0].code == "KD866"


def test_every_recipe_is_a_sample_and_can_be_reached() -> None:
    assert {recipe.sample for recipe in RECIPES} <= set(sample_specs())
    for recipe in RECIPES:
        images, side = recipe.images[0] or 1, recipe.side[0] or 1
        assert recipe_for(recipe.labels, recipe.teacher, images, side) is recipe


TEXT = """\
# yaml-language-server: $schema=kdcli.schema.json
# A sample.
#
# Of two lines.
size: &size 64 # <-- pixels

net: # the student
  name: model
  type: a # <-- any
list:
  - {type: x, kwargs: {size: *size}}
  # few:
  #   a: 1
  #   b: {c: 2}
"""


def test_values_are_put_and_the_rest_stays() -> None:
    text = SampleText(TEXT)
    text.put("size", 32)
    text.put("net.type", "my nets:B", beside={"outputs": ["logits", "_"]})
    text.put("list.0.type", "1e3")
    text.begin(["Mine."])
    text.block("saver", {"save_dir": "out"})
    assert str(text) == (
        "# yaml-language-server: $schema=kdcli.schema.json\n# Mine.\n\nsize: &size 32\n\nnet: # the student\n"
        "  name: model\n  type: my nets:B\n  outputs: [logits, _]\nlist:\n"
        '  - {type: "1e3", kwargs: {size: *size}}\n  # few:\n  #   a: 1\n  #   b: {c: 2}\n\nsaver:\n  save_dir: out\n'
    )
    assert yaml.safe_load(str(text))["list"][0]["kwargs"] == {"size": 32}


def test_a_block_is_replaced_and_a_comment_becomes_text() -> None:
    text = SampleText(TEXT.replace("  # few", "# few").replace("  #   ", "#   "))
    text.block("net", [{"name": "one"}, {"name": "two"}])
    text.uncomment("few")
    assert yaml.safe_load(str(text))["net"] == [{"name": "one"}, {"name": "two"}]
    assert yaml.safe_load(str(text))["few"] == {"a": 1, "b": {"c": 2}}


@pytest.mark.parametrize(
    "value",
    [
        "a b",
        "on",
        "1e-3",
        "true",
        "",
        "a: b",
        "#x",
        "x #y",
        "\u00fcml",
        "[a]",
        "{",
        "- a",
        "C:\\x",
        "~/x",
        "hf:a/b@c:d",
    ],
)
def test_a_value_comes_back_from_its_line(value: object) -> None:
    """Also where it stands in a flow list."""
    composed = compose(f"x: [{inline(value)}]\ny: {inline(value)}\n", "text")
    assert not composed.findings and composed.tree is not None
    assert to_data(composed.tree) == {"x": [value], "y": value}


@pytest.mark.parametrize("value", [1, 0.5, 1e-7, True, None, [1, "a, b"], {"a, b": {"c": [0.1]}}])
def test_a_value_that_is_no_text_comes_back(value: object) -> None:
    composed = compose(f"x: [{inline(value)}]\n", "text")
    assert composed.tree is not None and to_data(composed.tree) == {"x": [value]}
