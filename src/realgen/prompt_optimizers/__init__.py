"""Words to richer words: a file is a plug-in."""
