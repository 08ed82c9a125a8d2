"""YAML in which no key stands twice: of two the parser would take the later one, and drop the other silently."""

from __future__ import annotations

from typing import Any

import yaml

MERGE = "tag:yaml.org,2002:merge"  # of the key <<, whose keys others override


def read_yaml(text: str) -> Any:
    """What a YAML text holds. Raises YAMLError, also for a mapping that has a key twice."""
    return yaml.load(text, _OnceEach)


class _OnceEach(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # as it is written: what << brings is not in it yet
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE]
        seen = set[tuple[str, str]]()
        for key in keys:
            if (key.tag, key.value) in seen:
                problem = f"the key {key.value!r} stands twice: join what is under both"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add((key.tag, key.value))
        return node
