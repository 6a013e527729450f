"""What the user takes away: the compressed model with the proof inside; written, read and checked here."""
