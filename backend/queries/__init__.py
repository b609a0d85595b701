"""All SQL of API and worker, one noun a file."""
