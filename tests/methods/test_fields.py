"""What `@method` makes of a method's fields: its help, its choices, and what it says of peft's names."""

from __future__ import annotations

import inspect
import pydoc
from dataclasses import field, fields
from typing import ClassVar, Literal

import numpy as np
import pytest

import halka
from halka.core import Target
from halka.methods import Joint, all_methods, method


@method
class Twice:
    """A method of somebody's own."""

    name: ClassVar[str] = "twice"
    paper: ClassVar[str] = "none"
    lr: ClassVar[float] = 1e-3

    size: int = field(default=2, metadata={"help": "how large"})
    way: Literal["up", "down"] = field(default="up", metadata={"help": "which way"})
    places: tuple[Literal["here", "there"], ...] = field(default=("here",), metadata={"help": "where"})

    def roles(self):
        return ("linear",)

    def build(self, target: Target):
        return None


@pytest.mark.parametrize("kind", all_methods().values(), ids=lambda kind: kind.name)
def test_help_explains_every_field(kind):
    shown = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    for each in fields(kind):
        assert each.metadata["help"], each.name
        assert f"{each.metadata['help']}" in shown
        assert f"    {each.name}: " in shown
    assert list(inspect.signature(kind).parameters) == [each.name for each in fields(kind)]


def test_a_method_is_a_frozen_dataclass_with_its_own_docstring():
    assert Twice(3, places=["there", "here"]) == Twice(size=3, places=("there", "here"))
    assert hash(Twice()) == hash(Twice())
    assert Twice.__doc__ == (
        "A method of somebody's own.\n\nFields:\n    size: int = 2\n        how large\n"
        "    way: Literal['up', 'down'] = 'up'\n        which way\n"
        "    places: tuple[Literal['here', 'there'], ...] = ('here',)\n        where"
    )
    with pytest.raises(AttributeError, match="size"):
        Twice().size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"way": "left"}, "twice: way is one of up, down, not 'left'"),
        ({"places": ("here", "nowhere")}, "twice: places takes here, there, not 'nowhere'"),
        ({"places": "here"}, r'twice: places is a tuple: \("here",\), not "here"'),
        ({"sise": 3}, r"Twice has no field 'sise': sise=3 is size=3; its fields are size, way, places"),
    ],
)
def test_a_field_or_value_that_there_is_not_is_refused(fields, message):
    with pytest.raises(halka.HalkaError, match=message):
        Twice(**fields)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (
            halka.LoRA,
            {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]},
            r"LoRA has no field 'r', 'lora_alpha', 'target_modules': r=8 is rank=8; lora_alpha=16 is alpha=16; "
            r"target_modules=\['q_proj'\] is targets=\('attn.q',\); its fields are rank, ",
        ),
        (halka.DoRA, {"target_modules": "all-linear"}, r"is targets=\('linear',\)"),
        (halka.LoRA, {"target_modules": {"v_proj", "q_proj"}}, r"is targets=\('attn.q', 'attn.v'\)"),
        (halka.LoRA, {"use_dora": True}, "use_dora: the method halka.DoRA"),
        (halka.Prompt, {"num_virtual_tokens": 8}, "num_virtual_tokens=8 is length=8"),
        (halka.Full, {"r": 8}, "Full has no field 'r': it has no fields"),
        (Joint, {"rank": 8}, "Joint has no field 'rank': its fields are methods"),
        (halka.LoRA, {"targets": ("q_proj",)}, r"lora: targets are linear layers .*, not 'q_proj': q_proj is attn\.q"),
    ],
)
def test_names_of_peft_lead_to_ours(kind, fields, message):
    with pytest.raises(halka.HalkaError, match=message):
        kind(**fields)


def test_numbers_of_numpy_are_taken_as_python_s():
    config = halka.TrainConfig(steps=np.int64(10), lr=np.float32(0.5))
    assert (type(config.steps), type(config.lr)) == (int, float)
    assert halka.LoRA(rank=np.int32(4)).rank == 4
