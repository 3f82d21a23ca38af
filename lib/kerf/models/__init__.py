"""Models: from a name to a directory; how it is checked, opened and described."""
