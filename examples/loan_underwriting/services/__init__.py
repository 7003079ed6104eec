"""A credit bureau, a government registry and a core banking system, over HTTP and as unreliable as real ones."""
