"""The Kubeflow components of `preprocess`: one partition, and the merge."""

from kfp import dsl


@dsl.component(base_image="cpu", install_kfp_package=False)
def preprocess(partition: str, root: str, params: str, runtime: str) -> str:
    """Preprocesses a partition.

    Args:
        partition: JSON of its number (`i/n`), the folder of the raw files, and the digest of its listing, so that the cache is not
            used if files have changed.
        root: parent folder of all outputs.
        params: JSON of the section `preprocess`.
        runtime: JSON of the section `runtime`.

    Returns:
        The output folder of the partition.
    """
    import json

    from components.common.runs.step import step
    from components.preprocess.params import Preprocess
    from components.preprocess.run import run

    inputs = json.loads(partition)
    with step("preprocess", root, Preprocess, params, inputs, runtime) as this:
        run(raw=inputs["raw"], out=this.out, params=this.params, runtime=this.runtime, partition=inputs["number"])
    return this.out


@dsl.component(base_image="cpu", install_kfp_package=False)
def merge(
    partitions: list[str],
    root: str,
    params: str,
    runtime: str,
    manifest: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Merges the partitions into one set of shards.

    Args:
        partitions: output folders of all partitions.
        root: parent folder of all outputs.
        params: JSON of the section `preprocess`.
        runtime: JSON of the section `runtime`.
        manifest: manifest.json, which describes the shards.
        metrics: counts of files and images.
        report: report on the data.

    Returns:
        The folder of the shards.
    """
    from components.common.formats.manifest import MANIFEST
    from components.common.formats.pages import REPORT
    from components.common.runs.step import step
    from components.preprocess.params import Preprocess
    from components.preprocess.run import merge_partitions

    with step("shards", root, Preprocess, params, {"partitions": sorted(partitions)}, runtime) as this:
        merge_partitions(shards=partitions, out=this.out, runtime=this.runtime)
    this.show({MANIFEST: manifest.path, REPORT: report.path}, metrics)
    return this.out
