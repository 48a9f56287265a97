"""The Kubeflow components of `preprocess`: one partition, and the merge."""

from kfp import dsl


@dsl.component(base_image="cpu", install_kfp_package=False)
def preprocess(partition: str, root: str, params: str, runtime: str) -> str:
    """Preprocesses a partition.

    Args:
        partition: JSON of its number (`i/n`), the folder of the raw files, and the digest of its listing, so that the cache is not
            used if files have changed; from `begin_scoring` also parameters of the model and the list of the images that it has scored.
        root: parent folder of all outputs.
        params: JSON of the section `preprocess`.
        runtime: JSON of the section `runtime`.

    Returns:
        The output folder of the partition.
    """
    import json

    from components.common.runs.scored import read_list
    from components.common.runs.step import step
    from components.preprocess.params import Preprocess
    from components.preprocess.run import run

    given = json.loads(partition)
    with step("preprocess", root, Preprocess, params, given, runtime, given.get("overrides")) as this:
        skip = read_list(given["skip"]) if "skip" in given else frozenset()
        run(raw=given["raw"], out=this.out, params=this.params, runtime=this.runtime, partition=given["number"], skip=skip)
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
