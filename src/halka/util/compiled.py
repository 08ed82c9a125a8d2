"""`see_hooks`: code that torch compiled, where hooks on modules come and go."""

from __future__ import annotations

import torch


def see_hooks() -> None:
    """From now on compiled code is made anew where hooks came or went; what was compiled without that look is dropped.

    Torch does not look by default: a base that was compiled bare, or a second one of its class, would go on without its
    adapters.
    """
    config = torch._dynamo.config
    if config.skip_nnmodule_hook_guards:
        config.skip_nnmodule_hook_guards = False
        torch.compiler.reset()
