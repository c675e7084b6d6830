"""Reading and writing adapter files: where a source is found, what it holds, and nothing it could do to the reader."""
