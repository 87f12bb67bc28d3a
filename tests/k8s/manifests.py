"""Where the manifests are, and what they are rendered to."""

import shlex
import shutil
import subprocess
from pathlib import Path

import yaml

from deployments.kuberay.manifest import mapping
from deployments.kuberay.render import render

ROOT = Path(__file__).resolve().parents[2]
CRD = ROOT.parent / "shared" / "data" / "ray.io_rayservices.yaml"
# Kinds that are of Kubernetes itself; the others come with operators.
FOREIGN = {"RayService", "PodMonitor", "PrometheusRule"}


def rendered(folder):
    return render(ROOT / folder)


def drain_command():
    """What the hook of a worker begins with: it tells Ray that its node goes."""
    cluster = one_of(rendered("k8s/base"), "RayService")["spec"]["rayClusterConfig"]
    container = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    *_, script = container["lifecycle"]["preStop"]["exec"]["command"]
    return shlex.split(script.partition("&&")[0])


def one_of(bodies, kind, name=None):
    """The object of a kind, as it can be changed in place."""
    found = [one for one in bodies if one["kind"] == kind]
    return next(one for one in found if name is None or mapping(one, "metadata")["name"] == name)


def kustomize(folder):
    """What kubectl or kustomize make of it; None where neither is there, or can do so."""
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(command[0]):
            done = subprocess.run(
                [*command, str(ROOT / folder)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            return [one for one in yaml.safe_load_all(done.stdout) if one]
    return None
