"""The Serve config file: what Serve lets pass is refused, all of it at once and by its place."""

import copy
from pathlib import Path
from typing import Any

import pytest
from ray.serve.schema import ServeDeploySchema

from cluster.problem import ProblemsError
from cluster.serve_file import check_serve_file, read_serve_file

VALID: dict[str, Any] = {
    "proxy_location": "HeadOnly",
    "http_options": {"host": "127.0.0.1", "port": 8000},
    "applications": [
        {
            "name": "one",
            "route_prefix": "/",
            "import_path": "some.module:app",
            "runtime_env": {"env_vars": {"ANY_NAME": "x"}},
            "args": {"any": {"thing": 1}},
            "deployments": [
                {
                    "name": "group",
                    "num_replicas": "auto",
                    "user_config": {"any_key": 1},
                    "autoscaling_config": {
                        "min_replicas": 2,
                        "policy": {
                            "policy_function": "cluster.autoscaling:KvPressurePolicy",
                            "policy_kwargs": {"target_kv_usage": 0.5},
                        },
                    },
                    "ray_actor_options": {"num_cpus": 1, "resources": {"any_resource": 1}},
                }
            ],
        }
    ],
}


def valid() -> dict[str, Any]:
    return copy.deepcopy(VALID)


def application(**overrides: Any) -> dict[str, Any]:
    return valid()["applications"][0] | overrides


def problems(document: Any) -> list[str]:
    return [str(problem) for problem in check_serve_file(document).problems]


def deployment_problems(**overrides: Any) -> list[str]:
    document = valid()
    document["applications"][0]["deployments"] = [{"name": "group"} | overrides]
    return problems(document)


def test_valid_file_has_no_problems_and_no_warnings():
    checked = check_serve_file(valid())
    assert (checked.problems, checked.warnings) == ((), ())
    assert (checked.host, checked.port) == ("127.0.0.1", 8000)
    assert checked.document == VALID


def test_serve_itself_lets_pass_what_is_refused_here():
    document = valid() | {"htp_options": {}}
    document["applications"][0]["deployments"][0]["max_ongoing_request"] = 3
    ServeDeploySchema.model_validate(copy.deepcopy(document))
    assert {line.partition(": ")[0] for line in problems(document)} == {
        "htp_options",
        "applications[0].deployments[0].max_ongoing_request",
    }


def test_wrong_keys_and_wrong_values_are_told_together():
    document = valid() | {"target_capacity": 200, "proxy": 1}
    document["http_options"]["port"] = "x"
    document["applications"].append(application(name="two", route_prefix="two"))
    places = {line.partition(": ")[0] for line in problems(document)}
    assert places == {
        "proxy",
        "target_capacity",
        "http_options.port",
        "applications[1].route_prefix",
    }


def test_two_applications_with_one_route_prefix_are_refused_by_both_places():
    document = valid()
    document["applications"].append(application(name="two"))
    (told,) = problems(document)
    assert told.startswith("applications[1].route_prefix: '/' is also the route_prefix of appli")
    assert "applications[0]" in told


@pytest.mark.parametrize("prefix", ["two", "", "/two/", "//", "/{any}"])
def test_route_that_serve_refuses_only_when_it_deploys_is_refused(prefix):
    document = valid()
    document["applications"][0]["route_prefix"] = prefix
    (told,) = problems(document)
    assert told.startswith(f"applications[0].route_prefix: got {prefix!r}; a route begins with '/'")


@pytest.mark.parametrize("prefix", ["/", "/two", "/two/three", None])
def test_route_that_serve_takes_is_fine(prefix):
    document = valid()
    document["applications"][0]["route_prefix"] = prefix
    assert problems(document) == []


def test_route_prefix_that_is_left_out_counts_as_the_default():
    document = valid()
    second = application(name="two")
    del second["route_prefix"]
    document["applications"].append(second)
    assert "applications[1].route_prefix" in problems(document)[0]


def test_two_applications_without_a_route_are_fine():
    document = valid()
    document["applications"] = [application(name=name, route_prefix=None) for name in "ab"]
    assert problems(document) == []


