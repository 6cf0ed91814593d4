"""(Image, prompt) to a Score: a file is a plug-in."""
