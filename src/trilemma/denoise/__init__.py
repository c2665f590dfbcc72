"""denoise."""
