"""The `pcmanet` command."""
