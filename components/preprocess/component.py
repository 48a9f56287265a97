"""Pipeline steps of preprocess: one per partition, and the merge."""

from kfp import dsl


@dsl.component(base_image="cpu", install_kfp_package=False)
def preprocess(partition: str, root: str, params: str, runtime: str) -> str:
    """Preprocesses a partition.

    Args:
        partition: JSON with its number (`i/n`), the raw folder, and the digest of its listing, so that new files miss the cache.
        root: folder of all outputs.
        params: JSON of the section `preprocess`.
        runtime: JSON of the section `runtime`.

    Returns:
        The folder of the partition's output.
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
    """Joins the partitions to shards.

    Args:
        partitions: output folders of all partitions.
        root: folder of all outputs.
        params: JSON of the section `preprocess`.
        runtime: JSON of the section `runtime`.
        manifest: manifest.json, which describes the shards.
        metrics: counts.
        report: data report.

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
    metrics.metadata.update(this.metrics())
    this.show(MANIFEST, manifest.path)
    this.show(REPORT, report.path)
    return this.out
