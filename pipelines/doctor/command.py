"""The command `doctor`."""

import argparse
from collections.abc import Iterator

from components.common.errors import UserError
from components.params import Params
from pipelines.cluster import Cluster
from pipelines.doctor import checks, pod
from pipelines.doctor.report import FINE, WRONG, Finding
from pipelines.server import connect
from pipelines.settings import Settings


def run(options: argparse.Namespace, settings: Settings, params: Params) -> int:
    """Prints what the cluster has and lacks, a line each; 1 if something is wrong."""
    wrong = False
    for finding in _findings(options, settings, params.runtime.nodes > 1):
        print(finding, flush=True)
        wrong |= finding.state == WRONG
    return int(wrong)


def _findings(options: argparse.Namespace, settings: Settings, on_nodes: bool) -> Iterator[Finding]:
    """Yields what is found; `on_nodes`: pretraining runs on several nodes."""
    try:
        server = connect(options, settings)
        server.check()
        yield Finding("Kubeflow", FINE, f"{server.host} answers, and the namespace fits")
    except UserError as error:
        yield Finding("Kubeflow", WRONG, str(error))
    cluster = Cluster(options.namespace or settings.server.namespace)
    yield checks.rights(cluster, settings)
    yield from checks.secrets(cluster, settings)
    yield checks.volume(cluster, settings)
    yield from checks.gpu_nodes(cluster, settings)
    yield from checks.trainer(cluster, settings, on_nodes)
    yield checks.lost_pods(cluster, settings)
    yield from pod.probe(cluster, settings)
