"""The command `doctor`."""

import argparse
from collections.abc import Iterator

from components.common.errors import UserError
from pipelines.cluster import Cluster
from pipelines.doctor import checks, pod
from pipelines.doctor.report import FINE, WRONG, Finding
from pipelines.server import connect
from pipelines.settings import Settings


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Prints what the cluster has and lacks, a line each; 1 if something is wrong."""
    wrong = False
    for finding in _findings(options, settings):
        print(finding, flush=True)
        wrong |= finding.state == WRONG
    return int(wrong)


def _findings(options: argparse.Namespace, settings: Settings) -> Iterator[Finding]:
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
    yield checks.trainer(cluster, settings)
    yield checks.lost_pods(cluster, settings)
    yield from pod.probe(cluster, settings)
