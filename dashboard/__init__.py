"""The Streamlit dashboard: a client of the API, with no access of its own to the database."""
