"""The command line: it starts the engine, the services and the demo."""
