"""What can be learnt from the API of Kubernetes about the namespace of the runs, with the rights that a user has."""

import base64
from collections.abc import Iterator
from typing import Any

import yaml
from kubernetes import client

from components.common.errors import UserError
from pipelines.cluster import SINGLE_USER_NAMESPACE, Cluster
from pipelines.doctor.report import FINE, UNKNOWN, WRONG, Finding, is_missing, unknown
from pipelines.doctor.rights import NEEDED, TRAINER, Right
from pipelines.pipeline_run import retries_what_is_killed
from pipelines.settings import Affinity, Pool, Secret, Settings, Toleration

APPLY = "run `kubectl apply -k deploy`"
PLACEHOLDER = "REPLACE-ME"


def rights(cluster: Cluster, settings: Settings) -> Finding:
    """Asks what the service account may do; if the user may not ask for others, what the user may."""
    account = settings.service_account or ("pipeline-runner" if cluster.namespace == SINGLE_USER_NAMESPACE else "default-editor")
    what, whole = f"rights of {account}", f"system:serviceaccount:{cluster.namespace}:{account}"
    try:
        cluster.call(cluster.core.read_namespaced_service_account, account, cluster.namespace)
    except UserError as error:
        if is_missing(error):
            return Finding(what, WRONG, f"this service account does not exist in {cluster.namespace}; {APPLY}")
    answers = {right: _ask(cluster, right, whole) for right in NEEDED}
    about_account = any(answer is not None for answer in answers.values())
    if not about_account:
        answers = {right: _ask(cluster, right, None) for right in NEEDED}
    missing = ", ".join(f"{right} (for {right.user})" for right, answer in answers.items() if answer is False)
    asked = sum(answer is not None for answer in answers.values())
    if not asked:
        return Finding(what, UNKNOWN, "your rights do not suffice to look")
    if not about_account:
        said = f"you may not {missing}" if missing else f"you may do all {asked} things that a step does"
        return Finding(what, UNKNOWN, f"your rights do not suffice to ask for it; {said}")
    return (
        Finding(what, WRONG, f"may not {missing}; {APPLY}")
        if missing
        else Finding(what, FINE, f"may do the {asked} things that a step does")
    )


def _ask(cluster: Cluster, right: Right, user: str | None) -> bool | None:
    """Asks for a review of a right of a user, or of the one of the kubeconfig; None if the API refuses to tell."""
    api = client.AuthorizationV1Api(cluster.api)
    resource, _, subresource = right.resource.partition("/")
    namespace = None if right.everywhere else cluster.namespace
    attributes = client.V1ResourceAttributes(
        group=right.group,
        name=right.name or None,
        namespace=namespace,
        resource=resource,
        subresource=subresource or None,
        verb=right.verb,
    )
    try:
        if user is None:
            own = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes))
            return bool(cluster.call(api.create_self_subject_access_review, own).status.allowed)
        spec = client.V1SubjectAccessReviewSpec(resource_attributes=attributes, user=user)
        if right.everywhere:
            return bool(cluster.call(api.create_subject_access_review, client.V1SubjectAccessReview(spec=spec)).status.allowed)
        local = client.V1LocalSubjectAccessReview(spec=spec, metadata=client.V1ObjectMeta(namespace=namespace))
        return bool(cluster.call(api.create_namespaced_local_subject_access_review, namespace, local).status.allowed)
    except UserError:
        return None


def secrets(cluster: Cluster, settings: Settings) -> Iterator[Finding]:
    """Looks for the Secrets of the settings and their keys, and for those that Kubeflow puts into the namespace."""
    kubeflow = Secret(name="mlpipeline-minio-artifact", keys={"accesskey": "A", "secretkey": "S"})
    for secret in (settings.secrets.s3, settings.secrets.mlflow, settings.secrets.pseudonyms, settings.secrets.webhook, kubeflow):
        if secret is not None:
            of_kubeflow = "Kubeflow makes it in the namespaces of its profiles, and in its own"
            yield _secret(cluster, secret, of_kubeflow if secret is kubeflow else "fill in deploy/secrets.yaml and apply it")


def _secret(cluster: Cluster, secret: Secret, remedy: str) -> Finding:
    what = f"secret {secret.name}"
    try:
        data = cluster.call(cluster.core.read_namespaced_secret, secret.name, cluster.namespace).data or {}
    except UserError as error:
        if not is_missing(error):
            return unknown(what, error)
        return Finding(what, WRONG, f"does not exist in {cluster.namespace}; {remedy}")
    empty = [key for key in secret.keys if base64.b64decode(data.get(key) or "").decode(errors="replace") in ("", PLACEHOLDER)]
    if empty:
        return Finding(what, WRONG, f"has no value for {', '.join(empty)}; {remedy}")
    return Finding(what, FINE, f"has {', '.join(secret.keys)}")