def test_two_applications_of_one_name_are_refused():
    document = valid()
    document["applications"].append(application(route_prefix="/two"))
    (told,) = problems(document)
    assert told.startswith("applications[1].name: 'one' is also the name of applications[0]")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_listening_on_every_interface_is_a_warning(host):
    document = valid()
    document["http_options"]["host"] = host
    checked = check_serve_file(document)
    assert checked.problems == ()
    (warning,) = checked.warnings
    assert warning.path == "http_options.host"
    assert warning.message.startswith(f"{host} listens on every interface")


def test_host_that_is_left_out_is_serves_default_and_a_warning():
    document = valid()
    del document["http_options"]
    (warning,) = check_serve_file(document).warnings
    assert warning.message.startswith("0.0.0.0 listens")


def test_no_proxy_listens_nowhere():
    document = valid() | {"proxy_location": "Disabled"}
    del document["http_options"]
    assert check_serve_file(document).warnings == ()


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ({"num_replicas": -1}, "num_replicas"),
        ({"max_queued_requests": "many"}, "max_queued_requests"),
        ({"autoscaling_config": {"min_replicas": 3, "max_replicas": 2}}, "autoscaling_config"),
        ({"autoscaling_config": {"min_replicas": -1}}, "autoscaling_config.min_replicas"),
        (
            {"autoscaling_config": {"policy": {"policy_function": "no.such:thing"}}},
            "autoscaling_config",
        ),
        ({"request_router_config": {"request_router_class": "no.such:thing"}}, "request_router"),
        ({"ray_actor_options": {"num_gpus": -1}}, "ray_actor_options.num_gpus"),
        (
            {"ray_actor_options": {"runtime_env": {"env_vars": {"THREADS": 1}}}},
            "ray_actor_options.runtime_env: runtime_env['env_vars'] must be of type Dict[str, str]",
        ),
        ({"logging_config": {"log_level": "LOUD"}}, "logging_config.log_level"),
        ({"backpressure_config": {"status_code": 418}}, "backpressure_config.status_code"),
    ],
)
def test_wrong_value_in_an_override_is_refused_by_its_place(override, place):
    told = deployment_problems(**override)
    assert any(line.startswith(f"applications[0].deployments[0].{place}") for line in told), told


KV_PRESSURE = "cluster.autoscaling:KvPressurePolicy"
RATIO = "cluster.autoscaling.PipelineRatioPolicy"  # Serve takes both forms
ROUTER = "cluster.routing:ResidencyRouter"


def of_kv_pressure(**kwargs: Any) -> dict[str, Any]:
    policy = {"policy_function": KV_PRESSURE, "policy_kwargs": kwargs}
    return {"autoscaling_config": {"policy": policy}}


def of_router(**kwargs: Any) -> dict[str, Any]:
    router = {"request_router_class": ROUTER, "request_router_kwargs": kwargs}
    return {"request_router_config": router}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            of_kv_pressure(target_kv_usag=0.5),
            ".target_kv_usag: unknown key 'target_kv_usag'. Did you mean 'target_kv_usage'?",
        ),
        (of_kv_pressure(target_kv_usage=1.5), ": target_kv_usage is 1.5; it is a share of"),
        (of_kv_pressure(target_kv_usage="0.5"), ".target_kv_usage: got '0.5': Input should be a"),
        (of_kv_pressure(ratios={"group": 1}), ".ratios: unknown key 'ratios'"),
        (
            {"autoscaling_config": {"policy": {"policy_kwargs": {"target_kv_usage": 0.5}}}},
            ": 'ray.serve.autoscaling_policy:default_autoscaling_policy' is a function, to which",
        ),
        (of_router(max_leadd=3), ".max_leadd: unknown key 'max_leadd'. Did you mean 'max_lead'?"),
        (of_router(max_lead="three"), ".max_lead: got 'three': Input should be a valid integer"),
        (of_router(max_lead=-1), ": max_lead is -1: so many more requests than the least loaded"),
    ],
)
def test_wrong_kwarg_of_our_classes_is_refused_in_an_override(override, told):
    (place,) = (
        f"applications[0].deployments[0].{name}"
        for name in (
            "autoscaling_config.policy.policy_kwargs",
            "request_router_config.request_router_kwargs",
        )
        if name.partition(".")[0] in override
    )
    (line,) = deployment_problems(**override)
    assert line.startswith(f"{place}{told}")


