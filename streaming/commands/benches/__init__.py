"""`jitney bench`: step, offline and served speed, each measured in processes of its own."""
