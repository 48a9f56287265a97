"""Raw files to shards: judged, rendered, pseudonymised, split by patient."""
