"""The vocabulary: records, protocols, configuration, errors. No torch."""
