"""The Kubeflow pipelines: what runs in which order, on which nodes, and how it is submitted."""