def volume(cluster: Cluster, settings: Settings) -> Finding:
    """Looks for the volume for work in progress."""
    if settings.work is None:
        return Finding("volume", UNKNOWN, "the settings have no `work`: a preempted step starts from the beginning")
    what = f"volume {settings.work.claim}"
    try:
        claim = cluster.call(cluster.core.read_namespaced_persistent_volume_claim, settings.work.claim, cluster.namespace)
    except UserError as error:
        return Finding(what, WRONG, f"does not exist in {cluster.namespace}; {APPLY}") if is_missing(error) else unknown(what, error)
    modes, phase = claim.spec.access_modes, claim.status.phase
    if phase != "Bound":
        return Finding(what, UNKNOWN, f"is {phase}: it is bound with the first pod, or its storage class does not exist")
    if "ReadWriteMany" not in modes:
        return Finding(what, WRONG, f"is {', '.join(modes)}; steps run on several nodes, so use a storage class with ReadWriteMany")
    return Finding(what, FINE, "is bound, ReadWriteMany")


def gpu_nodes(cluster: Cluster, settings: Settings) -> Iterator[Finding]:
    """Looks for nodes on which the steps with GPUs fit."""
    wanted = {(step.gpu_type, step.gpus, step.spot) for step in settings.steps.values() if step.gpus}
    try:
        nodes = cluster.call(cluster.core.list_node).items if wanted else []
    except UserError as error:
        yield unknown("GPU nodes", error)
        return
    for kind, count, spot in sorted(wanted):
        pools = [settings.gpu, settings.spot] if spot else [settings.gpu]
        fitting = [node for node in nodes if fits(node, pools) and int((node.status.allocatable or {}).get(kind, 0)) >= count]
        names = " and ".join(["`gpu`", "`spot`"][: len(pools)])
        said = f"{len(fitting)} of {len(nodes)} nodes have {count} {kind}, the labels of {names} in the settings, and no other taints"
        remedy = "" if fitting else "; see deploy/gpu-node.yaml"
        yield Finding("GPU nodes", FINE if fitting else WRONG, said + remedy)


def fits(node: Any, pools: list[Pool]) -> bool:
    """Whether pods of these pools may run on a node, as far as labels and taints decide."""
    labels, taints = node.metadata.labels or {}, node.spec.taints or []
    required = [affinity for pool in pools for affinity in pool.affinity if affinity.weight is None]
    tolerations = [toleration for pool in pools for toleration in pool.tolerations]
    tolerated = all(any(_tolerates(one, taint) for one in tolerations) for taint in taints if taint.effect != "PreferNoSchedule")
    selected = all(pool.node_selector.items() <= labels.items() for pool in pools)
    return selected and tolerated and all(_matches(one, labels) for one in required)


def _tolerates(toleration: Toleration, taint: Any) -> bool:
    same = toleration.key == taint.key and toleration.effect in (None, taint.effect)
    return same and (toleration.operator == "Exists" or toleration.value == taint.value)


def _matches(affinity: Affinity, labels: dict[str, str]) -> bool:
    value = labels.get(affinity.key)
    match affinity.operator:
        case "In":
            return value in affinity.values
        case "NotIn":
            return value not in affinity.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    if value is None or not value.isdigit():
        return False
    return int(value) > int(affinity.values[0]) if affinity.operator == "Gt" else int(value) < int(affinity.values[0])


def trainer(cluster: Cluster, settings: Settings, needed: bool) -> Iterator[Finding]:
    """Looks for Kubeflow Trainer, the runtime of the settings, and the service account of the nodes; `needed` by the parameters."""
    missing, condition = (WRONG, "") if needed else (UNKNOWN, "; only pretraining on several nodes needs it")
    api, name = client.CustomObjectsApi(cluster.api), settings.trainer.runtime
    state, said = missing, f"is not installed, or has no runtime {name}; apply deploy/training-runtime.yaml{condition}"
    for get, *place in (
        (api.get_namespaced_custom_object, cluster.namespace, "trainingruntimes"),
        (api.get_cluster_custom_object, "clustertrainingruntimes"),
    ):
        try:
            cluster.call(get, TRAINER, "v1alpha1", *place, name)
            state, said = FINE, f"has the runtime {name}{f' in {place[0]}' if len(place) > 1 else ''}"
            break
        except UserError as error:
            if not is_missing(error):
                state, said = unknown("Trainer", error)[1:]
    yield Finding("Trainer", state, said)
    account = settings.trainer.service_account or "default"
    what = f"service account {account} of the training nodes"
    try:
        cluster.call(cluster.core.read_namespaced_service_account, account, cluster.namespace)
        yield Finding(what, FINE, "exists")
    except UserError as error:
        remedy = f"does not exist in {cluster.namespace}; {APPLY} or correct trainer.service_account{condition}"
        yield Finding(what, missing, remedy) if is_missing(error) else unknown(what, error)


def lost_pods(cluster: Cluster, settings: Settings) -> Finding:
    """Looks up whether Argo replaces pods that are evicted or killed."""
    what = "lost pods"
    try:
        found = cluster.call(cluster.core.read_namespaced_config_map, "workflow-controller-configmap", SINGLE_USER_NAMESPACE)
    except UserError as error:
        return unknown(what, error)
    try:
        strategy = yaml.safe_load(found.data["workflowDefaults"])["spec"]["templateDefaults"]["retryStrategy"] or {}
    except (yaml.YAMLError, KeyError, TypeError):  # there are no defaults
        strategy = {}
    if retries_what_is_killed(strategy):
        return Finding(what, FINE, "Argo replaces those that are evicted or killed")
    return Finding(what, WRONG, "Argo does not replace those that are evicted or killed; change its configuration with deploy/retries.sed")
