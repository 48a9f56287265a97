"""The registry stage: packs a classifier for its users and decides whether it becomes the champion."""
