"""Words to images: a file is a plug-in."""
