"""External validation: scores a cohort from elsewhere with a trained model and evaluates the scores."""
