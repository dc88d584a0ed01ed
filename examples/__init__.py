"""What comes with the package: the demo clip and models for `pcmanet demo`, and the scripts beside them."""
