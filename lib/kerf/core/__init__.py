"""What everything else stands on: errors, paths, the cache, files, child processes. Nothing here knows of models."""
