"""MoCo v2 with the IFA loss: shards to a backbone."""
