"""Raw files to shards: find, check, de-identify, label, split by patient, write."""
