"""The training engine: runs alone, knows no database and no web. Importing this package imports nothing heavy."""
