"""The command `doctor`: what a cluster lacks for the runs of a settings file."""
