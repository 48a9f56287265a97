"""What surrounds the stages when they are the steps of a pipeline: its first and last step, and the frame of each."""
