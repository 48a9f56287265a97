"""Multi-label classification of findings: a backbone and shards to a model and its predictions."""
