"""The rights that the pods of a run need, as deploy/rbac.yaml gives them to their service account."""

from typing import NamedTuple

TRAINER = "trainer.kubeflow.org"


class Right(NamedTuple):
    """A right in the namespace of the runs, unless it is one of the whole cluster."""

    verb: str
    resource: str
    group: str = ""
    name: str = ""  # of the object; empty: any
    user: str = "Kubeflow's driver and launcher"  # who needs it
    everywhere: bool = False

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{f'.{self.group}' if self.group else ''}{f' {self.name}' if self.name else ''}"


LAUNCH = "the step `launch`"
NEEDED = (
    Right("create", "workflowtaskresults", "argoproj.io", user="Argo's executor"),
    Right("patch", "workflowtaskresults", "argoproj.io", user="Argo's executor"),
    Right("get", "configmaps", name="kfp-launcher"),
    Right("list", "configmaps", name="kfp-launcher"),
    Right("watch", "configmaps", name="kfp-launcher"),
    Right("get", "secrets", name="mlpipeline-minio-artifact"),
    Right("get", "pods"),
    Right("list", "pods"),
    Right("watch", "pods"),
    Right("get", "persistentvolumeclaims"),
    Right("list", "persistentvolumeclaims"),
    Right("get", "pods/log", user=LAUNCH),
    *(Right(verb, "trainjobs", TRAINER, user=LAUNCH) for verb in ("get", "create", "delete")),
    Right("get", "trainingruntimes", TRAINER, user=LAUNCH),
    Right("get", "clustertrainingruntimes", TRAINER, user=LAUNCH, everywhere=True),
)
