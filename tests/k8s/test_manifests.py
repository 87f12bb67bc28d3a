"""Every manifest and overlay is valid, and what is generated in them is not stale."""

import json

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from deployments.kuberay import keys
from deployments.kuberay.__main__ import app
from deployments.kuberay.crd import read_schema
from deployments.kuberay.lint import FOLDERS, TEMPLATE, lint, lint_folder, template_secrets
from deployments.kuberay.render import read_objects, render
from deployments.kuberay.serve_config import (
    IMAGE_CONFIGS,
    SOURCES,
    for_kubernetes,
    image_text,
    patch_text,
    stale,
    write,
)
from tests.k8s.manifests import CRD, FOREIGN, ROOT, kustomize, one_of, rendered

# The oldest that KubeRay 1.7 is used with here, and the newest of which there are schemas.
KUBERNETES = ("1.30", "1.37")


@pytest.fixture(scope="module")
def schema():
    if not CRD.is_file():
        pytest.skip(f"The CRD of KubeRay is not at {CRD}.")
    return read_schema(CRD)


def key(one):
    return one["kind"], one["metadata"]["name"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_an_overlay_has_no_fault(folder):
    assert lint_folder(ROOT, folder) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_rayservices_fit_the_crd_with_unknown_keys_refused(folder, schema):
    assert lint_folder(ROOT, folder, schema=schema) == []


def test_the_crd_sees_keys_below_those_of_the_table(schema):
    bodies = rendered("k8s/base")
    head = one_of(bodies, "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]
    head["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Always"
    faults = lint(bodies, "k8s/base", template_secrets(ROOT), schema=schema)
    assert [fault.rule for fault in faults] == ["schema"]
    assert "imagePullPolcy" in faults[0].message


def test_the_table_of_keys_is_that_of_the_crd(schema):
    spec = schema["properties"]["spec"]["properties"]
    cluster = spec["rayClusterConfig"]["properties"]
    assert set(spec) == keys.SERVICE
    assert set(cluster) == keys.CLUSTER
    assert set(cluster["headGroupSpec"]["properties"]) == keys.HEAD
    assert set(cluster["workerGroupSpecs"]["items"]["properties"]) == keys.WORKER
    assert set(cluster["authOptions"]["properties"]) == keys.AUTH
    assert set(cluster["autoscalerOptions"]["properties"]) == keys.AUTOSCALER
    assert set(cluster["gcsFaultToleranceOptions"]["properties"]) == keys.FAULT_TOLERANCE
    upgrade = spec["upgradeStrategy"]["properties"]
    assert set(upgrade) == keys.UPGRADE
    assert set(upgrade["clusterUpgradeOptions"]["properties"]) == keys.UPGRADE_OPTIONS


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("folder", FOLDERS)
def test_kinds_of_kubernetes_fit_its_strict_schemas(folder, version):
    own = [one for one in rendered(folder) if one["kind"] not in FOREIGN]
    assert own
    for one in own:
        kubernetes_validate.validate(one, version, strict=True)


def test_the_template_of_secrets_is_valid_and_never_applied():
    templates = read_objects(ROOT / TEMPLATE)
    for one in templates:
        kubernetes_validate.validate(one, KUBERNETES[-1], strict=True)
        assert set(one["stringData"].values()) == {"REPLACE_ME"}
    for folder in FOLDERS:
        assert not [one for one in rendered(folder) if one["kind"] == "Secret"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_renderer_agrees_with_kustomize(folder):
    theirs = kustomize(folder)
    if theirs is None:
        pytest.skip("Neither kubectl nor kustomize is installed.")
    ours = rendered(folder)
    assert sorted(map(key, ours)) == sorted(map(key, theirs))
    assert {key(one): one for one in ours} == {key(one): one for one in theirs}


def test_a_kustomization_that_the_renderer_does_not_know_is_refused(tmp_path):
    (tmp_path / "kustomization.yaml").write_text("components: [x]\n")
    with pytest.raises(ValueError, match="components"):
        render(tmp_path)


def test_a_patch_of_nothing_is_refused(tmp_path):
    (tmp_path / "kustomization.yaml").write_text("patches: [{path: patch.yaml}]\n")
    (tmp_path / "patch.yaml").write_text("kind: Service\nmetadata: {name: none}\n")
    with pytest.raises(ValueError, match="not among the resources"):
        render(tmp_path)


def test_nothing_that_is_generated_is_stale():
    assert stale(ROOT) == []


def test_stale_patches_are_named_and_written_anew(tmp_path):
    for patch, source in SOURCES.items():
        (tmp_path / patch).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / source).write_text((ROOT / source).read_text())
        (tmp_path / patch).write_text(patch_text(tmp_path, source))
    for path, added in IMAGE_CONFIGS.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(image_text(tmp_path, added))
    assert stale(tmp_path) == []
    config = tmp_path / "serve_config.yaml"
    config.write_text(config.read_text().replace("latent_steps: 10", "latent_steps: 11"))
    assert write(tmp_path) == ["k8s/base/serve-config.yaml", *IMAGE_CONFIGS]
    assert "latent_steps: 11" in (tmp_path / "k8s/base/serve-config.yaml").read_text()
    assert stale(tmp_path) == []


@pytest.mark.parametrize(("patch", "source"), SOURCES.items())
def test_only_where_it_runs_and_listens_and_who_may_come_in_differ_from_the_source(patch, source):
    theirs = yaml.safe_load((ROOT / source).read_text())
    config = yaml.safe_load(read_objects(ROOT / patch)[0]["spec"]["serveConfigV2"])
    assert config == for_kubernetes(theirs)
    assert config.pop("proxy_location") == "EveryNode"
    assert config["http_options"].pop("host") == "0.0.0.0"
    assert config["applications"][0]["args"].pop("access") == {"require_keys": True}
    (ingress,) = config["applications"][0].pop("deployments")
    assert ingress["name"] == "Ingress"
    assert ingress["ray_actor_options"]["label_selector"] == {"ray.io/node-group": "!headgroup"}
    del theirs["proxy_location"], theirs["http_options"]["host"]
    assert config == theirs


def test_the_dashboard_of_the_overlay_is_the_one_of_the_repository():
    dashboard = one_of(rendered("k8s/overlays/monitoring"), "ConfigMap")
    theirs = json.loads((ROOT / "monitoring/grafana-dashboard.json").read_text())
    assert json.loads(dashboard["data"]["grafana-dashboard.json"]) == theirs


def test_check_says_that_all_is_sound():
    result = CliRunner().invoke(app, ["check", "--root", str(ROOT)])
    assert result.exit_code == 0, result.output
    assert "5 kustomizations are sound" in result.output


def test_check_names_what_is_stale_and_fails(monkeypatch):
    monkeypatch.setattr(
        "deployments.kuberay.serve_config.SOURCES",
        {"k8s/base/serve-config.yaml": "configs/gpu-1.yaml"},
    )
    monkeypatch.setattr("deployments.kuberay.__main__.FOLDERS", ())
    result = CliRunner().invoke(app, ["check", "--root", str(ROOT)])
    assert result.exit_code == 1
    assert "k8s/base/serve-config.yaml is not what its source makes it" in result.output
