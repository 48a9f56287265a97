"""Monitoring: whether scored images, their scores and their headers have drifted from a reference."""
