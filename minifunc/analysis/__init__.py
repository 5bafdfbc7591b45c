"""What the heads that were found do.

What do they look for, what do they read and write, and where in the stream do numbers stand?
"""
