"""A key that stands twice is an error; what YAML has for sharing keys is none."""

import pytest
import yaml

from halka.util.yaml_text import read_yaml

NESTED = "a: &x {b: 1, c: 9}\nd: [{e: &y {<<: *x, c: 2}}]\nf: {<<: *y}"


@pytest.mark.parametrize("text", ["train: {lr: 1}\ntrain: {epochs: 2}", "a: [{b: 1, c: 2, 'b': 3}]", "1: a\n1: b"])
def test_a_key_that_stands_twice_is_an_error_with_its_line(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match=r"the key '\w+' stands twice(.|\n)*line \d+"):
        read_yaml(text)


@pytest.mark.parametrize(
    "text", ["", "a: &x {b: 1}\nc: {<<: *x, b: 2}", "- a\n- a", "a: {b: 1}\nb: 1", "1: a\n'1': b", NESTED]
)
def test_other_texts_are_read_as_ever(text: str) -> None:
    assert read_yaml(text) == yaml.safe_load(text)
