"""A worker whose pod is to end drains first, and is given the time for it."""

import re
import subprocess

import pytest
from ray.scripts.scripts import drain_node

from tests.k8s.manifests import drain_command, one_of, rendered

FOLDERS = ["k8s/base", "k8s/overlays/cpu-dev", "k8s/overlays/gpu"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_worker_drains_within_its_grace_period(folder):
    spec = one_of(rendered(folder), "RayService")["spec"]["rayClusterConfig"]
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        shell, option, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert (shell, option) == ("bash", "-c")
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr
        (deadline_s,) = re.findall(r"--deadline-remaining-seconds (\d+)", script)
        assert int(deadline_s) < pod["terminationGracePeriodSeconds"]


def test_the_hook_uses_options_that_ray_has():
    program, command, *arguments = drain_command()
    assert (program, command) == ("ray", drain_node.name)
    context = drain_node.make_context(command, arguments)
    assert context.params["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert context.params["node_id"] is None, "the node that it runs on"
