"""One recipe per paradigm: a configuration, and `build(config, topology)` that makes a Trainer of it."""
