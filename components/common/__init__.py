"""What every stage stands on. Nothing here knows a stage."""
