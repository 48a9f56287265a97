"""Registration: packs a model and decides whether it becomes the champion."""
