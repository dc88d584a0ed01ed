"""The `pcmanet` command: segment videos and archives, see the demo, look into a model."""
