"""What the heads found do: what they write, read and look for, where numbers stand."""
