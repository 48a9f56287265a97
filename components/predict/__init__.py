"""A cohort from elsewhere, scored by a model as it is registered: predictions that evaluate takes."""
