"""Studies of pruned networks and binary subnetworks (thesis, section 5.1)."""