@pytest.mark.parametrize(
    "override",
    [
        of_kv_pressure(),
        of_kv_pressure(target_kv_usage=1),
        of_router(),
        of_router(max_lead=3),
        {"autoscaling_config": {"policy": {"policy_kwargs": {}}}},
        {"request_router_config": {"request_router_kwargs": {"of_serves_own_router": 1}}},
    ],
)
def test_right_kwarg_is_fine(override):
    assert deployment_problems(**override) == []


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        (
            {"ratio": {"group": 2}},
            [".ratio: unknown key 'ratio'. Did you mean 'ratios'?"],
        ),
        ({"ratios": {"group": -2}}, [": ratios: group 'group' has -2; a ratio is more than 0"]),
        ({"ratios": {"group": "2"}}, [".ratios.group: got '2': Input should be a valid number"]),
        ({"ratios": ["group"]}, [".ratios: got ['group']: Input should be a"]),
        ({"weights": {}}, [".weights: unknown key 'weights'", ".ratios: is missing. Add it"]),
        ({"ratios": {"group": 2}}, []),
    ],
)
def test_wrong_kwargs_of_a_policy_of_the_application_are_refused(kwargs, told):
    document = valid()
    policy = {"policy_function": RATIO, "policy_kwargs": kwargs}
    document["applications"][0]["autoscaling_policy"] = policy
    lines = problems(document)
    assert len(lines) == len(told)
    for line, start in zip(lines, told, strict=True):
        assert line.startswith(f"applications[0].autoscaling_policy.policy_kwargs{start}")


def test_override_that_is_no_mapping_is_refused_not_a_crash():
    document = valid()
    document["applications"][0]["deployments"] = ["group"]
    (told,) = problems(document)
    assert "Serve refuses it" in told


@pytest.mark.parametrize("document", [None, [], "text", 3])
def test_document_that_is_no_mapping_is_refused(document):
    (told,) = problems(document)
    assert "mapping with 'applications'" in told


def test_file_without_applications_is_refused():
    document = valid()
    del document["applications"]
    assert problems(document) == ["applications: is missing. Add it"]


def test_deprecated_option_is_a_warning_in_serves_words():
    document = valid()
    config = document["applications"][0]["deployments"][0]["autoscaling_config"]
    config |= {"metrics_interval_s": 1.0}
    checked = check_serve_file(document)
    assert checked.problems == ()
    assert any("metrics_interval_s" in warning.message for warning in checked.warnings)


def test_checking_leaves_the_document_as_it_was():
    document = valid()
    document["applications"][0]["deployments"][0]["gang_scheduling_config"] = {"gang_size": 2}
    before = copy.deepcopy(document)
    check_serve_file(document)
    assert document == before


def read(path: Path, text: str) -> Any:
    path.write_text(text)
    return read_serve_file(path)


def test_key_that_is_there_twice_is_refused_with_its_line(tmp_path):
    text = "http_options:\n  port: 1\n  host: x\n  port: 2\n"
    with pytest.raises(ProblemsError, match=r"(?s)key 'port' twice.*line 4"):
        read(tmp_path / "c.yaml", text)


def test_anchors_and_merges_are_read_as_yaml_has_them(tmp_path):
    text = "a: &base {x: 1, y: 2}\nb: {<<: *base, y: 3}\n"
    assert read(tmp_path / "c.yaml", text)["b"] == {"x": 1, "y": 3}


def test_file_that_is_no_yaml_is_refused_with_its_name(tmp_path):
    with pytest.raises(ProblemsError, match=r"c\.yaml is not valid YAML"):
        read(tmp_path / "c.yaml", "a: [")


def test_file_that_is_no_text_is_refused_with_its_name(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProblemsError, match=r"c\.yaml is not valid YAML"):
        read_serve_file(tmp_path / "c.yaml")


def test_file_that_is_not_there_is_refused_with_its_name(tmp_path):
    with pytest.raises(ProblemsError, match=r"none\.yaml cannot be read: No such file"):
        read_serve_file(tmp_path / "none.yaml")
