"""The Kubernetes manifests of ``k8s/``: what is generated in them, and what would fail there.

Run ``python -m deployments.kuberay --help`` in the root of the repository. Talks to no cluster.
"""
