"""The training loop, its data reader, processes, checkpoints and backbones."""
