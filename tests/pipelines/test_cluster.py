"""The manifests and the compiled packages against a real API server, if etcd and kube-apiserver are on this machine.

The server is started on the loopback interface. Rights are asked for by SelfSubjectAccessReview, as the service account.
"""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.params import load
from pipelines import packages, settings
from pipelines.doctor.rights import NEEDED, Right
from tests import ROOT
from tests.pipelines.test_deploy import built

PROGRAMS = ("kube-apiserver", "etcd", "kubectl", "openssl")
MISSING = [name for name in PROGRAMS if not shutil.which(name)]
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")]
TOKEN = "admin-of-the-test"
ACCOUNT = "system:serviceaccount:cxr:cxr-pipelines"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    def __init__(self, port: int):
        self.options = [f"--server=https://127.0.0.1:{port}", "--insecure-skip-tls-verify", f"--token={TOKEN}"]

    def kubectl(self, *arguments: str, given: str = "") -> str:
        done = subprocess.run(["kubectl", *self.options, *arguments], input=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def may(self, right: Right) -> bool:
        attributes: dict[str, Any] = {"group": right.group, "verb": right.verb, "name": right.name}
        attributes["resource"], _, attributes["subresource"] = right.resource.partition("/")
        if not right.everywhere:
            attributes["namespace"] = "cxr"
        kind = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
        review = json.dumps({**kind, "spec": {"resourceAttributes": attributes}})
        groups = ["--as-group=system:serviceaccounts", "--as-group=system:authenticated"]
        said = self.kubectl("create", f"--as={ACCOUNT}", *groups, "-o", "json", "-f", "-", given=review)
        return bool(json.loads(said)["status"]["allowed"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("apiserver")
    (folder / "tokens.csv").write_text(f"{TOKEN},admin,1,system:masters\n")
    subprocess.run(["openssl", "genrsa", "-out", str(folder / "accounts.key"), "2048"], check=True, capture_output=True)
    store, peer, port = free_port(), free_port(), free_port()
    url = f"http://127.0.0.1:{store}"
    etcd = ["etcd", "--data-dir", str(folder / "etcd"), "--listen-client-urls", url, "--advertise-client-urls", url]
    peers = [f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}"]
    api = [
        *("kube-apiserver", f"--etcd-servers={url}", f"--secure-port={port}", "--bind-address=127.0.0.1", "--authorization-mode=RBAC"),
        *(f"--token-auth-file={folder / 'tokens.csv'}", f"--cert-dir={folder}", "--service-cluster-ip-range=10.0.0.0/24"),
        *(f"--service-account-key-file={folder / 'accounts.key'}", f"--service-account-signing-key-file={folder / 'accounts.key'}"),
        *("--service-account-issuer=https://kubernetes.default.svc", "--disable-admission-plugins=ServiceAccount"),
    ]
    with (folder / "log").open("wb") as log:
        processes = [subprocess.Popen(command, stdout=log, stderr=log) for command in ([*etcd, *peers, "--name=default"], api)]
        try:
            running = Server(port)
            until = time.monotonic() + 120
            while subprocess.run(["kubectl", *running.options, "get", "--raw=/readyz"], capture_output=True).returncode:
                assert time.monotonic() < until, (folder / "log").read_text()[-2000:]
                time.sleep(1)
            yield running
        finally:
            for process in processes:
                process.terminate()
                process.wait()


@pytest.fixture(scope="module")
def deployed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Applies all manifests, as docs/kubernetes.md says."""
    manifests = built(tmp_path_factory.mktemp("deploy"), newTag='"0123"')
    server.kubectl("apply", "-f", str(ROOT / "deploy" / "namespace.yaml"))
    server.kubectl("-n", "cxr", "apply", "-f", str(ROOT / "deploy" / "secrets.yaml"))
    server.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(manifests))
    return server


@pytest.mark.parametrize("right", NEEDED, ids=str)
def test_the_service_account_may_do_what_a_step_does(deployed: Server, right: Right) -> None:
    assert deployed.may(right)


@pytest.mark.parametrize("right", [Right("get", "secrets", name="cxr-s3"), Right("create", "pods"), Right("create", "pods/exec")], ids=str)
def test_the_service_account_may_do_nothing_else(deployed: Server, right: Right) -> None:
    assert not deployed.may(right)


@pytest.mark.parametrize("name", sorted(packages.PIPELINES))
def test_the_pods_of_a_package_are_accepted(deployed: Server, name: str, tmp_path: Path) -> None:
    """Builds the pod of each step as the driver of Kubeflow does, as far as the package decides, for a dry run of the server."""
    packages.compile_to(tmp_path / "package.yaml", name, settings.load(), load(ROOT / "params.yaml"))
    spec, platform = yaml.safe_load_all((tmp_path / "package.yaml").read_text())
    for key, executor in spec["deploymentSpec"]["executors"].items():
        pod = pod_of(executor["container"], platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][key])
        deployed.kubectl("-n", "cxr", "create", "--dry-run=server", "-f", "-", given=yaml.safe_dump(pod))


def pod_of(container: dict[str, Any], kubernetes: dict[str, Any]) -> dict[str, Any]:
    found = container["resources"]
    limits = {"cpu": found["resourceCpuLimit"], "memory": found["resourceMemoryLimit"]}
    if accelerator := found.get("accelerator"):
        limits[accelerator["resourceType"]] = accelerator["resourceCount"]
    secrets = [
        {"name": one["envVar"], "valueFrom": {"secretKeyRef": {"name": secret["secretName"], "key": one["secretKey"]}}}
        for secret in kubernetes.get("secretAsEnv", [])
        for one in secret["keyToEnv"]
    ]
    fields = [{"name": one["name"], "valueFrom": {"fieldRef": {"fieldPath": one["fieldPath"]}}} for one in kubernetes["fieldPathAsEnv"]]
    claims = [(f"v{number}", one) for number, one in enumerate(kubernetes.get("pvcMount", []))]
    context = {name: int(value) if name != "runAsNonRoot" else value for name, value in kubernetes["securityContext"].items()}
    main = {
        **{"name": "main", "image": container["image"], "command": container["command"], "args": container["args"]},
        **{"env": [*container["env"], *secrets, *fields], "resources": {"limits": limits}, "securityContext": context},
        "volumeMounts": [{"name": name, "mountPath": one["mountPath"]} for name, one in claims],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "step-", "labels": {"pipeline/runid": "1"}},
        "spec": {
            **{"restartPolicy": "Never", "serviceAccountName": "cxr-pipelines", "containers": [main]},
            "nodeSelector": kubernetes.get("nodeSelector", {}).get("labels", {}),
            "tolerations": kubernetes.get("tolerations", []),
            "activeDeadlineSeconds": int(kubernetes["activeDeadlineSeconds"]),
            "volumes": [{"name": name, "persistentVolumeClaim": {"claimName": one["constant"]}} for name, one in claims],
        },
    }
