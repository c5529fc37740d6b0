"""Who may come in, as whom, from which page, and how much of the engine they may use. No sockets, no routes."""
