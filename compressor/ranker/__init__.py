"""The canonical ranker: spec, torch module, store. `spec` and `cost` import without torch."""
