"""Recipes to live objects: the only place that knows both. Each function builds and returns; none decides."""
