"""The frame around the work of a stage: parameters, storage, the work folder, MLflow and signals."""
