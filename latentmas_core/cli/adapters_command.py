"""``latentmas adapters``: those of a service, those of the registry, and adapters as files."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentmas_core.cli.ask_command import failures_told
from latentmas_core.cli.flags import (
    Endpoint,
    Key,
    bad_flag,
    check_key,
    open_backend,
    open_service,
)
from latentmas_core.cli.output import Output
from latentmas_core.errors import ConfigError
from latentmas_core.lora.merge_options import MajoritySign, MergeMethod, MergeOptions

if TYPE_CHECKING:
    from latentmas_core.lora.merging import MergeInput

MAX_RANK = 2**16  # more than any; what a model takes is for the engine to say

adapters = typer.Typer(no_args_is_help=True, help="LoRA adapters: list, load, merge, inspect.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Service = Annotated[str, typer.Option("--endpoint", metavar="URL", help="The service.")]
AdapterPath = Annotated[str, typer.Argument(metavar="PATH", help="A folder, or owner/name.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Of the hub's repository.")]


@adapters.command("list")
def list_adapters(
    endpoint: Endpoint = None,
    api_key: Key = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Whose adapters; here the embedded model.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the loaded adapters of a service, and the registry: what fits the base model."""
    check_key(endpoint, api_key)
    if endpoint is not None and model is not None:
        raise bad_flag("--model", "a service has its own base model. Leave it out.")
    output = Output()
    with closing(open_backend(model, endpoint, api_key)) as backend, failures_told(output):
        loaded, registry = backend.adapters()
        if as_json:
            output.json(
                {
                    "loaded": [one._asdict() for one in loaded],
                    "registry": [one._asdict() for one in registry],
                }
            )
            return
        rows = [("loaded", one.name, "", one.state) for one in loaded]
        rows += [
            ("fits" if one.fits else "other base", one.name, one.base_model, one.path)
            for one in registry
        ]
        output.table(["", "adapter", "base model", ""], rows)


@adapters.command()
def load(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    endpoint: Service,
    path: Annotated[
        str | None, typer.Argument(metavar="[PATH]", help="As the service sees it; else by name.")
    ] = None,
    revision: Revision = None,
    pinned: Annotated[bool, typer.Option("--pinned", help="Keep it on the device.")] = False,
    api_key: Key = None,
) -> None:
    """Load an adapter on every replica of a service; without PATH one of its registry.

    In this process adapters live as long as a question: give --lora-adapter to ask or chat.
    """
    output = Output()
    with closing(open_service(endpoint, api_key)) as service, failures_told(output):
        with output.busy(f"loading {name} ..."):
            service.load_adapter(name, path, revision=revision, pinned=pinned)
        output.tell(f"{name} is loaded.")


@adapters.command()
def unload(
    name: Annotated[str, typer.Argument(metavar="NAME")], endpoint: Service, api_key: Key = None
) -> None:
    """Unload an adapter from every replica of a service; answers under way finish first."""
    output = Output()
    with closing(open_service(endpoint, api_key)) as service, failures_told(output):
        service.unload_adapter(name)
        output.tell(f"{name} is unloaded.")


@adapters.command()
def inspect(path: AdapterPath, revision: Revision = None, as_json: AsJson = False) -> None:
    """Check the files of an adapter and say what it is."""
    output = Output()
    with failures_told(output):
        found = _description(path, revision)
        if as_json:
            output.json(found)
        else:
            output.table(["", ""], [(key, _shown(value)) for key, value in found.items()])


@adapters.command()
def merge(
    output_folder: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="A folder that does not exist yet.")
    ],
    inputs: Annotated[
        list[str], typer.Argument(metavar="PATH[=WEIGHT]...", help="Weight 1 if left out.")
    ],
    method: Annotated[MergeMethod, typer.Option("--method")] = MergeMethod.LINEAR,
    rank: Annotated[int | None, typer.Option("--rank", min=1, help="Of svd.")] = None,
    density: Annotated[
        float | None, typer.Option("--density", help="Of ties and dare: the share that is kept.")
    ] = None,
    majority_sign: Annotated[
        MajoritySign | None, typer.Option("--majority-sign", help="Of ties.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of dare.")] = None,
) -> None:
    """Merge adapters of one base model into a new one."""
    options = _merge_options(method, rank, density, majority_sign, seed)
    output = Output()
    with failures_told(output):
        weights = [_weighted(text) for text in inputs]
        # Torch takes seconds to import: not before wrong options are refused.
        from latentmas_core.lora.implied_base import implied_base
        from latentmas_core.lora.merging import merge_adapters

        located = [_merge_input(path, weight) for path, weight in weights]
        base = implied_base([one.folder for one in located])
        merge_adapters(located, output_folder, options=options, base=base, max_rank=MAX_RANK)
        output.tell(f"{len(located)} adapters merged into {output_folder}")


def _merge_options(
    method: MergeMethod,
    rank: int | None,
    density: float | None,
    majority_sign: MajoritySign | None,
    seed: int | None,
) -> MergeOptions:
    try:
        return MergeOptions(method, rank, density, majority_sign, seed)
    except ConfigError as error:
        flag = f"--{(error.param or 'method').replace('_', '-')}"
        raise bad_flag(flag, error.message) from None


def _weighted(text: str) -> tuple[str, float]:
    """``PATH=0.7``; a path without a number behind its last equals sign has weight 1."""
    path, equals, number = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return path, float(number)
    except ValueError:
        raise bad_flag("PATH", f"{text!r} has no number behind its equals sign.") from None


def _merge_input(path: str, weight: float) -> "MergeInput":
    from latentmas_core.lora.merging import MergeInput
    from latentmas_core.lora.source import locate_adapter

    return MergeInput(locate_adapter(path).folder, weight)


def _description(path: str, revision: str | None) -> Mapping[str, Any]:
    from latentmas_core.lora.checkpoint import read_checkpoint
    from latentmas_core.lora.implied_base import implied_base
    from latentmas_core.lora.source import locate_adapter

    located = locate_adapter(path, revision=revision)
    base = implied_base([located.folder])
    checkpoint = read_checkpoint(located.folder, base, max_rank=MAX_RANK)
    pairs = checkpoint.weights.values()
    return {
        "folder": str(located.folder),
        "base_model": checkpoint.base_model_name,
        "rank": checkpoint.rank,
        "scaling": checkpoint.scaling,
        "targets": list(checkpoint.targets),
        "layers": base.num_layers,
        "parameters": sum(pair.a.numel() + pair.b.numel() for pair in pairs),
        "dtype": str(next(iter(pairs)).a.dtype).removeprefix("torch."),
        "digest": checkpoint.digest,
    }


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
