"""``python -m deployments.kuberay``: writes the generated patches, and checks ``k8s/``."""

from pathlib import Path
from typing import Annotated

import typer

from deployments.kuberay.crd import read_schema
from deployments.kuberay.lint import FOLDERS, lint_folder, stale_lines
from deployments.kuberay.serve_config import write as write_patches

app = typer.Typer(help="The Kubernetes manifests in k8s/.", no_args_is_help=True)

Root = Annotated[Path, typer.Option(help="The root of the repository.")]
Crd = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="ray.io_rayservices.yaml of KubeRay."),
]


@app.command()
def write(root: Root = Path()) -> None:
    """Write serveConfigV2 anew where it is stale."""
    for path in write_patches(root):
        typer.echo(f"wrote {path}")


@app.command()
def check(root: Root = Path(), crd: Crd = None) -> None:
    """Say what is stale or would fail on a cluster. Exit status 1 if anything is."""
    lines = stale_lines(root)
    schema = read_schema(crd) if crd else None
    for folder in FOLDERS:
        lines += [str(fault) for fault in lint_folder(root, folder, schema=schema)]
    for line in lines:
        typer.echo(line, err=True)
    if lines:
        raise typer.Exit(1)
    typer.echo(f"{len(FOLDERS)} kustomizations are sound; nothing generated is stale.")


if __name__ == "__main__":
    app()
