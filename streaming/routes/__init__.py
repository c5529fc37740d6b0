"""HTTP routes beside the answers: one class a subject, each with its `routes`."""
