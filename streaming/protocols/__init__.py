"""What is spoken on the wire, without a socket, a task or a clock: bytes in, commands out; events in, bytes out."""
