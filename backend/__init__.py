"""The API and the database behind it. Nothing here imports torch or opens a model."""
