"""What is valid in the args of an application, and yet would fail at the start or surprise later.

Looks at adapters and devices before a replica does; loads no model and asks no hub.
"""

from collections.abc import Iterator

from cluster.config import GroupConfig
from cluster.problem import Problem
from cluster.serve_file import ALL_INTERFACES
from deployments.args import AppArgs
from latentmas_core.errors import LatentMASError
from latentmas_core.latent.segment import BASE_ADAPTER
from latentmas_core.lora.library import AdapterSource
from latentmas_core.lora.registry import AdapterRegistry, check_base


def adapter_problems(args: AppArgs) -> Iterator[Problem]:
    """Names to load that no registry has, or has for another base model than a group runs."""
    registry = AdapterRegistry(args.adapters.registries)
    models = {args.engine_of(group).model_name for group in args.groups}
    for i, name in enumerate(args.adapters.load):
        if isinstance(name, AdapterSource):
            continue
        try:
            for model_name in sorted(models):
                check_base(registry.get(name), model_name)
        except LatentMASError as error:
            yield Problem(f"adapters.load[{i}]", error.message)


def args_warnings(args: AppArgs) -> Iterator[Problem]:
    """What starts, but perhaps not as it is meant."""
    for i, group in enumerate(args.groups):
        yield from _device_warnings(args, group, f"groups[{i}]")
        yield from _missing_adapters(args, group, f"groups[{i}]")


def timeout_warnings(args: AppArgs, serve_timeout_s: float | None) -> Iterator[Problem]:
    """``serve_timeout_s``: when Serve itself ends a request, by answering in plain text."""
    if serve_timeout_s is not None and serve_timeout_s <= args.request_timeout_s:
        yield Problem(
            "request_timeout_s",
            f"is {args.request_timeout_s:g} and http_options.request_timeout_s "
            f"{serve_timeout_s:g}: Serve ends requests first, in plain text. Keep its own above",
        )


def exposure_warnings(args: AppArgs, host: str) -> Iterator[Problem]:
    """``host``: where the service listens."""
    access = args.access
    if host in ALL_INTERFACES and access.keys_file is None and not access.require_keys:
        yield Problem(
            "access.require_keys",
            f"is false, there is no keys_file, and the service listens on {host}: without keys in "
            "its environment whoever reaches the port may use it. Set one of them",
        )


def _device_warnings(args: AppArgs, group: GroupConfig, path: str) -> Iterator[Problem]:
    device = args.engine_of(group).device
    if device.startswith("cuda") and group.num_gpus == 0:
        yield Problem(
            f"{path}.num_gpus",
            f"is 0 and the engine's device is {device!r}: Ray does not count the card that group "
            f"{group.name!r} uses, and may give it away. Set num_gpus",
        )
    num_devices = args.engine_of(group).num_devices
    if device != "cpu" and num_devices > max(1, group.num_gpus):
        yield Problem(
            f"{path}.engine.num_devices",
            f"is {num_devices} and group {group.name!r} has num_gpus {group.num_gpus:g}: a replica "
            "spreads its model over cards that it does not hold. Set num_gpus, leave this out",
        )
    if device == "cpu" and group.num_gpus > 0:
        yield Problem(
            f"{path}.num_gpus",
            f"is {group.num_gpus:g} and the engine's device is 'cpu': group {group.name!r} holds "
            "GPUs that it does not use. Set device: auto, or take num_gpus out",
        )


def _missing_adapters(args: AppArgs, group: GroupConfig, path: str) -> Iterator[Problem]:
    loaded = args.adapters.loaded_names
    for name, agent in args.agents_of(group).items():
        chosen = agent.adapter
        wanted = (chosen,) if isinstance(chosen, str) else tuple(chosen or ())
        for adapter in wanted:
            if adapter not in (*loaded, BASE_ADAPTER):
                yield Problem(
                    path,
                    f"agent {name!r} has adapter {adapter!r}, which is not loaded at the start; "
                    "its requests fail until it is. Add it to adapters.load",
                )
