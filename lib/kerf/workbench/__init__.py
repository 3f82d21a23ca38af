"""Around the library: the command line, runs, reports and the interactive panel."""
