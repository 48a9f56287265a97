"""Time the bootstrap over patients against a loop over scikit-learn, and print their largest difference.

    python -m benchmarks.evaluate [--images 25000] [--findings 14] [--resamples 2000] [--loop 3]

The loops are timed on a few resamples and extrapolated, since all resamples would take minutes.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from components.common.statistics.arrays import Floats, Integers
from components.common.statistics.bootstrap import CHUNK, patient_indices, resampled_weights
from components.common.statistics.ranking import bootstrap_ranking


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=25_000)
    parser.add_argument("--findings", type=int, default=14)
    parser.add_argument("--resamples", type=int, default=2_000)
    parser.add_argument("--loop", type=int, default=3, help="resamples of the loops over scikit-learn")
    options = parser.parse_args()
    targets, scores, patients = cohort(options.images, options.findings)
    print(f"{options.images:,} images of {patients.max() + 1:,} patients, {options.findings} findings, {options.resamples:,} resamples")

    started = time.process_time()
    samples = bootstrap_ranking(targets, scores, patients, options.resamples, seed=0)
    ours = time.process_time() - started
    print(f"{'':<48} {'CPU s':>8} {'ratio':>8}")
    print(f"{'AUROC and average precision, sorted once':<48} {ours:8.2f} {1:8.1f}")
    total = 0.0
    for name, metric, found in (
        ("AUROC", roc_auc_score, samples.auroc),
        ("average precision", average_precision_score, samples.average_precision),
    ):
        started = time.process_time()
        expected = sklearn_loop(metric, targets, scores, patients, options.loop)
        theirs = (time.process_time() - started) * options.resamples / options.loop
        total += theirs
        print(f"{f'{name}, a loop over scikit-learn':<48} {theirs:8.1f} {theirs / ours:8.1f}")
        print(f"  largest difference among {expected.size} values: {np.abs(found[: options.loop] - expected).max():.1e}")
    print(f"{'both, loops over scikit-learn':<48} {total:8.1f} {total / ours:8.1f}")


def cohort(images: int, findings: int) -> tuple[Floats, Floats, Integers]:
    """Draw targets with prevalences from 1 to 40 %, scores rounded to float32, and one to four images per patient."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(images), rng.integers(1, 5, images))[:images]
    targets = (rng.random((images, findings)) < np.geomspace(0.01, 0.4, findings)).astype(np.float64)
    scores = 1 / (1 + np.exp(-rng.normal(targets, 1)))
    return targets, scores.astype(np.float32).astype(np.float64), patient_indices(patients)


def sklearn_loop(metric: Callable[..., float], targets: Floats, scores: Floats, patients: Integers, resamples: int) -> Floats:
    """Compute a metric (resamples, findings) on the first of the same resamples, repeating images as often as their patient was drawn."""
    rows = []
    for weights in next(resampled_weights(int(patients.max()) + 1, min(resamples, CHUNK), seed=0)).T:
        drawn = np.repeat(np.arange(len(patients)), weights[patients])
        rows.append([metric(targets[drawn, finding], scores[drawn, finding]) for finding in range(targets.shape[1])])
    return np.array(rows)


if __name__ == "__main__":
    main()
