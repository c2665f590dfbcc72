"""Floor 0a: numerics that know nothing of diffusion (torch only)."""
