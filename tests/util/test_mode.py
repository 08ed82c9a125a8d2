"""A mode for a while."""

from __future__ import annotations

from torch import nn

from halka.util.mode import in_mode


def test_afterwards_each_part_is_in_the_mode_that_its_owner_put_it_in():
    base = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    base[1][0].eval()
    modes = [module.training for module in base.modules()]
    with in_mode(False, base):
        assert not any(module.training for module in base.modules())
    assert [module.training for module in base.modules()] == modes
