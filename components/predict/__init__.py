"""Prediction: scores a cohort from elsewhere with a trained model."""
