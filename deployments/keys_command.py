"""``latentmas keys``: makes API keys. A key is printed once and kept nowhere."""

from enum import StrEnum
from typing import Annotated

import typer

keys = typer.Typer(no_args_is_help=True, help="Make API keys.")


class Form(StrEnum):
    """How the entry is printed: for the keys_file, or for the environment."""

    FILE = "file"
    ENV = "env"


@keys.callback()
def _group() -> None:
    """Typer would otherwise take a single command for the whole group."""


@keys.command()
def new(
    name: Annotated[str, typer.Argument(help="What logs call it; its tenant, unless named.")],
    admin: Annotated[bool, typer.Option("--admin", help="May load and unload adapters.")] = False,
    tenant: Annotated[str | None, typer.Option(help="Whose conversations it reaches.")] = None,
    form: Annotated[Form, typer.Option("--for", help="Where the entry goes.")] = Form.FILE,
) -> None:
    """Print a new random key on standard error, and on standard output the entry for the service.

    So `latentmas keys new alice >> keys.yaml` keeps the key out of the file, which holds its hash.
    """
    # These take long to import: not before --help.
    import yaml
    from pydantic import ValidationError

    from deployments.access import Right
    from deployments.api.keys import ADMIN_VARIABLE, ASK_VARIABLE, entry_of, new_key

    if form is Form.ENV and tenant is not None:
        raise typer.BadParameter(
            "a key in the environment is its own tenant. Use the file.", param_hint="--tenant"
        )
    key = new_key()
    rights = (Right.ASK, Right.ADMIN) if admin else (Right.ASK,)
    try:
        entry = entry_of(name, key, rights, tenant)
    except ValidationError:
        raise typer.BadParameter(
            "names and tenants have letters, digits and ._- and at most 64 of them.",
            param_hint="NAME",
        ) from None
    typer.echo(f"key of {name}, shown only now: {key}", err=True)
    if form is Form.ENV:
        typer.echo(f"{ADMIN_VARIABLE if admin else ASK_VARIABLE}={name}:sha256:{entry['sha256']}")
        return
    typer.echo(yaml.safe_dump([entry], sort_keys=False).rstrip())
