"""Files that are installed with the package: demo clips and models for `pcmanet demo`, and example scripts."""
