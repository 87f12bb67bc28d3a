"""Reads pipelines from YAML:

pipelines:
  debate:
    description: two planners, one judger        # optional, as is merge
    merge: reused
    nodes:
      - {name: first, agent: planner}            # agent may be left out: called like the node
      - {name: second, agent: planner}
      - {name: judger, after: [first, second]}
"""

from pathlib import Path
from typing import Any

import yaml

from latentmas_core.errors import ConfigError, PipelineError
from latentmas_core.pipelines.spec import PipelineSpec


def load_pipelines(path: Path | str) -> dict[str, PipelineSpec]:
    """The pipelines of a YAML file by their names, in its order."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"pipeline file {str(path)!r} cannot be read: {error.strerror}. Check the path."
        ) from error
    return parse_pipelines(text, source=str(path))


def parse_pipelines(text: str, *, source: str = "YAML") -> dict[str, PipelineSpec]:
    """The pipelines of a YAML text; ``source`` is named in errors."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PipelineError(f"{source} is not valid YAML: {error}.") from error
    pipelines = document.get("pipelines") if isinstance(document, dict) else None
    if not isinstance(pipelines, dict) or set(document) != {"pipelines"}:
        raise PipelineError(
            f"{source} must hold one key, 'pipelines', that maps names to pipelines; "
            f"got {_shape(document)}."
        )
    return {str(name): _parse(str(name), body) for name, body in pipelines.items()}


def _parse(name: str, body: Any) -> PipelineSpec:
    if not isinstance(body, dict) or "name" in body:
        raise PipelineError(
            f"pipeline {name!r} must be a mapping with 'nodes' (its name is its key); "
            f"got {_shape(body)}."
        )
    return PipelineSpec.from_dict({"name": name, **body})


def _shape(value: Any) -> str:
    if isinstance(value, dict):
        return f"the keys {', '.join(map(str, value)) or '(none)'}"
    return type(value).__name__
