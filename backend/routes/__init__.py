"""HTTP only: each route asks backend.queries and answers."""
