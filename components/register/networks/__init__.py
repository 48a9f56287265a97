"""The network of a model.json with everything around it that turns pixels into what users want: a module a task.

Each has `load(description, weights)`, which needs the keys NEEDED of model.json and returns a `Network` (images.py). A packed model
carries the module of its task and what that imports, no more.
"""
