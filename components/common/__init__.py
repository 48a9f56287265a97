"""Code shared by the stages. Nothing here knows a stage."""
