"""Stages of a chest radiograph pretraining project: one folder a stage, `common` is the ground floor."""
