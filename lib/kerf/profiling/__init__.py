"""What a model takes: time, memory, energy, and the bytes of its vectors."""
