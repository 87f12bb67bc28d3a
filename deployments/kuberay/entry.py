"""The Service that requests enter a RayService by, which the operator or a Gateway makes."""

from deployments.kuberay.manifest import Manifest, mapping

INCREMENTAL = "NewClusterWithIncrementalUpgrade"
SERVE_SERVICE = "{name}-serve-svc"
# Istio names it so, after the operator's NAME-gateway; the operator's listener has port 80.
GATEWAY_SERVICE = "{name}-gateway-{gateway_class}"
GATEWAY_PORT = 80


def entry_of(service: Manifest, serve_port: int) -> tuple[str, int]:
    """Its name and port.

    During an incremental upgrade the Serve service stays with the old cluster, which shrinks; only
    the Gateway shares requests between the two.
    """
    strategy = mapping(service.spec, "upgradeStrategy")
    if strategy.get("type") != INCREMENTAL:
        return SERVE_SERVICE.format(name=service.name), serve_port
    gateway_class = mapping(strategy, "clusterUpgradeOptions").get("gatewayClassName")
    return GATEWAY_SERVICE.format(name=service.name, gateway_class=gateway_class), GATEWAY_PORT
