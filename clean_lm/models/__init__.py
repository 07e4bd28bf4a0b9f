"""PyTorch modules that export as written. Only weights/ and export/ import them: the runtime needs no torch."""
