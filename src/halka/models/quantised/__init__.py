"""A base in fewer bits: the linear layers of its blocks are packed, one after another, as NF4 or int8."""

from __future__ import annotations

from typing import Any

import torch

from halka.core import LINEAR_ROLES, Packed, form_of
from halka.models.fingerprint import samples
from halka.models.layouts import layout_of, linear_targets
from halka.models.quantised.int8 import Int8Linear
from halka.models.quantised.nf4 import NF4Linear, bitsandbytes
from halka.util.errors import HalkaError
from halka.util.files import let_go

FORMS: dict[str, type[Packed]] = {each.form: each for each in (NF4Linear, Int8Linear)}


def check_form(form: str) -> None:
    """Raises ValueError for a form that there is not, and one that needs what is not installed."""
    if form not in FORMS:
        raise HalkaError(f"quantize {form!r} is none of {', '.join(FORMS)}")
    if form == NF4Linear.form:
        bitsandbytes()


def quantise(base: Any, form: str) -> None:
    """Pack the linear layers of a transformers model's blocks, in place; embeddings, norms, biases and head stay.

    Each layer's weight is let go of before the next is packed, and what stays is copied out of a file that was mapped
    into memory: the model is never there twice.

    Raises ValueError as `check_form` does, for an architecture without a layout, and for a base that is packed.
    """
    check_form(form)
    if (already := form_of(base)) is not None:
        raise HalkaError(f"the base is packed as {already} already: load it anew to pack it as {form}")
    layout = layout_of(base)
    places = [
        (target.name, target.transposed) for target in linear_targets(base, layout) if target.role in LINEAR_ROLES
    ]
    with torch.no_grad():
        for path, transposed in places:
            parent, _, leaf = path.rpartition(".")
            linear = base.get_submodule(path)
            weight = linear.weight
            packed = FORMS[form](
                weight.T.contiguous() if transposed else weight, linear.bias, transposed, samples(weight)
            )
            base.get_submodule(parent).register_module(leaf, packed.train(linear.training))
            let_go(weight.data_ptr(), weight.numel() * weight.element_size())
            del linear, weight
        for module in base.modules():
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.clone()
