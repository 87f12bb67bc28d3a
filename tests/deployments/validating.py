"""Runs `latentmas validate` on the shipped config, as it is or changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner, Result

from latentmas_core.cli.app import build_app

REPO = Path(__file__).parents[2]
SHIPPED = REPO / "serve_config.yaml"
ROOMY = ("--node", "cpus=64,gpus=8")

Change = Callable[[dict[str, Any]], Any]


def validate(path: Path, *options: str) -> Result:
    return CliRunner().invoke(build_app(), ["validate", str(path), *options])


def changed(folder: Path, change: Change, *options: str) -> Result:
    config = yaml.safe_load(SHIPPED.read_text())
    change(config["applications"][0])
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(config))
    return validate(path, *options)


def accept(folder: Path, change: Change, *options: str) -> Result:
    """What is said of the shipped config once it is changed, which has to stay valid."""
    result = changed(folder, change, *(options or ROOMY))
    assert result.exit_code == 0, result.output
    return result


def group(application: dict[str, Any], index: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = application["args"]["groups"][index]
    return found


def with_group(index: int = 0, **fields: Any) -> Change:
    return lambda application: group(application, index).update(fields)


def with_args(**fields: Any) -> Change:
    return lambda application: application["args"].update(fields)


def with_override(**fields: Any) -> Change:
    return lambda application: application.update(deployments=[{"name": "thinkers"} | fields])
