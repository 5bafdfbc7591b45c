"""What the heads that were found do: what they write, read and look for, and where numbers stand in the stream."""
