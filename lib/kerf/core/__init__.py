"""The foundation of all other packages: errors, paths, the cache, files, child processes. It knows nothing of models."""
