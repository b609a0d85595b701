"""The worker: claims runs, supervises engine processes, records what they emit."""
