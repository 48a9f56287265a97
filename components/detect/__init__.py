"""Detection of findings: a backbone and shards with boxes to a detector and its predictions."""
